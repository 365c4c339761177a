"""Weights that are spread over the processes (FSDP2): each keeps a share of every tensor.

A layer is whole only while it computes: its shares are brought together before its forward and its backward pass, and
the gradients are summed and spread again behind it. So all processes make the same passes in the same order, some of
them with nothing to do (see `gradient`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from finetune_api.method import TrainingKind
from finetune_trainer.shares import Share
from finetune_trainer.step.ranks import Ranks
from finetune_trainer.step.weights import vision_of

WITH_WEIGHTS = "with_weights"
"""Method of a sharded model in which its outermost weights are whole: embedding, last norm, head."""


def are_spread(kind: TrainingKind, ranks: Ranks) -> bool:
    """Whether the weights that are trained are spread: all of them are too many to have on each process."""
    return ranks.size > 1 and kind is TrainingKind.FULL


def shard(empty: PreTrainedModel, whole: PreTrainedModel | None, device: torch.device, ranks: Ranks) -> None:
    """Spread a model over the processes, its weights to come from the first of them.

    Sums of gradients are sums, and in fp32; on a GPU layers compute in bf16.

    Args:
        empty: the model on the device `meta`; afterwards it holds this process's shares on `device`.
        whole: the same model with its weights; None on every process but the first.
    """
    mesh = init_device_mesh(device.type, (ranks.size,))
    narrow = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = narrow if device.type == "cuda" else MixedPrecisionPolicy()
    setattr(empty, WITH_WEIGHTS, MethodType(_compute, empty))
    for module in (*_layers(empty), empty):
        sharded: Any = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other with a factor
        sharded.set_reduce_scatter_unused_params(True)  # experts that one process chose and another did not
    register_fsdp_forward_method(empty, WITH_WEIGHTS)
    empty.to_empty(device=device)
    _fill(empty, whole, device, ranks)


def _compute(_model: PreTrainedModel, computation: Callable[[], Tensor]) -> Tensor:
    return computation()


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that are brought together one at a time: those that transformers never divides between devices.

    Not those of a vision encoder: it computes only where a process has images, and all have to come together for it.
    """
    names, encoder = frozenset(model._no_split_modules or ()), vision_of(model)
    apart = set(encoder.modules()) if encoder is not None else set()
    return [module for module in model.modules() if type(module).__name__ in names and module not in apart]


@torch.no_grad()
def _fill(empty: PreTrainedModel, whole: PreTrainedModel | None, device: torch.device, ranks: Ranks) -> None:
    """Hand out the first process's weights, one tensor at a time."""
    weights = dict(whole.named_parameters()) if whole is not None else {}
    for name, parameter in empty.named_parameters():
        assert isinstance(parameter, DTensor)
        given = (
            weights[name].to(device) if weights else torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        )
        spread = distribute_tensor(given, parameter.device_mesh, parameter.placements, src_data_rank=0)
        parameter.to_local().copy_(spread.to_local())
    buffers = dict(whole.named_buffers()) if whole is not None else {}
    for name, buffer in empty.named_buffers():
        if buffers:
            buffer.copy_(buffers[name])
        ranks.copied(buffer)


def size_of(model: nn.Module) -> int:
    """Bytes of its weights."""
    return sum(parameter.nbytes for parameter in model.parameters())


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are spread over processes."""
    return isinstance(model, FSDPModule)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is spread; all processes ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(tensor: Tensor) -> Share | None:
    """What this process has of a tensor that is spread; None where each has the whole.

    FSDP2 divides the first dimension as `torch.chunk` does: all shares but the last ones are equally large.
    """
    if not isinstance(tensor, DTensor):
        return None
    rows, parts = tensor.shape[0], tensor.device_mesh.size()
    begin = min(dist.get_rank() * ceil(rows / parts), rows)
    return Share(tensor.to_local(), begin)
