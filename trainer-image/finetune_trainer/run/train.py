"""The train step of a job: from prepared data and starting weights to published checkpoints."""

from __future__ import annotations

from contextlib import ExitStack, closing
from threading import Event
from time import monotonic

import torch
from transformers.utils.logging import disable_progress_bar

from finetune_api.advice import beta_warning
from finetune_api.failures import Failure, FailureCode
from finetune_api.report import Report, WarningCode
from finetune_api.status import CheckpointType, OutputStatus
from finetune_api.trainer import TrainerConfig
from finetune_trainer.data.prepared import Prepared
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.files import writing_to
from finetune_trainer.layout import Layout, concluded
from finetune_trainer.out.card import MERGE_ERROR
from finetune_trainer.out.checkpoint import RecoveryState, RecoveryStore
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.out.progress import Reporter
from finetune_trainer.out.publish import Publisher, tidy
from finetune_trainer.out.report import write_report
from finetune_trainer.run.health import few_steps
from finetune_trainer.run.loop import Loop, Position
from finetune_trainer.run.merging import Merging, lossy
from finetune_trainer.run.recovery import metrics_position, position_of, recipe_of, restore, shared, snapshot
from finetune_trainer.run.reporting import facts_of
from finetune_trainer.run.start import Work, identity_of, load_work, plan_of, verified
from finetune_trainer.run.telling import Teller
from finetune_trainer.step.memory import weights_fit
from finetune_trainer.step.model import Policy
from finetune_trainer.step.ranks import ALONE, Ranks

OF_THE_PROCESS = frozenset({"job_uid", "pod_uid", "stage", "finished", "failure"})
"""Fields of a report that belong to the process that made it."""
STATE_STANDS = frozenset({FailureCode.STOPPED, FailureCode.DIVERGED, FailureCode.NEVER_FINITE})
"""Ends that leave the last completed step worth saving."""
WORTH_A_PAGE = STATE_STANDS - {FailureCode.STOPPED}
"""Ends of which the curves tell more than a sentence can."""


def train(config: TrainerConfig, reporter: Reporter, stopping: Event, ranks: Ranks = ALONE) -> None:
    """Train and publish, or go on with what an earlier process of the same job left.

    Args:
        stopping: once set, the unfinished step is dropped, the last completed one saved, and the run ends.
        ranks: the processes that train as one; only the first writes.

    Raises:
        RunFailed: any cause that ends the run early, Stopped among them.
        PeerLost: another of the processes has ended.
    """
    layout = Layout.of(config)
    if ranks.any(ranks.first and _finished_before(config, layout, reporter)):
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
            store = RecoveryStore(layout.recovery, identity_of(config, prepared), teller.saved) if ranks.first else None
            if store is not None:
                open_files.enter_context(closing(store))
            state = shared(_newest(store, teller) if store is not None else None, ranks)
        teller.resumed(state.step if state else 0)
        work = load_work(config, layout, prepared, recipe_of(state), teller, lambda: _go_on(ranks, stopping, 0), ranks)
        open_files.enter_context(writing_to(layout.uri))
        open_files.enter_context(weights_fit(work.policy.device))
        if work.publisher is not None:
            teller.published(work.publisher.forget_after(state.step if state else 0, position_of(state).best.step))
        with MetricsLog(layout.metrics if ranks.first else None, metrics_position(state)) as metrics:
            loop = Loop(config, work, metrics, teller, lambda: _go_on(ranks, stopping, loop.position.step))
            if state:
                restore(loop, state)
            try:
                _steps(loop, store, work.publisher, config.checkpointing.recovery_period_seconds, ranks)
            except RunFailed as end:
                if end.failure.code in WORTH_A_PAGE:
                    _report(work, prepared, reporter, loop.position, end.failure)
                raise
        reporter.update(publishing=True)
        loop.publish(CheckpointType.FINAL)
        if work.merging and work.publisher is not None:
            _publish_merged(work.policy, work.publisher, work.merging, teller)
        _report(work, prepared, reporter, loop.position)
        if work.publisher is not None:
            work.publisher.conclude(reporter.report)
        ranks.wait()


def _report(
    work: Work, prepared: Prepared, reporter: Reporter, position: Position, failure: Failure | None = None
) -> None:
    """Say where the results lie, and leave the page about the run beside them."""
    if (publisher := work.publisher) is None:
        return
    where = publisher.output() if failure is None else OutputStatus(report_uri=publisher.report_uri)
    reporter.update(output=where)
    last = reporter.report.model_copy(update={"failure": failure})
    with writing_to(publisher.layout.uri):
        write_report(publisher.layout.output, facts_of(publisher, prepared, last, work.samples, position))


def _publish_merged(policy: Policy, publisher: Publisher, merging: Merging, teller: Teller) -> None:
    """The final adapter merged into its base; the policy's memory is needed for that."""
    policy.release()
    checkpoints = publisher.publish_merged(merging.save)
    teller.published(checkpoints)
    if warning := lossy(checkpoints[-1].metrics[MERGE_ERROR]):
        teller.warn(*warning, checkpoints[-1].step)


def _finished_before(config: TrainerConfig, layout: Layout, reporter: Reporter) -> bool:
    """Whether a process of this job published everything and only its exit was lost; its report is told again."""
    last = concluded(layout, config.job)
    if last is None:
        return False
    with writing_to(layout.uri):
        tidy(layout, last)
    reporter.update(**{name: getattr(last, name) for name in Report.model_fields.keys() - OF_THE_PROCESS})
    return True


def _go_on(ranks: Ranks, stopping: Event, step: int) -> None:
    """Raises: RunFailed: Stopped: one of the processes was asked to end after `step`."""
    if ranks.any(stopping.is_set()):
        raise failed(FailureCode.STOPPED, step=step)


def _newest(store: RecoveryStore, teller: Teller) -> RecoveryState | None:
    """The state to go on from."""
    state, skipped = store.newest()
    for sentence in skipped:
        teller.warn(WarningCode.RECOVERY_SKIPPED, sentence)
    return state


def _steps(loop: Loop, store: RecoveryStore | None, publisher: Publisher | None, period: int, ranks: Ranks) -> None:
    """Run the loop, saving its state every `period` seconds, at the end, and when it is stopped.

    All processes take part in a state at the same time; the one that has a store writes it.
    """
    saved, since = loop.position, monotonic()

    def save() -> None:
        nonlocal saved, since
        if loop.position != saved:
            state = snapshot(loop)
            if store is not None:
                store.save(state)
            saved, since = loop.position, monotonic()

    def after_each() -> None:
        is_due = ranks.any(ranks.first and monotonic() - since >= period)
        if is_due:
            save()
            loop.ledger.check()
        is_best = loop.position.best.step == loop.position.step
        if publisher is not None and store is not None and (is_due or is_best):
            publisher.remove_superseded(store.steps())

    try:
        loop.run(after_each)
    except RunFailed as end:
        loop.ledger.settle()
        if end.failure.code in STATE_STANDS and loop.position.step > 0:
            save()
        if store is not None:
            store.wait()
        loop.ledger.check()
        raise
    save()
    if store is not None:
        store.wait()
