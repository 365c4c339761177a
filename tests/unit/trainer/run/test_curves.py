"""The sketch of a run stays small and tells its whole course."""

from __future__ import annotations

from itertools import pairwise

from finetune_api.history import MAX_POINTS
from finetune_trainer.run.curves import Curves


def test_a_long_run_leaves_few_points_of_each_curve_and_of_nothing_else():
    curves = Curves()
    for step in range(1, 20_001):
        curves.add(step, "train", {"loss": 1 / step, "tokens": step, "gradNorm": 1})
        if step % 5000 == 0:
            curves.add(step, "eval", {"loss": 2 / step})
    told = {series.name: series.points for series in curves.history().series}
    assert list(told) == ["train/loss", "train/gradNorm", "eval/loss"]
    assert [step for step, _ in told["eval/loss"]] == [5000, 10_000, 15_000, 20_000]
    loss = told["train/loss"]
    assert MAX_POINTS / 2 <= len(loss) <= MAX_POINTS
    assert loss[-1] == (20_000, 1 / 20_000)
    assert max(b - a for (a, _), (b, _) in pairwise(loss)) <= 2 * 20_000 / MAX_POINTS


def test_there_is_nothing_to_tell_before_the_first_step():
    assert Curves().history().series == ()
