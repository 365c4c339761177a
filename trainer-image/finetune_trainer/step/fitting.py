"""Gradients and scores of any rows in the memory there is: the recipe gets easier when a micro-batch does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetune_trainer.step.gradient import NoRoom, Objective, Table, accumulate, scores
from finetune_trainer.step.model import Policy
from finetune_trainer.step.recipe import Recipe
from finetune_trainer.step.rehearsal import too_long


class Fitter:
    """Computes with a policy by a recipe, which only ever gets easier."""

    def __init__(self, policy: Policy, recipe: Recipe, eased: Callable[[str], None]) -> None:
        """`eased` hears in a sentence when memory ran out and how it goes on."""
        self.policy = policy
        self.recipe = recipe
        self._eased = eased
        policy.checkpointing(recipe.checkpointing)

    def gradients(
        self, objective: Objective, rows: Sequence[int], seed: int, before_each: Callable[[], None]
    ) -> Tensor:
        """Set the gradients of the trainable parameters to those of an optimiser step over `rows`; see `accumulate`.

        A step that runs out of memory begins again, with the same dropout and smaller micro-batches.

        Args:
            seed: of the step's dropout.

        Raises:
            RunFailed: OutOfMemory, ModelTooLarge: a row does not even fit alone.
        """
        while True:
            for parameter in self.policy.trainable.values():
                parameter.grad = None
            torch.manual_seed(seed + self.policy.ranks.rank)
            try:
                return accumulate(self.policy, objective, self.recipe, rows, before_each)
            except NoRoom as end:
                too_much = end.rows
            self._ease(objective, too_much, gradient=True)

    def scores(self, table: Table, rows: Sequence[int], before_each: Callable[[], None]) -> Tensor:
        """Sums of log-probabilities of every sequence of `rows`, without dropout and gradients; see `accumulate`.

        Raises:
            RunFailed: OutOfMemory, ModelTooLarge.
        """
        while True:
            try:
                return scores(self.policy, table, self.recipe, rows, before_each)
            except NoRoom as end:
                too_much = end.rows
            self._ease(table, too_much, gradient=False)

    def _ease(self, table: Table, rows: tuple[int, ...], *, gradient: bool) -> None:
        tokens = int(table.widths(self.recipe.level)[list(rows)].sum())
        easier = self.recipe.easier(len(rows), tokens, pairs=table.pairs, gradient=gradient)
        if easier is None:
            raise too_long(self.policy, table, rows[0], self.recipe)
        what = f"memory ran out on a micro-batch of {len(rows)} rows, {tokens} tokens"
        self._eased(f"{what}: {self.recipe} before, {easier} from now on")
        self.recipe = easier
        self.policy.checkpointing(easier.checkpointing)
