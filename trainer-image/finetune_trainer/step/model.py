"""The policy: starting weights with what is trained on them, an adapter or every weight."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.method import ALL_LINEAR, TrainingKind
from finetune_api.report import FailureCode
from finetune_api.trainer import LoraConfig
from finetune_trainer.failures import failed
from finetune_trainer.files import ADAPTER_WEIGHTS
from finetune_trainer.step.attention import PREF_VARLEN, AttentionUnsupported
from finetune_trainer.step.batch import MicroBatch, Pass
from finetune_trainer.step.logps import Head, sequence_logps
from finetune_trainer.step.weights import Base, head_of, load_base

ROUTERS = frozenset({"gate", "router"})
"""Linear layers that choose experts; an adapter on them would change which expert answers."""
MAX_NAMED_MODULES = 12


@dataclass(frozen=True, slots=True)
class StartFolders:
    """Where the starting weights lie on this machine, and what they are called."""

    base: Path
    base_uri: str
    """Named in errors."""
    base_name: str
    """Written into adapter_config.json: the Hub id, else the URI."""
    base_revision: str | None
    adapter: Path | None
    """The adapter to go on with, or to merge for full training."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is trained."""

    root: PeftModel | PreTrainedModel
    backbone: nn.Module
    head: Head
    base: Base
    device: torch.device
    kind: TrainingKind

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that move, by name; a tied one once."""
        return {name: p for name, p in self.root.named_parameters() if p.requires_grad}

    def score(self, batch: MicroBatch) -> Tensor:
        """Sum of the log-probabilities of each sequence's targets, fp64 [sequences].

        Raises:
            RunFailed: OutOfMemory.
            AttentionUnsupported: the model cannot do the level that `batch` was made for.
        """
        with in_memory(batch, self.device):
            return torch.stack([self.score_pass(one, batch.sequences) for one in batch.passes]).sum(0)

    def score_pass(self, one: Pass, sequences: int) -> Tensor:
        """The same for one pass of a micro-batch of `sequences`; 0 for those that are not in it.

        Raises:
            OutOfMemoryError.
        """
        one = one.to(self.device)
        self._attend(self.base.attention if one.layout is None else PREF_VARLEN)
        placed = {"position_ids": one.position_ids, **one.layout.arguments()} if one.layout else {}
        with self._autocast():
            output = self.backbone(input_ids=one.input_ids, use_cache=False, **placed)
            states = output.last_hidden_state[0].index_select(0, one.predictors)
            return sequence_logps(states, self.head, one.targets, one.sequence, sequences)

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

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def training(self, on: bool) -> None:
        """Adapter dropout on or off; the base has none."""
        self.root.train(on)

    def save(self, folder: Path) -> None:
        """Write the trained weights with their configuration, as PEFT or transformers read them."""
        if isinstance(self.root, PeftModel):
            _save_adapter(self.root, folder)
        else:
            _save_model(self.root, self.base, folder)


@contextmanager
def in_memory(batch: MicroBatch, device: torch.device) -> Iterator[None]:
    """Too little memory for a pass over `batch`, as a cause.

    Raises:
        RunFailed: OutOfMemory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise failed(FailureCode.OUT_OF_MEMORY, tokens=batch.tokens, device=device.type) from error


def choose_device(gpus: int) -> torch.device:
    """The GPU if the job has one, else the CPU.

    Raises:
        RunFailed: GpuMissing: no GPU is visible, or none that computes in bf16.
    """
    if gpus == 0:
        return torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 0
    if found < gpus:
        raise failed(FailureCode.GPU_MISSING, value=gpus, found=found)
    return torch.device("cuda", 0)


def load_policy(
    start: StartFolders, kind: TrainingKind, lora: LoraConfig | None, seed: int, device: torch.device
) -> Policy:
    """The starting weights, ready to train. A new adapter is drawn from `seed` and changes nothing at first.

    Raises:
        RunFailed: ModelUnsupported, AdapterModulesUnknown, CheckpointMissing.
    """
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu and kind is TrainingKind.LORA else torch.float32
    base = load_base(start.base, start.base_uri, dtype, device)
    root: PeftModel | PreTrainedModel
    if lora is None:
        root = _merged(base.causal, start.adapter) if start.adapter else base.causal
        root.requires_grad_(True)
        base = replace(base, causal=root)
    elif start.adapter is not None:
        root = _continued(base.causal, start, lora)
    else:
        root = _adapted(base.causal, start, lora, seed)
    causal = base.causal
    if gpu:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(root, causal.base_model, head_of(causal), base, device, kind)


def _adapted(causal: PreTrainedModel, start: StartFolders, lora: LoraConfig, seed: int) -> PeftModel:
    """A new adapter: A random from `seed`, B zero."""
    config = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank, a float is as good
        lora_dropout=lora.dropout,
        target_modules=_targets(causal, lora.trainable_modules),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with _quiet():
        model: Any = get_peft_model(causal, config)
    return _named(model, start)


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT calls what transformers has renamed, and says so to our users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _continued(causal: PreTrainedModel, start: StartFolders, lora: LoraConfig) -> PeftModel:
    """The adapter of an earlier job goes on, with this job's dropout."""
    config = _adapter_config(start.adapter)
    config.lora_dropout = lora.dropout
    with _quiet():
        model: Any = PeftModel.from_pretrained(causal, str(start.adapter), config=config, is_trainable=True)
    return _named(model, start)


def _named(model: PeftModel, start: StartFolders) -> PeftModel:
    """PEFT puts the folder of the base into the adapter's configuration; people need its public name."""
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = start.base_name, start.base_revision
    return model


def _merged(causal: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The base with an adapter added to its fp32 weights."""
    with _quiet():
        model: Any = PeftModel.from_pretrained(causal, str(adapter), config=_adapter_config(adapter))
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


def _adapter_config(adapter: Path | None) -> PeftLoraConfig:
    """Its configuration; PEFT would open a pickle where the safetensors file is missing, so that one has to be there.

    Raises:
        RunFailed: CheckpointMissing.
    """
    try:
        if adapter is None or not (adapter / ADAPTER_WEIGHTS).is_file():
            raise FileNotFoundError(ADAPTER_WEIGHTS)
        config = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError) as error:
        raise failed(FailureCode.CHECKPOINT_MISSING, uri=adapter) from error
    assert isinstance(config, PeftLoraConfig)
    return config


def _targets(causal: PreTrainedModel, wanted: tuple[str, ...]) -> list[str]:
    """Names of the layers that get an adapter, as PEFT matches them: by the end of the module's path.

    Raises:
        RunFailed: AdapterModulesUnknown.
    """
    linear = linear_layers(causal)
    known = sorted({path.rsplit(".", 1)[-1] for path in linear})
    targets: set[str] = set()
    for name in wanted:
        if name == ALL_LINEAR:
            targets.update(set(known) - ROUTERS)
        elif any(path == name or path.endswith(f".{name}") for path in linear):
            targets.add(name)
        else:
            shown = ", ".join(known[:MAX_NAMED_MODULES])
            raise failed(FailureCode.ADAPTER_MODULES_UNKNOWN, module=name, known=shown)
    return sorted(targets)


def linear_layers(causal: PreTrainedModel) -> list[str]:
    """Paths of every linear layer but the head."""
    head = causal.get_output_embeddings()
    return [path for path, module in causal.named_modules() if isinstance(module, nn.Linear) and module is not head]


def _save_adapter(model: PeftModel, folder: Path) -> None:
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in sorted(weights.items())}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")


def _save_model(model: PreTrainedModel, base: Base, folder: Path) -> None:
    """Full weights in the precision of the base, tied ones once, the configuration with its own dropouts again."""
    dtype = base.published_dtype
    cast: dict[int, Tensor] = {}
    weights = {}
    for name, tensor in model.state_dict().items():
        as_published = cast.get(tensor.data_ptr())
        if as_published is None or as_published.shape != tensor.shape:
            as_published = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
            cast[tensor.data_ptr()] = as_published
        weights[name] = as_published
    model.save_pretrained(folder, state_dict=weights)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | base.dropouts | {"dtype": str(dtype).removeprefix("torch.")}
    path.write_text(json.dumps(config, indent=2) + "\n")
