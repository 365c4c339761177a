"""What memory a step really takes: on a CPU every storage is counted from its making to its end, a GPU is asked."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig

from finetune_api.method import TrainingKind
from finetune_api.trainer import LoraConfig
from finetune_trainer.step.adapter import new_adapter
from finetune_trainer.step.batch import MicroBatch
from finetune_trainer.step.gradient import backward
from finetune_trainer.step.model import Policy
from finetune_trainer.step.recipe import OPTIMIZER_STATES
from finetune_trainer.step.weights import Base, StartFolders, backbone_of, head_of

NO_FOLDER = StartFolders(Path(), "random weights", "random", None, None)


class LivePeak(TorchDispatchMode):
    """Most bytes of storages that lived at the same time: those of `held`, and what operations under this mode make."""

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known: set[int] = set()
        for tensor in held:
            self._add(tensor.untyped_storage())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, torch.nn.Parameter):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self._live += size
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def random_policy(config: PreTrainedConfig, adapter: LoraConfig | None, device: str = "cpu") -> Policy:
    """Random weights as the trainer would hold them, with a new adapter or all of them trained."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" and adapter else torch.float32
    with torch.device(device):
        causal = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype, attn_implementation="sdpa")
    root = new_adapter(causal, NO_FOLDER, adapter, seed=0) if adapter else causal.requires_grad_(True)
    base = Base("random weights", causal, {}, dtype, causal.config._attn_implementation)
    kind = TrainingKind.LORA if adapter else TrainingKind.FULL
    return Policy(root, backbone_of(causal), head_of(causal), base, torch.device(device), kind)


def step_peak(policy: Policy, batch: MicroBatch, *, checkpointing: bool, split: bool) -> int:
    """Most bytes in a pass forward and backward, with the gradients and the optimizer of a later micro-batch."""
    policy.checkpointing(checkpointing)
    policy.training(True)
    held = [*policy.root.parameters(), *policy.root.buffers()]
    for parameter in policy.trainable.values():
        parameter.grad = torch.zeros_like(parameter)
        held += [parameter.grad, *(torch.empty_like(parameter) for _ in range(OPTIMIZER_STATES))]
    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        backward(policy, batch, torch.sum, split=split)
        return torch.cuda.max_memory_allocated()
    with LivePeak(held) as mode:
        backward(policy, batch, torch.sum, split=split)
    return mode.peak


def kept_bytes(policy: Policy, batch: MicroBatch) -> int:
    """What a forward pass keeps for the backward pass, parameters apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.root.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    policy.training(True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.score(batch)
    return sum(storage.nbytes() for storage in kept.values())
