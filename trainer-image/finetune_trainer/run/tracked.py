"""Which trackers follow a run, and what its status hears of them."""

from __future__ import annotations

from finetune_api.report import WarningCode
from finetune_api.trainer import TrainerConfig
from finetune_trainer.layout import Layout
from finetune_trainer.out.card import Card
from finetune_trainer.out.trackers import Trackers
from finetune_trainer.out.tracking import Task
from finetune_trainer.run.telling import Teller


def trackers_of(config: TrainerConfig, layout: Layout, card: Card, teller: Teller) -> Trackers:
    """The trackers that `config` asks for. metrics.jsonl is there, cut back to where the run goes on."""
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
