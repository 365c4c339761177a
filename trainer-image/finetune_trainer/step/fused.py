"""LoRA linears as one operation: x W' + scale (x A') B', forward and backward.

PEFT's layer makes the addend, scales it and adds it to the product: two tensors of the size of the output that nobody
keeps, and as many in the backward pass; under autocast it also widens the input to the precision of the adapter before
it is narrowed again. Here the addend is added by the product that makes it, and the scale is applied where it is small.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from finetune_trainer.step.precision import computed_in

ADAPTER = "default"
"""What PEFT calls the one adapter of a model."""


def fuse(model: PeftModel) -> None:
    """Let the linear layers that have an adapter compute it so, wherever that is the same."""
    for layer in model.modules():
        if type(layer) is LoraLinear and type(layer.get_base_layer()) is nn.Linear:
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]  # of this layer alone


def _forward(layer: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In the place of a layer's forward; PEFT's own is called where the layer does more than this, such as dropout."""
    base: Any = layer.get_base_layer()
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    drops = layer.training and not isinstance(layer.lora_dropout[ADAPTER], nn.Identity)
    mixed = not torch.is_autocast_enabled(x.device.type) and not x.dtype == base.weight.dtype == a.dtype
    if args or kwargs or drops or mixed or layer.disable_adapters or layer.merged or base.weight.requires_grad:
        return type(layer).forward(layer, x, *args, **kwargs)
    x = x.to(computed_in(x, x.dtype))
    result: Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, layer.scaling[ADAPTER])
    return result


class _LoraLinear(torch.autograd.Function):
    """[..., inputs] -> [..., outputs] in the precision of the input; gradients of input, A [rank, inputs] and
    B [outputs, rank]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            result = linear(flat, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
            low = flat @ a.to(x.dtype).t()
            torch.addmm(result, low, b.to(x.dtype).t(), alpha=scale, out=result)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        flat, upstream = x.reshape(-1, x.shape[-1]), upstream.reshape(-1, upstream.shape[-1])
        by_low = upstream @ b.to(x.dtype)
        by_a = torch.mm(by_low.t(), flat).to(a.dtype).mul_(ctx.scale)
        by_b = torch.mm(upstream.t(), low).to(b.dtype).mul_(ctx.scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None, by_a, by_b, None
        by_x = upstream @ weight.to(x.dtype)
        torch.addmm(by_x, by_low, a.to(x.dtype), alpha=ctx.scale, out=by_x)
        return by_x.view(x.shape), None, None, by_a, by_b, None
