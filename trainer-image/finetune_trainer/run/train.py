"""The train step of a job: from prepared data and starting weights to published checkpoints."""

from __future__ import annotations

from contextlib import ExitStack, closing, nullcontext, suppress
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
from finetune_trainer.out.checkpoint import RecoveryStore, SavedState, Writers
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.out.progress import Reporter
from finetune_trainer.out.publish import Publisher, tidy
from finetune_trainer.out.report import write_report
from finetune_trainer.push import push
from finetune_trainer.run.health import few_steps
from finetune_trainer.run.loop import Loop, Position
from finetune_trainer.run.merging import Merging, lossy
from finetune_trainer.run.recovery import metrics_position, position_of, recipe_of, restore, shared, snapshot
from finetune_trainer.run.reporting import facts_of
from finetune_trainer.run.start import Work, identity_of, load_work, plan_of, verified
from finetune_trainer.run.telling import Teller
from finetune_trainer.run.tracked import tracked
from finetune_trainer.step.memory import weights_fit
from finetune_trainer.step.model import Policy
from finetune_trainer.step.ranks import ALONE, Ranks
from finetune_trainer.step.sharding import are_spread

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
    prepared = verified(layout, ranks)
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
            store = _store(config, layout, identity_of(config, prepared), teller, ranks)
            if store is not None:
                open_files.enter_context(closing(store))
            state = shared(_newest(store, teller) if store is not None and ranks.first else None, layout, ranks)
        teller.resumed(state.step if state else 0)
        work = load_work(config, layout, prepared, recipe_of(state), teller, lambda: _go_on(ranks, stopping, 0), ranks)
        open_files.enter_context(writing_to(layout.uri))
        open_files.enter_context(weights_fit(work.policy.device))
        if work.publisher is not None:
            teller.published(work.publisher.forget_after(state.step if state else 0, position_of(state).best.step))
        with (
            MetricsLog(layout.metrics if ranks.first else None, metrics_position(state), layout.mirror) as metrics,
            tracked(config, layout, work.publisher.card, teller) if work.publisher else nullcontext(),
        ):
            loop = Loop(config, work, metrics, teller, lambda: _go_on(ranks, stopping, loop.position.step))
            if state:
                restore(loop, state, layout, ranks)
            try:
                _steps(loop, store, work.publisher, config.checkpointing.recovery_period_seconds, ranks)
            except RunFailed as end:
                if end.failure.code in WORTH_A_PAGE and work.publisher is not None:
                    _leave_page_of_failure(work, work.publisher, prepared, reporter, loop.position, end.failure)
                raise
        reporter.update(publishing=True)
        loop.publish(CheckpointType.FINAL)
        if work.publisher is not None:
            _conclude(work, work.publisher, prepared, teller, reporter, loop.position)
        ranks.wait()


def _conclude(
    work: Work, publisher: Publisher, prepared: Prepared, teller: Teller, reporter: Reporter, position: Position
) -> None:
    """What follows the final checkpoint: the merged weights, the Hub, the page, and the word that all is there."""
    reporter.update(output=publisher.weights_output())
    if work.merging:
        _publish_merged(work.policy, publisher, work.merging, teller)
    pushed = push(publisher.config, publisher.weights, teller.step)
    reporter.update(output=publisher.output().model_copy(update={"hf_url": pushed}))
    _leave_page(work, publisher, prepared, reporter.report, position)
    publisher.conclude(reporter.report)


def _leave_page_of_failure(
    work: Work, publisher: Publisher, prepared: Prepared, reporter: Reporter, position: Position, failure: Failure
) -> None:
    """The page about a run that is worth looking at though it failed; that it cannot be written is not why."""
    with suppress(RunFailed):
        where = OutputStatus(report_uri=publisher.report_uri)
        told = reporter.report.model_copy(update={"failure": failure, "output": where})
        _leave_page(work, publisher, prepared, told, position)
        reporter.update(output=where)


def _leave_page(work: Work, publisher: Publisher, prepared: Prepared, told: Report, position: Position) -> None:
    """The page about the run, beside its results."""
    layout = publisher.layout
    with writing_to(layout.uri):
        for file in write_report(layout.output, facts_of(publisher, prepared, told, work.samples, position)):
            layout.mirror.put_file(file)


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


def _store(config: TrainerConfig, layout: Layout, identity: str, teller: Teller, ranks: Ranks) -> RecoveryStore | None:
    """Where states are, on each process that has something of them to write.

    What a killed process has left half done is cleared away, by the first one.
    """
    spread = are_spread(config.training_kind, ranks)
    if not (spread or ranks.first):
        return None
    if ranks.first:
        layout.output.mkdir(parents=True, exist_ok=True)
        layout.clear()
    writers = Writers(ranks.rank, ranks.size, ranks.exchange_behind) if spread else Writers()
    return RecoveryStore(layout.recovery, identity, teller.saved, layout.mirror, writers)


def _newest(store: RecoveryStore, teller: Teller) -> SavedState | None:
    """The state to go on from."""
    state, skipped = store.newest()
    for sentence in skipped:
        teller.warn(WarningCode.RECOVERY_SKIPPED, sentence)
    return state


def _steps(loop: Loop, store: RecoveryStore | None, publisher: Publisher | None, period: int, ranks: Ranks) -> None:
    """Run the loop, saving its state every `period` seconds, at the end, and when it is stopped.

    All processes take part in a state at the same time; those that have a store write it.
    """
    saved, since = loop.position, monotonic()

    def save() -> None:
        nonlocal saved, since
        if loop.position != saved:
            state = snapshot(loop, ranks)
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
