"""How far merged weights are from base plus adapter: measured on logits, from the files that are published.

Both models are loaded as anybody would load them, with plain peft and plain transformers, so that the figure does
not depend on how they were made. Passes run in fp32 whatever the precision of the weights: what is left is the merge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_trainer.step.adapter import with_adapter
from finetune_trainer.step.weights import StartFolders, load_base

UNEXPLAINED = 256 * torch.finfo(torch.float32).eps
"""A difference above this share of the logits is more than rounding in fp32."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """Norms over the logits of the probe rows."""

    difference: float
    """|merged - adapted|."""
    effect: float
    """|adapted - base|."""
    size: float
    """|adapted|."""

    @property
    def merge_error(self) -> float:
        """Difference over effect; 0 where an adapter without effect was merged without effect."""
        if self.effect == 0:
            return 0.0 if self.is_rounding else math.inf
        return self.difference / self.effect

    @property
    def is_rounding(self) -> bool:
        """Whether rounding in fp32 alone explains the difference."""
        return self.difference <= UNEXPLAINED * self.size


@torch.no_grad()
def likeness(
    start: StartFolders, adapter: Path, merged: Path, rows: Sequence[Tensor], device: torch.device
) -> Likeness:
    """Compare the model in `merged` with the base of `start` plus `adapter`.

    Args:
        rows: token ids, int64 [length] each.

    Raises:
        RunFailed: ModelUnsupported, AdapterUnsupported: one of them does not load.
    """
    with _loaded(start.base, start.base_uri, device, start.remote_code) as causal:
        base = _logits(causal, rows)
        model: Any = with_adapter(causal, replace(start, adapter=adapter))
        adapted = _logits(model, rows)
    with _loaded(merged, str(merged), device, start.remote_code) as causal:
        after = _logits(causal, rows)
    return Likeness(difference=_norm(after, adapted), effect=_norm(adapted, base), size=_norm(adapted))


@contextmanager
def _loaded(folder: Path, uri: str, device: torch.device, remote_code: bool) -> Iterator[PreTrainedModel]:
    """The model in the precision of its files; its memory is given back afterwards."""
    causal = load_base(folder, uri, None, device, remote_code=remote_code).causal
    try:
        yield causal.eval()
    finally:
        nn.Module.to(causal, "meta")


def _logits(model: nn.Module, rows: Sequence[Tensor]) -> list[Tensor]:
    """Of each row: fp32 [length, vocabulary], on the CPU."""
    device = next(model.parameters()).device
    with _in_fp32(model):
        return [model(input_ids=row[None].to(device), use_cache=False).logits[0].float().cpu() for row in rows]


@contextmanager
def _in_fp32(model: nn.Module) -> Iterator[None]:
    """Passes compute in fp32, the weights of one layer at a time widened for it: no second copy of the model."""
    kept: dict[tuple[nn.Module, str], nn.Parameter] = {}

    def widen(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, members: list[nn.Module]) -> Any:
        for member in members:
            for name, parameter in member._parameters.items():
                if parameter is not None and parameter.is_floating_point():
                    kept[member, name] = parameter
                    member._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)
        return tuple(map(_wide, args)), {name: _wide(value) for name, value in kwargs.items()}

    def narrow(*_call: Any, members: list[nn.Module]) -> None:
        for member in members:
            for name in member._parameters:
                member._parameters[name] = kept.pop((member, name), member._parameters[name])

    hooks = []
    for module, members in _layers(model):
        hooks.append(module.register_forward_pre_hook(partial(widen, members=members), with_kwargs=True))
        hooks.append(module.register_forward_hook(partial(narrow, members=members), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layers(model: nn.Module) -> list[tuple[nn.Module, list[nn.Module]]]:
    """The parts of a model that compute one after another, each with all modules whose weights it may read.

    A decoder layer is one part, because some read the weights of their children without calling them.
    """
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [lists[path] for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    blocks = [(layer, list(layer.modules())) for each in outer for layer in each]
    inside = {member for _, members in blocks for member in members}
    return blocks + [(module, [module]) for module in model.modules() if module not in inside and module._parameters]


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _norm(rows: list[Tensor], without: list[Tensor] | None = None) -> float:
    """Euclidean norm of rows - without, over all elements."""
    left = (a.double() - b.double() for a, b in zip(rows, without or rows, strict=True)) if without else rows
    return math.sqrt(sum(row.double().square().sum().item() for row in left))
