"""Which trackers follow a run, and what its status hears of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from finetune_api.names import TENSORBOARD_DIRECTORY
from finetune_api.report import WarningCode
from finetune_api.trainer import TrainerConfig
from finetune_trainer.failures import RunFailed
from finetune_trainer.layout import Layout
from finetune_trainer.out.card import Card
from finetune_trainer.out.trackers import Trackers
from finetune_trainer.out.tracking import Task
from finetune_trainer.run.telling import Teller


@contextmanager
def tracked(config: TrainerConfig, layout: Layout, card: Card, teller: Teller) -> Iterator[None]:
    """The trackers that `config` asks for follow what is trained in the block.

    metrics.jsonl is there, cut back to where the run goes on. Event files go where the output is when all is written.
    """
    events = layout.output / TENSORBOARD_DIRECTORY
    try:
        with _trackers(config, layout, card, teller):
            yield
    finally:
        if events.is_dir():
            with suppress(RunFailed):  # a run is not to fail for its curves
                layout.mirror.put_folder(events)


def _trackers(config: TrainerConfig, layout: Layout, card: Card, teller: Teller) -> Trackers:
    tasks = [
        Task(
            tracker=tracker,
            job=config.job,
            tracking=config.tracking,
            metrics=str(layout.metrics),
            output=str(layout.output),
            output_uri=layout.uri,
            facts=card.made_from(),
        )
        for tracker in config.tracking.chosen
    ]
    return Trackers(
        tasks,
        teller.tracked,
        lambda sentence: teller.warn(WarningCode.TRACKER_FAILED, sentence, teller.step),
    )
