"""Between the running loop and its state on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from pydantic import TypeAdapter
from torch import Tensor

from finetune_api.status import JobWarning, Recovery
from finetune_trainer.layout import Layout
from finetune_trainer.out.checkpoint import OPTIMIZER, WEIGHTS, RecoveryState, SavedState
from finetune_trainer.out.clock import now
from finetune_trainer.run.ledger import Account
from finetune_trainer.run.loop import Loop, Position
from finetune_trainer.run.optim import optimizer_tensors, restore_optimizer
from finetune_trainer.shares import SavedShares, Share
from finetune_trainer.step.ranks import Ranks
from finetune_trainer.step.recipe import Level, Recipe
from finetune_trainer.step.sharding import share_of


def snapshot(loop: Loop, ranks: Ranks) -> RecoveryState:
    """All that the loop needs to go on. Data order, learning rate and dropout follow from the step.

    Every step before it is closed first, so that metrics.jsonl, counts and warnings are those of this very step.
    """
    loop.ledger.settle()
    return RecoveryState(
        step=loop.position.step,
        tensors={
            WEIGHTS: _shares(loop.parameters, ranks),
            OPTIMIZER: _shares(optimizer_tensors(loop.optimizer, loop.parameters), ranks),
        },
        facts={
            "recipe": asdict(loop.recipe),
            "position": asdict(loop.position),
            "account": asdict(loop.ledger.account),
            "metrics": loop.metrics.position(),
            "warnings": [warning.to_json() for warning in loop.teller.warnings],
            "time": now(),
        },
    )


def _shares(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Share]:
    """What this process writes: its share of what is spread, and on the first one all that each process has."""
    shares = {name: share_of(tensor) or (Share(tensor) if ranks.first else None) for name, tensor in tensors.items()}
    return {name: share for name, share in shares.items() if share is not None}


def shared(state: SavedState | None, layout: Layout, ranks: Ranks) -> SavedState | None:
    """What the first process has found, on every process. One process of each other pod fetches it for those there."""
    found = {"step": state.step, "facts": state.facts, "name": state.folder.name} if state is not None else None
    told = json.loads(ranks.text(json.dumps(found)))
    if told is None:
        return None
    folder = layout.recovery / told["name"]
    if ranks.local == 0 and not ranks.first:
        layout.mirror.fetch_folder(folder)
    ranks.wait()
    return SavedState(told["step"], told["facts"], folder)


def recipe_of(state: SavedState | None) -> Recipe | None:
    """How the process that saved `state` computed."""
    if state is None:
        return None
    facts = state.facts["recipe"]
    return Recipe(**{**facts, "level": Level(facts["level"])})


def metrics_position(state: SavedState | None) -> int:
    """Bytes of metrics.jsonl that belong to `state`."""
    return state.facts["metrics"] if state else 0


def position_of(state: SavedState | None) -> Position:
    """How far the run of `state` was."""
    return TypeAdapter(Position).validate_python(state.facts["position"]) if state else Position()


@torch.no_grad()
def restore(loop: Loop, state: SavedState, layout: Layout, ranks: Ranks) -> None:
    """Put the loop where `snapshot` found it; the metrics log is cut back by whoever opens it.

    What was fetched from a store for this is not kept on the pod's disk.
    """
    weights, optimizer = state.tensors(WEIGHTS), state.tensors(OPTIMIZER)
    for name, parameter in loop.parameters.items():
        _read_into(parameter, weights, name)
    restore_optimizer(
        loop.optimizer, loop.parameters, optimizer, lambda tensor, key: _read_into(tensor, optimizer, key)
    )
    loop.position = position_of(state)
    loop.ledger.account = TypeAdapter(Account).validate_python(state.facts["account"])
    loop.teller.take_up(
        Recovery(step=state.step, time=state.facts["time"]),
        loop.position.evaluation,
        tuple(JobWarning.model_validate(warning) for warning in state.facts["warnings"]),
    )
    ranks.wait()
    if ranks.local == 0:
        layout.mirror.spare(state.folder)


def _read_into(tensor: Tensor, saved: SavedShares, name: str) -> None:
    """All of `tensor`, or this process's share of it."""
    share = share_of(tensor)
    if share is None:
        tensor.copy_(saved.whole(name))
    else:
        share.tensor.copy_(saved.rows(name, share.begin, len(share.tensor)))
