"""The policy: starting weights with what is trained on them, an adapter or every weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.failures import FailureCode
from finetune_api.method import TrainingKind
from finetune_api.trainer import LoraConfig
from finetune_trainer.failures import failed
from finetune_trainer.step.adapter import continued_adapter, new_adapter, save_adapter, with_adapter_merged
from finetune_trainer.step.attention import PREF_VARLEN, AttentionUnsupported
from finetune_trainer.step.batch import MicroBatch, Pass
from finetune_trainer.step.logps import Head, sequence_logps
from finetune_trainer.step.memory import most_frozen
from finetune_trainer.step.ranks import ALONE, Ranks
from finetune_trainer.step.sharding import WITH_WEIGHTS, are_spread, gathered, is_sharded, shard, size_of
from finetune_trainer.step.weights import (
    Base,
    StartFolders,
    backbone_of,
    empty_base,
    head_of,
    load_base,
    vision_of,
    with_dropouts,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What is trained."""

    root: PeftModel | PreTrainedModel
    backbone: nn.Module
    head: Head
    base: Base
    device: torch.device
    kind: TrainingKind
    ranks: Ranks = ALONE
    """The processes that train it as one."""
    still: nn.Module | None = None
    """A vision encoder that stays as it is."""

    @property
    def sharded(self) -> bool:
        """Whether each process has a share of the base's weights, else the whole."""
        return is_sharded(self.base.causal)

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that move, by name; a tied one once."""
        return {name: p for name, p in self.root.named_parameters() if p.requires_grad}

    def score(self, batch: MicroBatch) -> Tensor:
        """Sum of the log-probabilities of each sequence's targets, fp64 [sequences].

        Raises:
            AttentionUnsupported: the model cannot do the level that `batch` was made for.
        """
        return torch.stack([self.score_pass(one, batch.sequences) for one in batch.passes]).sum(0)

    def score_pass(self, one: Pass, sequences: int) -> Tensor:
        """The same for one pass of a micro-batch of `sequences`; 0 for those that are not in it."""
        self._attend(self.base.attention if one.layout is None else PREF_VARLEN)
        compute = partial(self._sums, one.to(self.device), sequences)
        sums: Tensor = getattr(self.base.causal, WITH_WEIGHTS)(compute) if self.sharded else compute()
        return sums

    def _sums(self, one: Pass, sequences: int) -> Tensor:
        with self.precision():
            output = self.backbone(input_ids=one.input_ids, use_cache=False, **self._beside(one))
            states = output.last_hidden_state[0].index_select(0, one.predictors)
            return sequence_logps(states, self.head, one.targets, one.sequence, sequences)

    def _beside(self, one: Pass) -> dict[str, Any]:
        """What the backbone's forward gets beside tokens; a sequence alone has the positions that the model gives."""
        if one.layout is not None:
            return {"position_ids": one.position_ids, **one.layout.arguments()}
        if one.pixels is not None:
            return dict(one.pixels.arguments(one.input_ids, self.base.causal.config.image_token_id))
        return {}

    def as_loaded(self) -> PreTrainedModel:
        """The whole model with the attention that transformers gave it, for a call that is no pass of ours."""
        self._attend(self.base.attention)
        return self.base.causal

    def _attend(self, implementation: str) -> None:
        """Make the model's layers call `implementation`: what attention a pass gets is decided by the pass alone."""
        causal = self.base.causal
        if causal.config._attn_implementation != implementation:
            causal.set_attn_implementation(implementation)
            if causal.config._attn_implementation != implementation:
                raise AttentionUnsupported("its attention cannot be replaced")

    def precision(self) -> AbstractContextManager[object]:
        """In which the model computes: bf16 on a GPU, else that of its weights."""
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def training(self, on: bool) -> None:
        """Adapter dropout on or off; the base has none."""
        self.root.train(on)
        if self.still is not None:
            self.still.eval()

    def release(self) -> None:
        """Give back the memory of the weights; nothing can be computed afterwards."""
        nn.Module.to(self.root, "meta")

    def checkpointing(self, on: bool) -> None:
        """Activations are computed again in the backward pass, where the model can do that, or kept until then."""
        causal = self.base.causal
        if on and causal.supports_gradient_checkpointing:
            causal.activation_checkpointing_enable({"use_reentrant": False})
        else:
            causal.activation_checkpointing_disable()

    def saving(self) -> Callable[[Path], None]:
        """What writes the trained weights with their configuration into a folder, as PEFT or transformers read them.

        All processes ask for it together, the first one calls it.
        """
        if isinstance(self.root, PeftModel):
            return partial(save_adapter, self.root)
        return partial(_save_model, self.root, self.base, _published(self.root, self.base, self.ranks))


def choose_device(gpus: int, place: int = 0) -> torch.device:
    """The `place`-th GPU if the job has any, else the CPU.

    Raises:
        RunFailed: GpuMissing: no GPU is visible, or none that computes in bf16.
    """
    if gpus == 0:
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 0
    if found < gpus:
        raise failed(FailureCode.GPU_MISSING, value=gpus, found=found)
    return torch.device("cuda", place)


def load_policy(
    start: StartFolders,
    kind: TrainingKind,
    lora: LoraConfig | None,
    seed: int,
    device: torch.device,
    ranks: Ranks = ALONE,
    vision: bool = False,
) -> Policy:
    """The starting weights, ready to train. A new adapter is drawn from `seed` and changes nothing at first.

    A vision encoder stays as it is unless `vision` says otherwise.

    Raises:
        RunFailed: RemoteCode, ModelUnsupported, AdapterModulesUnknown, AdapterOnHead, AdapterInExperts,
            AdapterUnsupported, CheckpointMissing.
    """
    base = _starting_base(start, kind, device, ranks)
    root: PeftModel | PreTrainedModel = base.causal
    causal, encoder = base.causal, vision_of(base.causal)
    if lora is None:
        root.requires_grad_(True)
    elif start.adapter is not None:
        root = continued_adapter(causal, start, lora, vision)
    else:
        root = new_adapter(causal, start, lora, seed, vision)
    still = None if vision else encoder
    if still is not None:
        still.requires_grad_(False)
    if vision and lora is not None and is_sharded(causal):
        # Else only a pass with images had a gradient before the first layer, and processes would wait for each other.
        causal.enable_input_require_grads()
    return Policy(root, backbone_of(causal), head_of(causal), base, device, kind, ranks, still)


def _starting_base(start: StartFolders, kind: TrainingKind, device: torch.device, ranks: Ranks) -> Base:
    """The base that `kind` trains or leaves as it is: spread over the processes where that is due, else whole."""
    frozen = kind is TrainingKind.LORA
    dtype = torch.bfloat16 if frozen and device.type == "cuda" else torch.float32

    def loaded(place: torch.device) -> Base:
        base = load_base(start.base, start.base_uri, dtype, place, remote_code=start.remote_code)
        merged = start.adapter is not None and not frozen
        return replace(base, causal=with_adapter_merged(base.causal, start)) if merged else base

    if ranks.size == 1:
        return loaded(device)
    base = empty_base(start.base, start.base_uri, dtype, remote_code=start.remote_code)
    if not (are_spread(kind, ranks) or ranks.any(size_of(base.causal) > most_frozen(device))):
        return loaded(device)
    shard(base.causal, loaded(torch.device("cpu")).causal if ranks.first else None, device, ranks)
    return base


def _published(model: PreTrainedModel, base: Base, ranks: Ranks) -> dict[str, Tensor]:
    """Full weights in the precision of the base, tied ones once; where they are spread, all on the first process."""
    cast: dict[int, Tensor] = {}
    weights = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in cast:
            dtype = base.published_dtype if tensor.is_floating_point() else tensor.dtype
            found = gathered(tensor.detach())
            cast[id(tensor)] = found.to("cpu", dtype) if ranks.first else torch.empty(0)
        weights[name] = cast[id(tensor)]
    return weights


def _save_model(model: PreTrainedModel, base: Base, weights: dict[str, Tensor], folder: Path) -> None:
    """`weights` with their configuration, which gets its own dropouts again."""
    model.save_pretrained(folder, state_dict=weights)
    path = folder / "config.json"
    dtype = str(base.published_dtype).removeprefix("torch.")
    config = with_dropouts(json.loads(path.read_text()), base.dropouts) | {"dtype": dtype}
    path.write_text(json.dumps(config, indent=2) + "\n")
