"""How what the pods tell becomes the list of checkpoints in the status."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from builders import JOB_UID, NOW_TEXT, make_checkpoint, make_child, make_job, make_pod, make_progress, report_for
from finetune_api.estimate import Estimate
from finetune_api.history import History, Series
from finetune_api.report import Report
from finetune_api.status import CheckpointType, JobStatus, JobWarning, Resolved, TrackingStatus
from finetune_api.trainer import Stage
from finetune_operator.plan.told import MAX_TOLD_BYTES, last_word, retold

INTERMEDIATE, FINAL, MERGED = CheckpointType.INTERMEDIATE, CheckpointType.FINAL, CheckpointType.FINAL_MERGED
POD = make_pod(make_child(make_job(), Stage.TRAIN))


def after(status, *checkpoints):
    return retold(status, POD, report_for(POD, Stage.TRAIN, checkpoints=checkpoints), NOW_TEXT, 2).checkpoints


def test_merged_weights_stand_beside_the_final_adapter_of_the_same_step():
    final = make_checkpoint(20, FINAL)
    merged = final.model_copy(update={"type": MERGED, "uri": "pvc://finetune-models/out/team/tune/merged"})
    told = after(JobStatus(checkpoints=(make_checkpoint(10, INTERMEDIATE),)), final, merged)
    assert [(c.step, c.type) for c in told] == [(10, INTERMEDIATE), (20, FINAL), (20, MERGED)]


def test_the_last_checkpoint_that_early_stopping_left_is_the_final_one():
    assert [
        c.type for c in after(JobStatus(checkpoints=(make_checkpoint(20, INTERMEDIATE),)), make_checkpoint(20))
    ] == [FINAL]


def test_only_one_checkpoint_is_the_best():
    best = make_checkpoint(10, INTERMEDIATE).model_copy(update={"best": True})
    assert [c.best for c in after(JobStatus(checkpoints=(best,)), make_checkpoint(20))] == [True, False]
    better = make_checkpoint(20).model_copy(update={"best": True})
    assert [c.best for c in after(JobStatus(checkpoints=(best,)), better)] == [False, True]


def test_a_former_best_leaves_the_status_unless_the_job_asked_for_it():
    asked, extra = (make_checkpoint(step, INTERMEDIATE).model_copy(update={"best": step == 15}) for step in (10, 15))
    better = make_checkpoint(18, INTERMEDIATE).model_copy(update={"best": True})
    before = JobStatus(checkpoints=(asked, extra), resolved=Resolved(total_steps=20))
    assert [(c.step, c.best) for c in after(before)] == [(10, False), (15, True)]
    assert [(c.step, c.best) for c in after(before, better)] == [(10, False), (18, True)]
    final = make_checkpoint(17, FINAL)
    assert [c.step for c in after(before, final)] == [10, 15, 17], "after an early stop the final one lies anywhere"


def test_the_estimate_of_the_prepare_step_stays():
    estimate = Estimate(train_tokens=1000, price=0.5, fits=True)
    prepared = retold(JobStatus(), POD, report_for(POD, Stage.PREPARE, estimate=estimate), NOW_TEXT, 2)
    assert prepared.estimate == estimate
    assert heard(prepared, NOW_TEXT, progress=make_progress(1)).estimate == estimate


def curve(*steps):
    return History(series=(Series(name="train/loss", points=tuple((step, 1.0) for step in steps)),))


def heard(status, at, **fields):
    return retold(status, POD, report_for(POD, Stage.TRAIN, **fields), at, 2)


def test_the_history_is_taken_up_at_most_once_a_minute_and_with_the_last_word():
    first = heard(JobStatus(), "2026-01-02T03:04:05Z", progress=make_progress(1), history=curve(1))
    assert first.history == curve(1), "the first curve waits for nothing"
    same_minute = heard(first, "2026-01-02T03:04:59Z", progress=make_progress(2), history=curve(1, 2))
    assert (same_minute.history, same_minute.progress.step) == (curve(1), 2)
    next_minute = heard(same_minute, "2026-01-02T03:05:01Z", progress=make_progress(3), history=curve(1, 2, 3))
    assert next_minute.history == curve(1, 2, 3)
    told = report_for(POD, Stage.TRAIN, progress=make_progress(4), history=curve(4), finished=True)
    for_ever_last = retold(next_minute, POD, told, "2026-01-02T03:05:02Z", 2)
    assert for_ever_last.history == curve(1, 2, 3), "a pod that runs may call each of its words the last"
    last = retold(next_minute, replace(POD, ended=NOW_TEXT), told, "2026-01-02T03:05:02Z", 2)
    assert last.history == curve(1, 2, 3, 4), "another pod's points stay"


def test_where_a_run_can_be_looked_at_stays_when_a_cut_report_leaves_it_out():
    tracking = TrackingStatus(wandb_url="https://wandb.ai/team/support/runs/ft-1")
    told = heard(JobStatus(), NOW_TEXT, tracking=tracking)
    assert heard(told, NOW_TEXT, progress=make_progress(2)).tracking == tracking


def test_a_report_that_would_swell_the_status_gives_figures_only():
    """Every name and text as long as it may be, and new checkpoints in each report."""

    def hostile(round_):
        text = "\u00fc" * 4096
        values = {f"{'m' * 60}{number:02d}": 1.0 for number in range(32)}
        fields = {"uri": f"{round_}{text[:4000]}", "metrics": values, "step": round_}
        checkpoints = (make_checkpoint(round_, INTERMEDIATE).model_copy(update=fields),)
        warnings = (JobWarning(reason="R", message=text),)
        return {"progress": make_progress(round_), "checkpoints": checkpoints, "warnings": warnings}

    status = JobStatus()
    for round_ in range(40):
        status = heard(status, NOW_TEXT, **hostile(round_))
        assert len(json.dumps(status.to_json())) < 1.1 * MAX_TOLD_BYTES
    assert status.progress.step == 39
    assert 1 < len(status.checkpoints) < 34


def test_a_warning_cannot_steer_a_terminal():
    warning = JobWarning(reason="R", message="loss\x1b[2Jis\nfine \u202eabc")
    assert heard(JobStatus(), NOW_TEXT, warnings=(warning,)).warnings[0].message == "loss [2Jis fine  abc"


@pytest.mark.parametrize(
    ("job_uid", "pod_uid", "believed"),
    [
        (JOB_UID, POD.uid, True),
        (JOB_UID, None, True),
        ("", POD.uid, True),
        ("", None, False),
        ("another", POD.uid, False),
        (JOB_UID, "another", False),
    ],
)
def test_a_last_word_is_believed_from_whom_it_is_about(job_uid, pod_uid, believed):
    word = Report(job_uid=job_uid, pod_uid=pod_uid, stage=Stage.TRAIN)
    pod = replace(POD, last_word=word.model_dump_json())
    assert (last_word(pod, JOB_UID) == word) is believed
