"""Rows, files of rows and a model without a network behind it, for tests of what happens before training."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiny import CHAT_TEMPLATE, save_tokenizer

LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n\n{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}"
)
"""An answer gets an empty thought while it is the last message; asked to answer, the model is to think."""
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
GENERATION = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|end|>\n{% endgeneration %}{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict:
    return {"role": "system", "content": content}


def preference(prompt: str = "Which?", preferred: str = "this", non_preferred: str = "that") -> dict:
    return {
        "input": {"messages": [user(prompt)]},
        "preferred_output": [assistant(preferred)],
        "non_preferred_output": [assistant(non_preferred)],
    }


def conversation(*contents: str) -> dict:
    """User and assistant in turns."""
    return {"messages": [(assistant if index % 2 else user)(text) for index, text in enumerate(contents)]}


def changed(row: dict, path: Sequence[str | int], value: object) -> dict:
    """The row with one field replaced; a value of ... removes it."""
    row = copy.deepcopy(row)
    *parents, last = path
    inner = row
    for step in parents:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return row


def write_rows(path: Path, *rows: object) -> Path:
    """One JSON line per row; bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def save_light_model(folder: Path, template: str | None = CHAT_TEMPLATE, **config: object) -> Path:
    """A model folder as far as data is concerned, made without torch: configuration, tokenizer, a few weights.

    `config` replaces entries of config.json; `template` None leaves the tokenizer without one.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)
    if template is None:
        (folder / "chat_template.jinja").unlink()
    else:
        (folder / "chat_template.jinja").write_text(template)
    described = {"model_type": "llama", "vocab_size": 320, "max_position_embeddings": 512, **config}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in described.items() if v is not None}))
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)}, folder / "model.safetensors")
    return folder


LIGHT_PARAMETERS = 17
