"""The train step of a job: from prepared data and starting weights to published checkpoints."""

from __future__ import annotations

from contextlib import ExitStack, closing
from threading import Event
from time import monotonic

import torch
from transformers.utils.logging import disable_progress_bar

from finetune_api.advice import beta_warning
from finetune_api.report import FailureCode, Report, WarningCode
from finetune_api.status import CheckpointType
from finetune_api.trainer import TrainerConfig
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.files import writing_to
from finetune_trainer.layout import Layout, claimed
from finetune_trainer.out.card import MERGE_ERROR
from finetune_trainer.out.checkpoint import RecoveryState, RecoveryStore
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.out.progress import Reporter
from finetune_trainer.out.publish import Publisher, tidy
from finetune_trainer.run.health import few_steps
from finetune_trainer.run.loop import Loop
from finetune_trainer.run.merging import Merging, lossy
from finetune_trainer.run.recovery import metrics_position, position_of, recipe_of, restore, snapshot
from finetune_trainer.run.start import Work, identity_of, load_work, plan_of, verified
from finetune_trainer.run.telling import Teller
from finetune_trainer.step.memory import weights_fit

OF_THE_PROCESS = frozenset({"job_uid", "pod_uid", "stage", "finished", "failure"})
"""Fields of a report that belong to the process that made it."""
STATE_STANDS = frozenset({FailureCode.STOPPED, FailureCode.DIVERGED, FailureCode.NEVER_FINITE})
"""Ends that leave the last completed step worth saving."""


def train(config: TrainerConfig, reporter: Reporter, stopping: Event) -> None:
    """Train and publish, or go on with what an earlier process of the same job left.

    Args:
        stopping: once set, the unfinished step is dropped, the last completed one saved, and the run ends.

    Raises:
        RunFailed: any cause that ends the run early, Stopped among them.
    """
    layout = Layout.of(config)
    if _finished_before(config, layout, reporter):
        return
    torch.use_deterministic_algorithms(config.gpus == 0)
    disable_progress_bar()
    prepared = verified(layout)
    plan = plan_of(config, prepared)
    teller = Teller(reporter.update, plan.total_steps, plan.steps_per_epoch)
    if beta := beta_warning(config.training_method):
        teller.warn(*beta)
    for warning in prepared.warnings:
        teller.warn(WarningCode(warning.reason), warning.message)
    if short := few_steps(plan.total_steps, config.batch_size, prepared.rows):
        teller.warn(short.code, short.message, 0)
    with ExitStack() as open_files:
        with writing_to(layout.uri):
            store = RecoveryStore(layout.recovery, identity_of(config, prepared), teller.saved)
            open_files.enter_context(closing(store))
            state = _newest(store, teller)
        work = load_work(config, layout, prepared, recipe_of(state), teller, lambda: _go_on(stopping, 0))
        open_files.enter_context(writing_to(layout.uri))
        open_files.enter_context(weights_fit(work.policy.device))
        teller.published(work.publisher.forget_after(state.step if state else 0, position_of(state).best.step))
        with MetricsLog(layout.metrics, metrics_position(state)) as metrics:
            loop = Loop(config, work, metrics, teller, lambda: _go_on(stopping, loop.position.step))
            if state:
                restore(loop, state)
            _steps(loop, store, work.publisher, config.checkpointing.recovery_period_seconds)
        reporter.update(publishing=True)
        loop.publish(CheckpointType.FINAL)
        if work.merging:
            _publish_merged(work, work.merging, teller)
        reporter.update(output=work.publisher.output())
        work.publisher.conclude(reporter.report)


def _publish_merged(work: Work, merging: Merging, teller: Teller) -> None:
    """The final adapter merged into its base; the policy's memory is needed for that."""
    work.policy.release()
    checkpoints = work.publisher.publish_merged(merging.save)
    teller.published(checkpoints)
    if warning := lossy(checkpoints[-1].metrics[MERGE_ERROR]):
        teller.warn(*warning, checkpoints[-1].step)


def _finished_before(config: TrainerConfig, layout: Layout, reporter: Reporter) -> bool:
    """Whether a process of this job published everything and only its exit was lost; its report is told again."""
    manifest = claimed(layout, config.job)
    if manifest is None or manifest.last is None:
        return False
    with writing_to(layout.uri):
        tidy(layout, manifest.last)
    reporter.update(**{name: getattr(manifest.last, name) for name in Report.model_fields.keys() - OF_THE_PROCESS})
    return True


def _go_on(stopping: Event, step: int) -> None:
    """Raises: RunFailed: Stopped: the run was asked to end after `step`."""
    if stopping.is_set():
        raise failed(FailureCode.STOPPED, step=step)


def _newest(store: RecoveryStore, teller: Teller) -> RecoveryState | None:
    """The state to go on from."""
    state, skipped = store.newest()
    for sentence in skipped:
        teller.warn(WarningCode.RECOVERY_SKIPPED, sentence)
    teller.resumed(state.step if state else 0)
    return state


def _steps(loop: Loop, store: RecoveryStore, publisher: Publisher, period: int) -> None:
    """Run the loop, saving its state every `period` seconds, at the end, and when it is stopped."""
    saved, since = loop.position, monotonic()

    def save() -> None:
        nonlocal saved, since
        if loop.position != saved:
            store.save(snapshot(loop))
            saved, since = loop.position, monotonic()

    def after_each() -> None:
        is_due = monotonic() - since >= period
        if is_due:
            save()
            loop.ledger.check()
        if is_due or loop.position.best.step == loop.position.step:
            publisher.remove_superseded(store.steps())

    try:
        loop.run(after_each)
    except RunFailed as end:
        loop.ledger.settle()
        if end.failure.code in STATE_STANDS and loop.position.step > 0:
            save()
        store.wait()
        loop.ledger.check()
        raise
    save()
    store.wait()
