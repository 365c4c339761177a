"""AdamW and its learning rate: the same numbers as Hugging Face's schedules, as a pure function of the step.

Whether a step is taken at all is decided where the gradients are, on the device: the fused AdamW leaves weights,
moments and step counts as they are where its `found_inf` is 1, as `torch.amp.GradScaler` uses it, on GPU and CPU alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from finetune_api.hyperparameters import Hyperparameters, LrScheduler, LrSchedulerType
from finetune_trainer.step.sharding import gathered

BETAS, EPSILON = (0.9, 0.999), 1e-8
COUNT = "step"
"""What AdamW calls the number of its steps, one for each parameter."""


def make_adamw(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over `parameters`; norms and biases, which are the ones with one dimension, do not decay."""
    decaying = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=BETAS, eps=EPSILON, fused=True)


def learning_rate(step: int, total: int, hyperparameters: Hyperparameters) -> float:
    """Learning rate of step `step`, counted from 0, of `total` steps.

    A warm-up of ceil(warmupRatio * total) steps from 0, then r + (1 - r) * m with the multiplier m of
    `transformers.get_scheduler` ("cosine" with num_cycles, "linear") and r = minLrRatio.
    """
    warmup = math.ceil(hyperparameters.warmup_ratio * total)
    peak = hyperparameters.learning_rate
    if step < warmup:
        return peak * step / warmup
    least = hyperparameters.lr_scheduler.min_lr_ratio
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (least + (1 - least) * _multiplier(progress, hyperparameters.lr_scheduler))


def _multiplier(progress: float, scheduler: LrScheduler) -> float:
    if scheduler.type is LrSchedulerType.LINEAR:
        return max(0.0, 1.0 - progress)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * scheduler.num_cycles * 2.0 * progress)))


def update(optimizer: torch.optim.AdamW, rate: float, norm: Tensor) -> None:
    """One step with learning rate `rate`, or none at all where `norm` is not finite; the gradients are dropped.

    Args:
        norm: of the gradients, 0-d, on their device; nothing waits for it.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.found_inf = 1.0 - norm.isfinite().float()  # type: ignore[attr-defined]  # as GradScaler sets it
    optimizer.step()
    optimizer.zero_grad()


def clip(parameters: Mapping[str, nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to `max_norm` (0 = never) and return their norm before, 0-d, on their device."""
    return gathered(nn.utils.clip_grad_norm_(list(parameters.values()), max_norm or math.inf))


def optimizer_tensors(optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `<kind>:<parameter>`; none before the first step."""
    return {
        f"{kind}:{name}": value
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, nn.Parameter],
    names: Iterable[str],
    fill: Callable[[Tensor, str], None],
) -> None:
    """Put back what `optimizer_tensors` gave under `names`, and `fill` puts into the tensors that are made for them."""
    for key in names:
        kind, _, name = key.partition(":")
        parameter = parameters[name]
        value = torch.zeros((), device=parameter.device) if kind == COUNT else torch.empty_like(parameter)
        fill(value, key)
        optimizer.state[parameter][kind] = value
