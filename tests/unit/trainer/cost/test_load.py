"""Lengths of rows as micro-batches hold them."""

import numpy as np

from finetune_trainer.cost.load import Load, Rows
from finetune_trainer.data.tokens import CacheKind, Conversation, Pair, open_cache, write_cache


def tokens(count):
    return np.arange(count, dtype=np.int32)


def rows_of(folder, kind, rows):
    write_cache(folder / "cache", kind, rows)
    return Rows.of(open_cache(folder / "cache"))


def pairs(folder, *lengths):
    found = [Pair(10 + i, *map(tokens, row)) for i, row in enumerate(lengths)]
    return rows_of(folder, CacheKind.PREFERENCE, found)


def test_a_prompt_counts_once_and_is_seen_by_both_answers(tmp_path):
    rows = pairs(tmp_path, (10, 3, 2), (4, 1, 6))
    assert rows.tokens == 15 + 11
    assert rows.meetings == 13**2 + 2 * 12 + 5**2 + 6 * 10
    assert rows.targets.tolist() == [5, 7]


def test_of_a_conversation_targets_are_counted(tmp_path):
    found = [Conversation(1, tokens(5), np.array([0, 0, 1, 1, 1], bool)), Conversation(2, tokens(9), np.arange(9) > 7)]
    rows = rows_of(tmp_path, CacheKind.CONVERSATION, found)
    assert (rows.tokens, rows.meetings, rows.targets.tolist()) == (14, 25 + 81, [3, 1])
    assert rows.alone(rows.longest) == Load(9, 1)
    assert rows.packed(100, 8) == Load(14, 4)


def test_alone_a_pair_is_its_longer_sequence(tmp_path):
    rows = pairs(tmp_path, (10, 3, 2), (4, 1, 12))
    assert rows.lines[rows.longest] == 11
    assert rows.alone(rows.longest) == Load(16, 12)


def test_packed_a_pair_has_its_prompt_once_and_keys_of_it_twice(tmp_path):
    rows = pairs(tmp_path, (10, 3, 2))
    assert rows.packed(1, 1) == Load(15, 5, 12, 24)


def test_the_widest_rows_fill_a_micro_batch(tmp_path):
    rows = pairs(tmp_path, (10, 3, 2), *[(3, 1, 1)] * 4)
    assert rows.packed(100, 2).tokens == 20, "no more rows than a step has"
    assert rows.packed(100, 99).tokens == 35, "no more than there are"
    assert rows.packed(27, 99).tokens == 27, "narrower rows fill what is left"
    assert rows.packed(1, 99).tokens == 15, "one row at the least"
