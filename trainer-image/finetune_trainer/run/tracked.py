"""Which trackers follow a run, and what its status hears of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_api.names import TENSORBOARD_DIRECTORY, WANDB_DIRECTORY
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

    metrics.jsonl is there, cut back to where the run goes on. What trackers leave in files goes where the output is.
    """
    try:
        with _trackers(config, layout, card, teller):
            yield
    finally:
        with suppress(RunFailed):  # a run is not to fail for its curves
            for name in (TENSORBOARD_DIRECTORY, WANDB_DIRECTORY):
                for file in filter(Path.is_file, (layout.output / name).rglob("*")):
                    layout.mirror.put_file(file)


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
