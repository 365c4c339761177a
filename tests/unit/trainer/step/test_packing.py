"""The plan: every row once an epoch, in steps of the batch size, in micro-batches that fit, always the same."""

from __future__ import annotations

from time import process_time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.step.packing import Plan, pack, permutation

WIDTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60).map(lambda widths: np.array(widths, np.int64))


def plan(rows, batch_size=8, epochs=3, seed=42):
    return Plan(rows, batch_size, epochs, seed)


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**31 - 1))
def test_each_epoch_holds_every_row_once_in_steps_of_the_batch_size(rows, batch_size, seed):
    made = plan(rows, batch_size, seed=seed)
    assert made.total_steps == 3 * -(-rows // batch_size)
    for epoch in range(3):
        steps = [made.step(epoch * made.steps_per_epoch + place) for place in range(made.steps_per_epoch)]
        assert sorted(row for step in steps for row in step) == list(range(rows))
        assert all(len(step) == batch_size for step in steps[:-1])


def first_fit_decreasing(widths, max_tokens):
    """The textbook's loop, every micro-batch looked at."""
    packed = []
    for row in sorted(range(len(widths)), key=lambda row: (-widths[row], row)):
        for rows in packed:
            if sum(widths[other] for other in rows) + widths[row] <= max_tokens:
                rows.append(row)
                break
        else:
            packed.append([row])
    return tuple(map(tuple, packed))


@given(widths=WIDTHS, max_tokens=st.integers(1, 300))
def test_rows_go_where_first_fit_decreasing_puts_them(widths, max_tokens):
    packed = pack(range(len(widths)), widths, max_tokens)
    assert packed == first_fit_decreasing(widths.tolist(), max_tokens)
    assert all(widths[list(rows)].sum() <= max_tokens or len(rows) == 1 for rows in packed)


def test_a_hundred_thousand_rows_pack_in_seconds():
    widths = np.random.default_rng(0).integers(50, 2000, 100_000)
    began = process_time()
    packed = pack(range(len(widths)), widths, 4096)
    assert process_time() - began < 10
    assert sum(map(len, packed)) == 100_000
    assert widths.sum() / (4096 * len(packed)) > 0.99, "hardly any room is left over"


def test_nothing_packs_into_nothing():
    assert pack([], np.array([], np.int64), 100) == ()


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(permutation(30, seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}
    assert len(orders) == 6


def test_the_order_is_the_same_on_every_machine_and_version():
    assert permutation(10, 42, 0).tolist() == [4, 8, 1, 9, 3, 6, 0, 7, 2, 5]


def test_the_first_epoch_holds_every_row_in_the_company_in_which_it_is_trained():
    made = plan(30, batch_size=7)
    assert made.first_epoch() == tuple(made.step(step) for step in range(5))
