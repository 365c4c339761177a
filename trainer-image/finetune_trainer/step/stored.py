"""Where the adapted layers of a model lie in its files.

transformers 5 renames tensors while it loads them and fuses some; a name in a file is no name of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from finetune_api.failures import FailureCode
from finetune_trainer.failures import failed
from finetune_trainer.files import weight_files
from finetune_trainer.step.adapter import adapted_layers


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """The weight of one layer."""

    tensor: str
    """Its name in the files."""
    transposed: bool
    """Whether it is kept as [in, out], as GPT-2 does."""


def stored_layers(model: PeftModel, folder: Path) -> dict[str, StoredLayer]:
    """The adapted layers of `model`, loaded from `folder`, by their path.

    Raises:
        RunFailed: ConfigInvalid: the weight of a layer is in the files only as a part of another tensor, or twice.
    """
    causal: PreTrainedModel = model.get_base_model()  # type: ignore[assignment]
    names = _names_in_files(causal, folder)
    layers = {}
    for path, layer in adapted_layers(model).items():
        found = names.get(f"{path}.weight", [])
        if len(found) != 1:
            where = f"in {len(found)} tensors" if found else "only as a part of another tensor"
            problem = f"the model's files hold the weight of {path} {where}, so an adapter cannot be merged into them"
            raise failed(FailureCode.CONFIG_INVALID, field="output.merge", problem=problem)
        layers[path] = StoredLayer(found[0], isinstance(layer.get_base_layer(), Conv1D))
    return layers


def _names_in_files(causal: PreTrainedModel, folder: Path) -> dict[str, list[str]]:
    """Name of a parameter to the names, in the files, of the tensors that are loaded into it unchanged."""
    parameters = {name.replace(".base_layer.", "."): value for name, value in causal.state_dict().items()}
    conversions = get_model_conversion_mapping(causal)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    prefix = causal.base_model_prefix
    found: dict[str, list[str]] = {}
    for name in _tensors(folder):
        loaded_as, converted = rename_source_key(name, renamings, converters, prefix, parameters)
        if loaded_as not in parameters and name in parameters:
            loaded_as, converted = rename_source_key(name, [], [], prefix, parameters)
        if converted is None:
            found.setdefault(loaded_as, []).append(name)
    return found


def _tensors(folder: Path) -> Iterator[str]:
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            yield from file.keys()
