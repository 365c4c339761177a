"""What a run tells about itself: numbers as people read them."""

from __future__ import annotations

from finetune_api.evaluation import EvaluationMetric
from finetune_api.report import EarlyStop
from finetune_api.status import TrackingStatus
from finetune_trainer.run import telling
from finetune_trainer.run.telling import Teller


def progress_of(monkeypatch, *, seconds, tell=lambda teller: teller.begins(1, 100)):
    told = {}
    monkeypatch.setattr(telling, "monotonic", lambda: 5.0)
    teller = Teller(lambda **fields: told.update(fields), 30, 3)
    for number in range(len(seconds)):
        teller.speed(100, 5.0 + sum(seconds[: number + 1]))
    tell(teller)
    return told


def test_epoch_and_speed_are_rounded(monkeypatch):
    progress = progress_of(monkeypatch, seconds=[0.3])["progress"]
    assert (progress.display, progress.epoch, progress.tokens_per_second) == ("1/30", 0.333, 333.3)
    assert progress.estimated_remaining_seconds == 9


def test_an_early_end_leaves_nothing_to_wait_for_and_stays_where_it_was(monkeypatch):
    stop = EarlyStop(metric=EvaluationMetric.LOSS, step=12, evaluations=2, best_step=6, best_value=0.5)
    told = progress_of(monkeypatch, seconds=[0.3], tell=lambda teller: teller.stopped_early(stop, 400))
    progress = told["progress"]
    assert (progress.display, progress.total_steps, progress.percentage, progress.tokens) == ("12/30", 30, 40, 400)
    assert progress.estimated_remaining_seconds == 0
    assert told["early_stop"] == stop


def test_where_a_run_can_be_looked_at_is_told_beside_the_rest(monkeypatch):
    status = TrackingStatus(tensorboard_uri="pvc://claim/out/tensorboard")
    assert progress_of(monkeypatch, seconds=[], tell=lambda teller: teller.tracked(status)) == {"tracking": status}
