"""LoRA adapters: a new one, an earlier one that goes on, one merged for full training, and how they are saved.

Only plain LoRA on whole layers is made and taken up, because only that can be merged file by file afterwards.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.failures import FailureCode
from finetune_api.method import ALL_LINEAR
from finetune_api.trainer import LoraConfig
from finetune_trainer.failures import MALFORMED, RunFailed, failed
from finetune_trainer.files import ADAPTER_WEIGHTS
from finetune_trainer.step.fused import fuse
from finetune_trainer.step.weights import ADAPTER_CONFIG, StartFolders, vision_of

Layer = TypeVar("Layer")
ROUTERS = frozenset({"gate", "router"})
"""Linear layers that choose experts; an adapter on them would change which expert answers."""
MAX_NAMED_MODULES = 12
NOT_PLAIN = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters")
"""Options of PEFT that make an adapter more than scale * B @ A on whole layers."""


def new_adapter(
    causal: PreTrainedModel, start: StartFolders, lora: LoraConfig, seed: int, vision: bool = False
) -> PeftModel:
    """An adapter that changes nothing yet: A random from `seed`, B zero; on a vision encoder only with `vision`.

    Raises:
        RunFailed: ConfigInvalid, AdapterModulesUnknown, AdapterOnHead, AdapterInExperts.
    """
    layers = linear_layers(causal) if vision else without_vision(causal, linear_layers(causal))
    targets = _targets(causal, layers, lora.trainable_modules)
    named = {path: layer for path, layer in layers.items() if _names(targets, path)}
    if vision and not _reach_vision(causal, named):
        problem = "lora.trainableModules names no layer of the vision encoder: set it to false, or name one"
        raise failed(FailureCode.CONFIG_INVALID, field="trainVision", problem=problem)
    transposed = [isinstance(layer, Conv1D) for layer in named.values()]
    config = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank, a float is as good
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=_namesakes(causal, layers, targets),
        fan_in_fan_out=any(transposed),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with _quiet():
        model: Any = get_peft_model(causal, config)
    return _for_training(model, start)


def continued_adapter(
    causal: PreTrainedModel, start: StartFolders, lora: LoraConfig, vision: bool = False
) -> PeftModel:
    """The adapter of an earlier job, which goes on with this job's dropout; `vision` needs layers that it has there.

    Raises:
        RunFailed: CheckpointMissing, AdapterUnsupported.
    """
    model = _loaded(causal, start, dropout=lora.dropout, trainable=True)
    if vision and not _reach_vision(causal, adapted_layers(model)):
        problem = "trainVision is true, and it has no layers in the vision encoder: set it to false"
        raise failed(FailureCode.ADAPTER_UNSUPPORTED, uri=start.adapter, problem=problem)
    return _for_training(model, start)


def with_adapter_merged(causal: PreTrainedModel, start: StartFolders) -> PreTrainedModel:
    """The base with the adapter of an earlier job added to its weights, in the precision that these have.

    Raises:
        RunFailed: CheckpointMissing, AdapterUnsupported.
    """
    model: Any = with_adapter(causal, start)
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


def with_adapter(causal: PreTrainedModel, start: StartFolders) -> PeftModel:
    """The base with an adapter beside its weights, to be read and not trained.

    Raises:
        RunFailed: CheckpointMissing, AdapterUnsupported.
    """
    return _loaded(causal, start, dropout=0.0, trainable=False)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter as PEFT reads it, the same bytes for the same weights."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in sorted(_weights_of(model).items())}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")


def linear_layers(causal: PreTrainedModel) -> dict[str, nn.Module]:
    """Every linear layer but the head by its path; GPT-2's are transposed and called Conv1D."""
    head = causal.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)
    return {path: module for path, module in causal.named_modules() if isinstance(module, kinds) and module is not head}


def without_vision(causal: PreTrainedModel, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Those of `layers` that are in no vision encoder."""
    encoder = vision_of(causal)
    inside = set(encoder.modules()) if encoder is not None else set()
    return {path: layer for path, layer in layers.items() if layer not in inside}


def _reach_vision(causal: PreTrainedModel, layers: Mapping[str, Layer]) -> bool:
    """Whether some of `layers` are in a vision encoder."""
    return len(without_vision(causal, layers)) < len(layers)


def adapted_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The layers that have an adapter, by their path in the base model."""
    base = model.get_base_model()
    return {path: module for path, module in base.named_modules() if isinstance(module, LoraLayer)}


def _loaded(causal: PreTrainedModel, start: StartFolders, *, dropout: float, trainable: bool) -> PeftModel:
    """The base with the adapter of `start`, every tensor of which is used."""
    folder = start.adapter
    config = _adapter_config(folder)
    config.lora_dropout = dropout
    try:
        with _quiet():
            model: Any = PeftModel.from_pretrained(causal, str(folder), config=config, is_trainable=trainable)
        with safe_open(Path(str(folder)) / ADAPTER_WEIGHTS, "pt") as file:
            unused = set(file.keys()) ^ set(_weights_of(model))
    except (ValueError, RuntimeError, SafetensorError) as error:
        problem = f"it does not fit the base model {start.base_uri}: {str(error).strip().splitlines()[0]}"
        raise failed(FailureCode.ADAPTER_UNSUPPORTED, uri=folder, problem=problem) from error
    if unused:
        problem = f"it does not fit the base model {start.base_uri}: {min(unused)} is only in one of them"
        raise failed(FailureCode.ADAPTER_UNSUPPORTED, uri=folder, problem=problem)
    return model  # type: ignore[no-any-return]


def _weights_of(model: PeftModel) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return weights


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT calls what transformers has renamed and tells what it adjusts, of no use to our users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", ".*(fan_in_fan_out|missing adapter keys).*")
        yield


def _for_training(model: PeftModel, start: StartFolders) -> PeftModel:
    """Made fast, and named: PEFT puts the folder of the base into its configuration, people need the public name."""
    fuse(model)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = start.base_name, start.base_revision
    return model


def _adapter_config(folder: Path | None) -> PeftLoraConfig:
    """Its configuration. The safetensors file has to be there: without it PEFT would open a pickle."""
    if folder is None or not (folder / ADAPTER_WEIGHTS).is_file():
        raise failed(FailureCode.CHECKPOINT_MISSING, uri=folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except MALFORMED as error:
        damaged = f"its {ADAPTER_CONFIG} is missing or damaged"
        raise failed(FailureCode.ADAPTER_UNSUPPORTED, uri=folder, problem=damaged) from error
    if problem := _more_than_plain(config):
        raise failed(FailureCode.ADAPTER_UNSUPPORTED, uri=folder, problem=problem)
    assert isinstance(config, PeftLoraConfig)
    return config


def _more_than_plain(config: PeftConfig) -> str | None:
    if not isinstance(config, PeftLoraConfig):
        return f"it is no LoRA adapter but {getattr(config, 'peft_type', 'something else')}"
    if isinstance(config.target_modules, str):
        return f"its target_modules is the expression {config.target_modules}: list the names of the modules"
    used = [name for name in NOT_PLAIN if getattr(config, name)]
    if config.bias != "none":
        used.append("bias")
    return f"it uses {', '.join(used)}, which this version does not train" if used else None


def _targets(causal: PreTrainedModel, layers: dict[str, nn.Module], wanted: tuple[str, ...]) -> list[str]:
    """Names of the layers that get an adapter, as PEFT matches them: by the end of the module's path."""
    known = sorted({path.rsplit(".", 1)[-1] for path in layers})
    targets: set[str] = set()
    for name in wanted:
        if name == ALL_LINEAR:
            targets.update(last for last in known if last not in ROUTERS and not _means_experts(causal, last))
            continue
        if not _names([name], *layers):
            raise _no_layer(causal, name, known)
        if _means_experts(causal, name):
            raise failed(FailureCode.ADAPTER_IN_EXPERTS, module=name)
        targets.add(name)
    if not targets:
        raise _no_layer(causal, ALL_LINEAR, known)
    return sorted(targets)


def _names(targets: list[str], *paths: str) -> bool:
    """Whether one of `targets` means one of `paths`, as PEFT understands it."""
    return any(path == name or path.endswith(f".{name}") for name in targets for path in paths)


def _namesakes(causal: PreTrainedModel, layers: dict[str, nn.Module], targets: list[str]) -> str | None:
    """An expression for what is called like one of `targets` and is no layer for an adapter, such as the head."""
    paths = [path for path, _ in causal.named_modules() if _names(targets, path) and path not in layers]
    return "|".join(re.escape(path) for path in paths) or None


def _no_layer(causal: PreTrainedModel, name: str, known: list[str]) -> RunFailed:
    """Why `name` is none of the layers that can have an adapter."""
    head = causal.get_output_embeddings()
    on_head = any(module is head and _names([name], path) for path, module in causal.named_modules())
    code = FailureCode.ADAPTER_ON_HEAD if on_head else FailureCode.ADAPTER_MODULES_UNKNOWN
    return failed(code, module=name, known=", ".join(known[:MAX_NAMED_MODULES]) or "none")


def _means_experts(causal: PreTrainedModel, target: str) -> bool:
    """Whether PEFT would take the name for weights of fused experts, which are no layers.

    transformers 5 keeps the experts of many models in one parameter; PEFT then reads names of layers such as
    down_proj as parts of it, even where a dense layer or a shared expert has the same name.
    """
    trial = PeftLoraConfig(target_modules=[target])
    try:
        convert_peft_config_for_transformers(trial, causal, None)
    except ValueError:  # one part of a parameter into which two are fused
        return True
    return not trial.target_modules
