"""How far merged weights are from base plus adapter: measured on logits, from the files that are published.

Both models are loaded as anybody would load them, with plain peft and plain transformers, so that the figure does
not depend on how they were made. Passes run in fp32 whatever the precision of the weights: what is left is the merge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    with _loaded(start.base, start.base_uri, device) as causal:
        base = _logits(causal, rows)
        model: Any = with_adapter(causal, replace(start, adapter=adapter))
        adapted = _logits(model, rows)
    with _loaded(merged, str(merged), device) as causal:
        after = _logits(causal, rows)
    return Likeness(difference=_norm(after, adapted), effect=_norm(adapted, base), size=_norm(adapted))


@contextmanager
def _loaded(folder: Path, uri: str, device: torch.device) -> Iterator[PreTrainedModel]:
    """The model in the precision of its files; its memory is given back afterwards."""
    causal = load_base(folder, uri, None, device).causal
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
    """Every module computes in fp32, its own weights widened while it does: no second copy of the model."""
    kept: dict[nn.Module, dict[str, nn.Parameter | None]] = {}

    def widen(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        kept[module] = dict(module._parameters)
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                module._parameters[name] = nn.Parameter(parameter.float(), requires_grad=False)
        return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)

    def narrow(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        module._parameters.update(kept.pop(module))

    owners = [m for m in model.modules() if any(p is not None for p in m._parameters.values())]
    hooks = [m.register_forward_pre_hook(widen) for m in owners]
    hooks += [m.register_forward_hook(narrow, always_call=True) for m in owners]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _norm(rows: list[Tensor], without: list[Tensor] | None = None) -> float:
    """Euclidean norm of rows - without, over all elements."""
    left = (a.double() - b.double() for a, b in zip(rows, without or rows, strict=True)) if without else rows
    return math.sqrt(sum(row.double().square().sum().item() for row in left))
