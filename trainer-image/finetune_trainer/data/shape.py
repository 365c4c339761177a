"""A model's dimensions, from its configuration and the shapes of its tensors alone: no weight is read.

The names of the tensors say what a layer is made of. A name that is not known here may be anything: such a model has no
shape rather than a wrong one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeAlias

Tensors: TypeAlias = Mapping[str, tuple[int, ...]]
"""Shape of every tensor in a model's files, by its name."""

IN_LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)\.(.+)")
EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.\d+\.(gate_proj|up_proj|down_proj|w1|w2|w3)")
NORMS = (
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    *("ln_1", "ln_2"),
)
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


class Input(Enum):
    """What a linear layer reads; those that read the same share it."""

    ATTENTION = auto()
    HEADS = auto()
    """What the heads give."""
    FEED = auto()
    PRODUCT = auto()
    """What the feed-forward network is at its widest."""


ROUTERS = ("mlp.gate", "block_sparse_moe.gate")
READ = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), Input.ATTENTION),
    **dict.fromkeys(("self_attn.qkv_proj", "attn.c_attn"), Input.ATTENTION),
    **dict.fromkeys(("self_attn.o_proj", "attn.c_proj"), Input.HEADS),
    **dict.fromkeys((*ROUTERS, "mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.c_fc"), Input.FEED),
    **dict.fromkeys(("mlp.down_proj", "mlp.c_proj"), Input.PRODUCT),
}
"""Every linear layer that is known, by its path in the layer, experts apart."""
TRANSPOSED = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""GPT-2 keeps them as [inputs, outputs]."""
FUSED = ("self_attn.qkv_proj", "attn.c_attn")
GATES = ("mlp.gate_proj", "mlp.gate_up_proj")
BUFFERS = ("attn.bias", "attn.masked_bias", "self_attn.rotary_emb.inv_freq")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
HEAD = "lm_head.weight"
OUTSIDE = (*EMBEDDINGS, "wpe.weight", "norm.weight", "ln_f.weight", "ln_f.bias", HEAD)
ACTIVATIONS = {"silu": 1, "gelu": 1, "gelu_pytorch_tanh": 1, "relu": 1, "gelu_new": 4}
"""Tensors of its width that each keeps for the backward pass."""


class Unknown(Exception):
    """The model is not of a kind whose memory can be told from its shape."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer."""

    name: str
    """Its path in the layer."""
    inputs: int
    outputs: int

    @property
    def last(self) -> str:
        """What lora.trainableModules calls it."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def read(self) -> Input:
        """What it reads."""
        return READ[self.name]


@dataclass(frozen=True, slots=True)
class Experts:
    """Feed-forward networks of which each token passes a few."""

    active: int
    """How many a token passes."""
    width: int
    parameters: int
    """Of all of them in a layer."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder whose layers are alike. Widths are numbers of a token."""

    layers: int
    hidden: int
    heads: int
    queries: int
    """All heads together."""
    keys: int
    """All key heads together; as many values."""
    linears: tuple[Linear, ...]
    """Of one layer, a router among them, experts not."""
    norms: int
    """Of one layer, each over the hidden width."""
    root_mean_square: bool
    """Else they are layer norms."""
    head_norms: bool
    """Queries and keys are normed too."""
    feed: int
    """Width of the dense feed-forward network; 0: experts take its place."""
    kept_by_activation: int
    experts: Experts | None
    vocabulary: int
    tied: bool
    """The head is the embedding."""
    parameters: int

    @property
    def head_width(self) -> int:
        """Numbers of one head."""
        return self.queries // self.heads

    @property
    def fused(self) -> bool:
        """Queries, keys and values come from one layer."""
        return any(linear.name in FUSED for linear in self.linears)

    @property
    def rotary(self) -> bool:
        """Queries and keys are turned by their position, which makes new tensors of them."""
        return not any(linear.name in TRANSPOSED for linear in self.linears)

    @property
    def gated(self) -> bool:
        """The feed-forward network has a gate."""
        return any(linear.name in GATES for linear in self.linears)

    @property
    def embedding(self) -> int:
        """Numbers of the embedding, and of the head."""
        return self.vocabulary * self.hidden

    @property
    def in_layers(self) -> int:
        """Weights of all layers together."""
        of_experts = self.experts.parameters if self.experts else 0
        return self.layers * (sum(linear.inputs * linear.outputs for linear in self.linears) + of_experts)


def shape_of(config: Mapping[str, Any], tensors: Tensors) -> Shape | None:
    """The shape of the model with this config.json; None where anything about it is not known here."""
    try:
        return _shape(config, tensors)
    except (Unknown, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _shape(config: Mapping[str, Any], tensors: Tensors) -> Shape:
    layers = _alike(tensors)
    layer, linears = layers[0], _linears(layers[0])
    if config.get("attn_logit_softcapping") is not None or config.get("quantization_config") is not None:
        raise Unknown
    outside = _outside(tensors)
    vocabulary, hidden = next(outside[name] for name in EMBEDDINGS if name in outside)
    tied = HEAD not in outside or bool(config.get("tie_word_embeddings", False))
    heads = int(config.get("num_attention_heads") or config["n_head"])
    queries = next(linear.inputs for linear in linears if linear.read is Input.HEADS)
    head_width = int(config.get("head_dim") or queries // heads)
    norms = sum(f"{name}.weight" in layer for name in NORMS)
    if norms not in (2, 4):
        raise Unknown
    return Shape(
        layers=len(layers),
        hidden=hidden,
        heads=heads,
        queries=queries,
        keys=head_width * int(config.get("num_key_value_heads") or heads),
        linears=linears,
        norms=norms,
        root_mean_square=not any(f"{name}.bias" in layer for name in NORMS),
        head_norms=f"{HEAD_NORMS[0]}.weight" in layer,
        feed=next((linear.inputs for linear in linears if linear.read is Input.PRODUCT), 0),
        kept_by_activation=ACTIVATIONS[_activation(config)],
        experts=_experts(config, layer),
        vocabulary=vocabulary,
        tied=tied,
        parameters=_parameters(tensors) - (hidden * vocabulary if tied and HEAD in outside else 0),
    )


def _alike(tensors: Tensors) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of every layer by their path in it, the same in all."""
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        if found := IN_LAYER.fullmatch(name):
            layers.setdefault(int(found[1]), {})[found[2]] = shape
    known = {f"{name}.{kind}" for name in (*READ, *NORMS, *HEAD_NORMS) for kind in ("weight", "bias")}
    first = {name: shape for name, shape in layers[0].items() if name not in BUFFERS}
    for layer in layers.values():
        if {name: shape for name, shape in layer.items() if name not in BUFFERS} != first:
            raise Unknown
    if any(name not in known and not EXPERT.fullmatch(name.removesuffix(".weight")) for name in first):
        raise Unknown
    return [first] * len(layers)


def _outside(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Tensors that are in no layer, by their last two names."""
    outside = {".".join(n.split(".")[-2:]): shape for n, shape in tensors.items() if not IN_LAYER.fullmatch(n)}
    if any(name not in OUTSIDE for name in outside):
        raise Unknown
    return outside


def _linears(layer: Tensors) -> tuple[Linear, ...]:
    found = []
    for name in READ:
        if (shape := layer.get(f"{name}.weight")) is not None:
            outputs, inputs = reversed(shape) if name in TRANSPOSED else shape
            found.append(Linear(name, inputs, outputs))
    return tuple(found)


def _experts(config: Mapping[str, Any], layer: Tensors) -> Experts | None:
    matrices = {name: shape for name, shape in layer.items() if EXPERT.fullmatch(name.removesuffix(".weight"))}
    if not matrices:
        return None
    first = next(shape for name, shape in matrices.items() if name.endswith(("gate_proj.weight", "w1.weight")))
    return Experts(int(config["num_experts_per_tok"]), first[0], _parameters(matrices))


def _activation(config: Mapping[str, Any]) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function")
    return str(next(config[name] for name in names if config.get(name) is not None))


def _parameters(tensors: Tensors) -> int:
    buffers = tuple(f".{name}" for name in BUFFERS)
    return sum(math.prod(shape) for name, shape in tensors.items() if not name.endswith(buffers))
