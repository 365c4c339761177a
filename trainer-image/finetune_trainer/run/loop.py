"""The training loop: steps, and what is due after each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from finetune_api.failures import FailureCode
from finetune_api.metrics import STATUS_NAMES, checkpoint_values
from finetune_api.report import EarlyStop
from finetune_api.schedule import spaced
from finetune_api.status import CheckpointType
from finetune_api.trainer import TrainerConfig
from finetune_trainer.failures import failed
from finetune_trainer.out.metrics import MetricsLog
from finetune_trainer.run.best import Best, Judge
from finetune_trainer.run.evaluate import evaluate
from finetune_trainer.run.late import Late
from finetune_trainer.run.ledger import Entry, Ledger
from finetune_trainer.run.optim import clip, learning_rate, make_adamw, update
from finetune_trainer.run.samples import Scores
from finetune_trainer.run.start import Work
from finetune_trainer.run.telling import Teller
from finetune_trainer.step.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is. Frozen, so that a saved position and the running one cannot mix."""

    step: int = 0
    """Optimiser steps done."""
    settled: bool = False
    """Whether what is due after that step, evaluation and checkpoint, is done too."""
    tokens: int = 0
    """Tokens trained on."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """The newest evaluation, by metric name."""
    best: Best = field(default_factory=Best)
    samples_before: Scores = ()
    """Scores of the rows that the report shows, before the first step."""
    samples_after: Scores = ()
    """The same at the newest evaluation or the end."""


class Loop:
    """Training from `position` to the last step, or to where the evaluations stop improving."""

    def __init__(
        self, config: TrainerConfig, work: Work, metrics: MetricsLog, teller: Teller, before_each: Callable[[], None]
    ) -> None:
        """`before_each` is called before each micro-batch and may raise to end the loop between two of them."""
        self.position = Position()
        self.parameters = work.policy.trainable
        self.optimizer = make_adamw(self.parameters, config.hyperparameters.weight_decay)
        self.metrics = metrics
        self.teller = teller
        self.total_steps = work.plan.total_steps
        self.ledger = Ledger(config, self.total_steps, metrics, teller, work.rows.cache.lines)
        self._config, self._work, self._before_each = config, work, before_each
        self._judge = Judge.of(config.evaluation)
        evaluations = config.evaluation.n_evals if work.validation else 0
        self._evaluations = spaced(evaluations, self.total_steps) | {0} if evaluations else frozenset[int]()
        self._checkpoints = spaced(config.checkpointing.n_checkpoints, self.total_steps)
        self._row_tokens = work.rows.cache.lengths

    @property
    def recipe(self) -> Recipe:
        """How micro-batches are computed at present."""
        return self._work.fitter.recipe

    @property
    def has_ended(self) -> bool:
        """Whether no step follows; evaluation and checkpoint may still be due."""
        return self.position.step >= self.total_steps or self._judge.is_enough(self.position.best)

    def run(self, after_each: Callable[[], None]) -> None:
        """All steps that are left; `after_each` is called when a step and what was due after it are done.

        Raises:
            RunFailed: Diverged, OutOfMemory, or what `before_each` raises.
        """
        self.teller.begins(self.position.step, self.position.tokens)
        self._settle()
        while not self.has_ended:
            self._step()
            self._settle()
            after_each()
        self.ledger.settle()
        self.ledger.check()
        self._tell_end()

    def _step(self) -> None:
        """One optimiser step: gradients over all its micro-batches, clip, update; its numbers follow a step later."""
        hyper, plan, position = self._config.hyperparameters, self._work.plan, self.position
        rate = learning_rate(position.step, plan.total_steps, hyper)
        rows = plan.step(position.step)
        seed = _seed_of(hyper.seed, position.step)
        sums = self._work.fitter.gradients(self._work.rows, rows, seed, self._before_each)
        norm = clip(self.parameters, hyper.max_grad_norm)
        update(self.optimizer, rate, norm)
        tokens = int(self._row_tokens[list(rows)].sum())
        done = replace(position, step=position.step + 1, settled=False, tokens=position.tokens + tokens)
        self.position = done
        measured = self._work.rows.metrics(sums, rows)
        numbers = torch.cat([measured.values, norm.double().view(1)])
        known = {
            "learning_rate": rate,
            "epoch": self.teller.epoch(done.step),
            "num_tokens": done.tokens,
        }
        late = Late.of((*measured.names, "grad_norm"), numbers)
        self.ledger.book(Entry(done.step, tokens, done.tokens, rows, late, known))
        self.ledger.check()

    def _settle(self) -> None:
        """What is due after the current step: an evaluation, then a checkpoint that carries it."""
        if self.position.settled:
            return
        step = self.position.step
        if step in self._evaluations:
            self._evaluate()
        elif step == 0 or self.has_ended:
            self._scored(self._work.samples.score(self._work.fitter, self._before_each))
        is_best = 0 < step == self.position.best.step
        if (step in self._checkpoints or is_best) and not self.has_ended:
            self.publish(CheckpointType.INTERMEDIATE)
        if step in self._evaluations or step in self._checkpoints:
            self.teller.begins(step, self.position.tokens)
        self.position = replace(self.position, settled=True)

    def _evaluate(self) -> None:
        """Measure the validation rows, and compare with the evaluations before; step 0 is the baseline alone."""
        self.ledger.settle()
        self.ledger.check()
        validation, step = self._work.validation, self.position.step
        assert validation is not None
        found = evaluate(self._work.fitter, validation, self._work.samples, self._before_each)
        values = found.values
        watched = self._watched(values)
        best = self._judge.after(self.position.best, step, watched) if step else self.position.best
        self.metrics.append(step, "eval", values)
        self.position = replace(self.position, evaluation=values, best=best)
        self._scored(found.samples)
        self.teller.evaluated(step, values)

    def _scored(self, samples: Scores) -> None:
        """Keep the scores of the rows that the report shows: the first ones, and the newest."""
        if self.position.step == 0:
            self.position = replace(self.position, samples_before=samples)
        else:
            self.position = replace(self.position, samples_after=samples)

    def _watched(self, values: dict[str, float]) -> float:
        """Raises: RunFailed: ConfigInvalid: the method does not measure what is to be watched."""
        by_name = {STATUS_NAMES[name]: value for name, value in values.items()}
        metric = self._judge.metric
        if metric not in by_name:
            problem = f"{metric} is not measured by this method, which has {', '.join(by_name)}"
            raise failed(FailureCode.CONFIG_INVALID, field="evaluation.earlyStopping.metric", problem=problem)
        return by_name[metric]

    def _tell_end(self) -> None:
        """Say so if training ended before its last step."""
        best, step = self.position.best, self.position.step
        if step < self.total_steps:
            stop = EarlyStop(
                metric=self._judge.metric,
                step=step,
                evaluations=best.waited,
                best_step=best.step,
                best_value=best.value,
            )
            self.teller.stopped_early(stop, self.position.tokens)

    def publish(self, kind: CheckpointType) -> None:
        """Publish the current weights."""
        self.ledger.settle()
        self.ledger.check()
        position, save = self.position, self._work.policy.saving()
        if self._work.publisher is None:
            return
        published = self._work.publisher.publish(
            position.step, kind, checkpoint_values(position.evaluation), save, position.best.step
        )
        self.teller.published(published)


def _seed_of(seed: int, step: int) -> int:
    """Seed of dropout in a step: a function of the step alone, so that a resumed run needs no generator's state."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:7], "little")
