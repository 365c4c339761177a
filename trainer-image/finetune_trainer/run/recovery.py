"""Between the running loop and its state on disk."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch
from pydantic import TypeAdapter
from torch import Tensor

from finetune_api.status import JobWarning, Recovery
from finetune_trainer.out.checkpoint import RecoveryState
from finetune_trainer.out.clock import now
from finetune_trainer.run.ledger import Account
from finetune_trainer.run.loop import Loop, Position
from finetune_trainer.run.optim import optimizer_tensors, restore_optimizer
from finetune_trainer.step.ranks import Ranks
from finetune_trainer.step.recipe import Level, Recipe


def snapshot(loop: Loop) -> RecoveryState:
    """All that the loop needs to go on. Data order, learning rate and dropout follow from the step.

    Every step before it is closed first, so that metrics.jsonl, counts and warnings are those of this very step.
    """
    loop.ledger.settle()
    return RecoveryState(
        step=loop.position.step,
        tensors={"weights": loop.parameters, "optimizer": optimizer_tensors(loop.optimizer, loop.parameters)},
        facts={
            "recipe": asdict(loop.recipe),
            "position": asdict(loop.position),
            "account": asdict(loop.ledger.account),
            "metrics": loop.metrics.position(),
            "warnings": [warning.to_json() for warning in loop.teller.warnings],
            "time": now(),
        },
    )


def shared(state: RecoveryState | None, ranks: Ranks) -> RecoveryState | None:
    """What the first process has found, on every process."""
    if ranks.size == 1:
        return state
    found = {"step": state.step, "facts": state.facts, "tensors": _shapes(state)} if state is not None else None
    told = json.loads(ranks.text(json.dumps(found)))
    if told is None:
        return None
    tensors = {
        file: {
            name: ranks.copied(state.tensors[file][name] if state is not None else _empty(dtype, shape))
            for name, (dtype, shape) in shapes.items()
        }
        for file, shapes in told["tensors"].items()
    }
    return RecoveryState(told["step"], tensors, told["facts"])


def _shapes(state: RecoveryState) -> dict[str, dict[str, tuple[str, list[int]]]]:
    return {
        file: {name: (str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in part.items()}
        for file, part in state.tensors.items()
    }


def _empty(dtype: str, shape: list[int]) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype))


def recipe_of(state: RecoveryState | None) -> Recipe | None:
    """How the process that saved `state` computed."""
    if state is None:
        return None
    facts = state.facts["recipe"]
    return Recipe(**{**facts, "level": Level(facts["level"])})


def metrics_position(state: RecoveryState | None) -> int:
    """Bytes of metrics.jsonl that belong to `state`."""
    return state.facts["metrics"] if state else 0


def position_of(state: RecoveryState | None) -> Position:
    """How far the run of `state` was."""
    return TypeAdapter(Position).validate_python(state.facts["position"]) if state else Position()


@torch.no_grad()
def restore(loop: Loop, state: RecoveryState) -> None:
    """Put the loop where `snapshot` found it; the metrics log is cut back by whoever opens it."""
    for name, parameter in loop.parameters.items():
        parameter.copy_(state.tensors["weights"][name])
    restore_optimizer(loop.optimizer, loop.parameters, state.tensors["optimizer"])
    loop.position = position_of(state)
    loop.ledger.account = TypeAdapter(Account).validate_python(state.facts["account"])
    loop.teller.take_up(
        Recovery(step=state.step, time=state.facts["time"]),
        loop.position.evaluation,
        tuple(JobWarning.model_validate(warning) for warning in state.facts["warnings"]),
    )
