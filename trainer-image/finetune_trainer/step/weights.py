"""Starting weights: a base model from a folder, loaded whole or refused, in the precision that it is trained in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from finetune_api.failures import FailureCode
from finetune_trainer.failures import MALFORMED, failed
from finetune_trainer.remote_code import brings_code, refuse_code
from finetune_trainer.step.logps import Head
from finetune_trainer.vision import VISION_MODELS

ADAPTER_CONFIG = "adapter_config.json"
IS_ADAPTER = f"its folder has an {ADAPTER_CONFIG}, so it is an adapter: name the model that it belongs to"
Dropouts: TypeAlias = dict[str, Any]
"""Dropouts of a configuration by name, those of its parts as objects in it."""
PROBE_TOKENS = 8
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference of a logit, as a share of the largest logit."""


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
    remote_code: bool = False
    """The base's own Python code may be run."""

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer and template that go with the weights: a published adapter brings its own."""
        own = self.adapter is not None and (self.adapter / "tokenizer.json").is_file()
        return self.adapter if self.adapter and own else self.base


@dataclass(frozen=True, slots=True)
class Base:
    """A base model as loaded."""

    uri: str
    causal: PreTrainedModel
    dropouts: Dropouts
    """Dropouts of its configuration, which are set to 0 for training and belong back into what is published."""
    published_dtype: torch.dtype
    """Precision of the files, in which full weights are published too."""
    attention: str
    """The attention that transformers loads the model with."""


def load_base(
    folder: Path, uri: str, dtype: torch.dtype | None, device: torch.device, *, remote_code: bool = False
) -> Base:
    """Load a causal language model from safetensors files; `uri` names it in errors, no `dtype` is that of the files.

    Its own code is run only with `remote_code`, and only where transformers does not know the model.

    Raises:
        RunFailed: RemoteCode; ModelUnsupported: an architecture that transformers does not know, quantised or missing
            weights, a head that is more than a projection.
    """
    config, dropouts = _config(folder, uri, remote_code)
    published_dtype = config.dtype or torch.float32
    try:
        loaded: Any = _class_of(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype or published_dtype,
            use_safetensors=True,
            trust_remote_code=_trusts(folder, remote_code),
            local_files_only=True,
            output_loading_info=True,
        )
    except (*MALFORMED, ImportError, SafetensorError, StrictDataclassError) as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=_first_line(error)) from error
    causal, loading = loaded
    if problem := _problem(causal, loading):
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=problem)
    causal.to(device)
    if problem := head_problem(causal):
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=problem)
    return Base(uri, causal, dropouts, published_dtype, causal.config._attn_implementation)


def empty_base(folder: Path, uri: str, dtype: torch.dtype, *, remote_code: bool = False) -> Base:
    """The same model without any weights: its parameters and buffers take no memory (device `meta`).

    Raises:
        RunFailed: RemoteCode; ModelUnsupported.
    """
    config, dropouts = _config(folder, uri, remote_code)
    published_dtype = config.dtype or torch.float32
    try:
        with torch.device("meta"):
            causal = _class_of(config).from_config(config, dtype=dtype, trust_remote_code=_trusts(folder, remote_code))
    except (*MALFORMED, ImportError) as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=_first_line(error)) from error
    return Base(uri, causal, dropouts, published_dtype, causal.config._attn_implementation)


def _config(folder: Path, uri: str, remote_code: bool) -> tuple[Any, Dropouts]:
    """The configuration, with every dropout switched off, and what the dropouts were."""
    refuse_code(uri, folder, remote_code)
    if (folder / ADAPTER_CONFIG).is_file():  # transformers would load it too, from whatever base it names
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=IS_ADAPTER)
    try:
        trust = _trusts(folder, remote_code)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        return config, _switch_off_dropouts(config)
    except (*MALFORMED, ImportError, StrictDataclassError) as error:
        raise failed(FailureCode.MODEL_UNSUPPORTED, uri=uri, problem=_first_line(error)) from error


def _class_of(config: Any) -> Any:
    """What loads the model: one with a vision encoder is no causal language model by transformers' book."""
    return AutoModelForImageTextToText if config.model_type in VISION_MODELS else AutoModelForCausalLM


def _trusts(folder: Path, remote_code: bool) -> bool:
    return remote_code and brings_code(folder)


def _switch_off_dropouts(config: Any) -> Dropouts:
    """Set every dropout of the configuration, and of its parts, to 0 and return what they were."""
    names = [name for name in config.to_dict() if "dropout" in name or name.endswith("pdrop")]
    before = {name: getattr(config, name) for name in names}
    changed: Dropouts = {name: value for name, value in before.items() if isinstance(value, float) and value > 0}
    for name in changed:
        setattr(config, name, 0.0)
    parts = {name: part for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
    inside = {name: _switch_off_dropouts(part) for name, part in parts.items()}
    return changed | {name: found for name, found in inside.items() if found}


def with_dropouts(config: dict[str, Any], dropouts: Dropouts) -> dict[str, Any]:
    """A config.json with these dropouts in it and in its parts."""
    parts = {name: with_dropouts(config[name], part) for name, part in dropouts.items() if isinstance(part, dict)}
    return config | dropouts | parts


def _problem(causal: PreTrainedModel, loading: dict[str, Any]) -> str | None:
    if missing := sorted(loading["missing_keys"]):
        return f"{len(missing)} weights are missing from its files, the first is {missing[0]}"
    if getattr(causal.config, "quantization_config", None) is not None:
        return "its weights are quantised; choose the unquantised model"
    if backbone_of(causal) is causal or not isinstance(causal.get_output_embeddings(), nn.Linear):
        return "it is no causal language model with a separate head"
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def head_of(causal: PreTrainedModel) -> Head:
    """The output projection with the scale and soft-cap that the configuration asks for."""
    config = causal.config.get_text_config()
    scale = 1.0
    if (factor := getattr(config, "logit_scale", None)) is not None:
        scale *= factor
    if (factor := getattr(config, "lm_head_multiplier", None)) is not None:
        scale *= factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        scale /= divisor
    softcap = getattr(config, "final_logit_softcapping", None)
    module = causal.get_output_embeddings()
    assert isinstance(module, nn.Linear)
    return Head(module, scale=scale, softcap=softcap)


def backbone_of(causal: PreTrainedModel) -> nn.Module:
    """The model without its head, whose output is the states that the head reads."""
    inner = (child for child in causal.children() if isinstance(child, PreTrainedModel))
    return next(inner, causal) if causal.base_model is causal else causal.base_model


def vision_of(causal: PreTrainedModel) -> nn.Module | None:
    """The vision encoder with its projection into the language model; None where there is none that is known here."""
    if causal.config.model_type not in VISION_MODELS:
        return None
    encoder: nn.Module = causal.get_encoder(modality="image")
    return encoder


@torch.no_grad()
def head_problem(causal: PreTrainedModel) -> str | None:
    """Why backbone and `head_of` together do not give the model's own logits, on a few tokens; None: they do."""
    causal.eval()
    head = head_of(causal)
    tokens = (torch.arange(PROBE_TOKENS, device=causal.device) % head.vocabulary)[None]
    stock = causal(input_ids=tokens, use_cache=False).logits[0]
    states = backbone_of(causal)(input_ids=tokens, use_cache=False).last_hidden_state[0]
    ours = head.logits(states, head.module.weight)
    if not stock.isfinite().all():
        dtype = str(causal.dtype).removeprefix("torch.")
        return f"its logits are not finite: its weights are damaged, or do not compute in {dtype}"
    tolerance = PROBE_TOLERANCE.get(causal.dtype, PROBE_TOLERANCE[torch.bfloat16])
    if stock.shape != ours.shape or (stock - ours).abs().max() > tolerance * stock.abs().max():
        return "its logits are not what its head gives, so log-probabilities would be wrong"
    return None
