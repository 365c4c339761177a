"""The shape of a model as prepare reads it: from its configuration and the headers of files that were written."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel

from finetune_trainer.data.model import tensors_in
from finetune_trainer.data.shape import Shape, shape_of


def read_shape(model: PreTrainedModel, folder: Path) -> Shape | None:
    """Of `model`, saved into `folder`."""
    model.save_pretrained(folder)
    tensors = {name: shape for file in sorted(folder.glob("*.safetensors")) for name, shape in tensors_in(file).items()}
    return shape_of(json.loads((folder / "config.json").read_text()), tensors)
