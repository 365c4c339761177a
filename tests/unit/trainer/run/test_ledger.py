"""Steps whose gradient is not finite: skipped where they happen, told one step late; too many of them end the run."""

from __future__ import annotations

import json
from threading import Event

import pytest
import torch

from finetune_api.failures import FailureCode
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.run.late import Late
from finetune_trainer.run.ledger import Entry, Ledger
from finetune_trainer.run.telling import Teller
from finetune_trainer.step.fitting import Fitter
from runs import newest_state, prepared, run
from training import metrics_rows


class Told:
    """What a teller told last, by field."""

    def __init__(self):
        self.fields = {}

    def __call__(self, **fields):
        self.fields |= fields


@pytest.fixture
def ledger(config, tmp_path):
    told = Told()
    teller = Teller(told, 100, 10)
    with MetricsLog(tmp_path / "metrics.jsonl", 0) as metrics:
        made = Ledger(config, 100, metrics, teller, torch.arange(10, 50).numpy())
        made.told, made.path = told, tmp_path / "metrics.jsonl"
        yield made


def entry(step, norm=1.0):
    late = Late.of(("loss", "grad_norm"), torch.tensor([0.5, norm], dtype=torch.float64))
    return Entry(step, 10, 10 * step, (3, 1), late, {"learning_rate": 0.1})


def written(ledger):
    return [json.loads(line)["step"] for line in ledger.path.read_text().splitlines()]


def test_a_step_is_written_when_the_next_one_is_booked_or_everything_is_settled(ledger):
    ledger.book(entry(1))
    assert written(ledger) == []
    ledger.book(entry(2))
    assert written(ledger) == [1]
    assert ledger.told.fields["progress"].step == 1
    ledger.settle()
    ledger.settle()
    assert written(ledger) == [1, 2]
    assert ledger.told.fields["progress"].step == 2


NAN = float("nan")


@pytest.mark.parametrize(
    ("norms", "last"),
    [
        ([1, NAN, NAN, 1, NAN, NAN, 1], None),
        ([1, NAN, float("inf"), NAN, 1], 4),
        ([1] + [NAN, 1] * 9, None),
        ([1] + [NAN, 1] * 10, 20),
    ],
    ids=["two in a row", "three in a row", "nine in all", "ten in all"],
)
def test_three_skipped_in_a_row_or_ten_in_all_are_too_many(ledger, norms, last):
    for step, norm in enumerate(norms, start=1):
        ledger.book(entry(step, norm))
        if ledger.diverged is not None:
            break
    ledger.settle()
    assert ledger.account.skipped == sum(norm != 1 for norm in norms)
    if last is None:
        ledger.check()
        return
    with pytest.raises(RunFailed) as caught:
        ledger.check()
    failure = caught.value.failure
    assert (failure.code, failure.args["step"], failure.exit_code) == (FailureCode.DIVERGED, str(last), 15)


def test_the_advice_has_the_numbers(ledger):
    for step, norm in enumerate([1.0, 2.0, 30.0, NAN, NAN, NAN], start=1):
        ledger.book(entry(step, norm))
    ledger.settle()
    assert str(ledger.diverged) == (
        "the gradients of 3 steps were not finite, the last at step 6: lower learningRate (it is 0.01, try 0.003);"
        " the 3 finite gradients before had norms of 2 as a rule and 30 at most, with maxGradNorm 1, under DPO with"
        " beta 0.1"
    )


def test_without_a_finite_gradient_at_all_the_learning_rate_is_not_blamed(ledger):
    for step in (1, 2, 3):
        ledger.book(entry(step, NAN))
    ledger.settle()
    assert ledger.diverged.failure.code is FailureCode.NEVER_FINITE
    assert "so it is not learningRate" in str(ledger.diverged)
    assert "lines 11, 13 of trainingFile" in str(ledger.diverged)


class Chosen(set):
    """Numbers of steps, and how many were made."""

    done = 0


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the gradients of chosen optimiser steps (from 0) not finite."""
    chosen = Chosen()
    real = Fitter.gradients

    def gradients(fitter, *rest):
        sums = real(fitter, *rest)
        if chosen.done in chosen:
            next(iter(fitter.policy.trainable.values())).grad.fill_(torch.nan)
        chosen.done += 1
        return sums

    monkeypatch.setattr(Fitter, "gradients", gradients)
    return chosen


def test_a_skipped_step_is_told_with_its_line_of_metrics(config, poisoned, tmp_path):
    poisoned.update({4, 7})
    report = run(prepared(config))
    (skipped,) = (w for w in report.warnings if w.reason == "StepSkipped")
    assert skipped.step == 8
    assert skipped.message.startswith("2 steps changed nothing")
    rows = [row for row in metrics_rows(tmp_path / "out" / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert [row["step"] for row in rows if "train/grad_norm" not in row] == [5, 8]


@pytest.mark.parametrize("period", [0, 3600], ids=["saved after each step", "saved at the end alone"])
@pytest.mark.parametrize(
    ("bad", "last"), [({5, 6, 7}, 8), (set(range(1, 21, 2)), 20)], ids=["three in a row", "ten in all"]
)
def test_a_run_that_diverges_saves_its_good_state_and_ends(config, poisoned, bad, last, period):
    """Known one step late, it may have made one good step more: the state is good either way."""
    poisoned.update(bad)
    saving = config.checkpointing.model_copy(update={"recovery_period_seconds": period})
    config = prepared(config.model_copy(update={"checkpointing": saving}))
    with pytest.raises(RunFailed, match=f"not finite, the last at step {last}: lower learningRate") as caught:
        run(config)
    assert caught.value.failure.exit_code == 15
    saved = newest_state(config)
    assert saved in (last, last + 1)
    poisoned.clear()
    assert run(config).resumed_from_step == saved


def test_diverged_from_the_first_step_on_it_still_saves(config, poisoned):
    poisoned.update({0, 1, 2})
    with pytest.raises(RunFailed, match="no gradient was finite from step 1 to 3"):
        run(prepared(config))
    assert (Layout.of(config).recovery / "step-3").is_dir()
    poisoned.clear()
    assert run(config).resumed_from_step == 3


def test_asked_to_stop_when_it_has_diverged_a_run_says_that_it_diverged(config, poisoned):
    """Its last step is not known yet when the stop comes; an undisturbed run would have failed one step later."""

    class AfterFourSteps(Event):
        def is_set(self):
            return poisoned.done == 4

    poisoned.update({1, 2, 3})
    hourly = config.checkpointing.model_copy(update={"recovery_period_seconds": 3600})
    without = config.evaluation.model_copy(update={"n_evals": 0})
    config = prepared(config.model_copy(update={"checkpointing": hourly, "evaluation": without}))
    with pytest.raises(RunFailed) as caught:
        run(config, AfterFourSteps())
    assert caught.value.failure.code is FailureCode.DIVERGED
    assert newest_state(config) == 4
