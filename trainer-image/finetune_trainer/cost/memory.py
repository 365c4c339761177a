"""Bytes that an optimiser step takes in a process, from a model's shape: what the trainer will do, added up.

Every formula counts what PyTorch keeps for the backward pass of transformers' layers, with adapters on them. A GPU
computes in bf16 under autocast, which narrows what is not narrow yet; a CPU computes in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from finetune_api.method import ALL_LINEAR
from finetune_api.trainer import LoraConfig
from finetune_trainer.cost.load import Load
from finetune_trainer.data.shape import ROUTERS, TRANSPOSED, Input, Linear, Shape
from finetune_trainer.step.recipe import LOGITS_BYTES, OPTIMIZER_STATES

WIDE, NARROW, INTEGER = 4, 2, 8
"""Bytes of a number."""
PLACES = 4
"""Integers that say which expert a token passes, and in which order."""
CONTEXT = 1024**3
"""What a GPU's driver and libraries take for themselves, and what lies unused between tensors."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the moment of a step that takes most."""

    weights: int
    """With the copies in which a GPU computes."""
    gradients: int
    optimizer: int
    activations: int
    """What is kept for the backward pass."""
    temporaries: int
    """A chunk of logits, or what one layer's backward pass takes beside that, whichever is more."""
    overhead: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained."""

    shape: Shape
    lora: LoraConfig | None
    """None: every weight."""
    gpu: bool
    shards: int = 1
    """Processes over which the model's weights are spread, and gradients and optimizer state with those that are
    trained; a layer is whole only while it computes."""

    @property
    def computed(self) -> int:
        """Bytes of a number that is computed."""
        return NARROW if self.gpu else WIDE

    @property
    def stored(self) -> int:
        """Bytes of a weight, and of a number between layers."""
        return NARROW if self.gpu and self.lora else WIDE

    @property
    def fused(self) -> bool:
        """Whether adapters are computed in one operation with their layers, which keeps nothing narrow of its own."""
        known = all(linear.name not in TRANSPOSED for linear in self.shape.linears)
        return self.lora is not None and self.lora.dropout == 0 and known

    @property
    def kept(self) -> tuple[Linear, ...]:
        """The layer's linear layers that keep their input, to get a gradient from it."""
        return tuple(linear for linear in self.shape.linears if self._adapted(linear))

    @property
    def trained(self) -> int:
        """Weights that move."""
        if self.lora is None:
            return self.shape.parameters
        return self.shape.layers * self.lora.rank * sum(linear.inputs + linear.outputs for linear in self.kept)

    def _adapted(self, linear: Linear) -> bool:
        if self.lora is None:
            return True
        modules = self.lora.trainable_modules
        return linear.last in modules or (ALL_LINEAR in modules and linear.name not in ROUTERS)


def memory(training: Training, load: Load, *, checkpointing: bool) -> Memory:
    """What a step over micro-batches of `load` takes; with `checkpointing` activations are computed again."""
    layer = _layer(training, load)
    activations = training.shape.layers * (_between(training, load) if checkpointing else layer)
    again = layer if checkpointing else 0
    at_head = _last(training, load) + _head(training, load)
    in_layer = again + _backward(training, load)
    at_embedding = _embedded(training) - activations
    temporaries = max(at_head, in_layer, at_embedding) + _gathered(training)
    return replace(_held(training), activations=activations, temporaries=temporaries)


def _held(training: Training) -> Memory:
    """What is there all the time: weights, gradients of earlier micro-batches, optimizer, libraries."""
    shape, full, shards = training.shape, training.lora is None, training.shards
    frozen = 0 if full else shape.parameters * training.stored // shards
    own = training.trained * WIDE // (shards if full else 1)
    cast = training.trained if not full else shape.in_layers if shards == 1 else 0
    narrow = cast * NARROW if training.gpu and not training.fused else 0
    overhead = CONTEXT if training.gpu else 0
    return Memory(frozen + own + narrow, own, OPTIMIZER_STATES * own, 0, 0, overhead)


def _gathered(training: Training) -> int:
    """Of spread weights those that are whole for a while: embedding and head, a layer and the next one; and the
    gradient of a layer, before it is spread and as it is summed."""
    if training.shards == 1:
        return 0
    shape = training.shape
    layer = shape.in_layers // shape.layers
    whole = (shape.parameters - shape.in_layers + 2 * layer) * training.computed
    return whole + (layer * (training.computed + WIDE) if training.lora is None else 0)


def _between(training: Training, load: Load) -> int:
    """A layer's input."""
    return load.tokens * training.shape.hidden * training.stored


def _layer(training: Training, load: Load) -> int:
    """What a layer keeps for its backward pass."""
    per_token = _norms(training) + _inputs(training) + _feed(training)
    return load.tokens * per_token + _attention(training, load)


def _norms(training: Training) -> int:
    """A root-mean-square norm keeps its input in fp32, and before its own weight again if that is trained."""
    shape = training.shape
    if not shape.root_mean_square:
        return shape.norms * (shape.hidden * training.stored + 2 * WIDE)
    trained = training.lora is None
    over_hidden = shape.norms * (shape.hidden * (2 if trained else 1) + 1) * WIDE
    if not shape.head_norms:
        return over_hidden
    width = shape.queries + shape.keys
    return over_hidden + (width + width // shape.head_width) * WIDE + (width * training.computed if trained else 0)


def _inputs(training: Training) -> int:
    """The inputs of linear layers: one for all that have it in common.

    Under autocast what the heads give is kept as such, but where queries, keys and values come from one layer; and
    where all weights are trained, or PEFT computes an adapter, each layer has a narrow copy of its own.
    """
    lora, shape = training.lora, training.shape
    rank = lora.rank * len(training.kept) if lora else 0
    if training.gpu and not training.fused:
        widths = [linear.inputs for linear in training.kept if lora or linear.read is not Input.HEADS]
    else:
        common = {linear.read: linear.inputs for linear in training.kept}
        as_given = Input.HEADS if training.gpu and not shape.fused else None
        widths = [width for read, width in common.items() if read is not as_given]
    return training.computed * (sum(widths) + rank)


def _feed(training: Training) -> int:
    """What the feed-forward network keeps between its linear layers."""
    shape = training.shape
    if shape.experts is None:
        return (shape.kept_by_activation + 2 * shape.gated) * shape.feed * training.computed
    width = 3 * shape.experts.width + shape.hidden
    trained = shape.hidden + shape.experts.width if training.lora is None else 0
    return shape.experts.active * ((width + trained) * training.computed + PLACES * INTEGER)


def _attention(training: Training, load: Load) -> int:
    """Queries, keys, values, what the heads give, and the logarithms of their sums; no square of scores."""
    shape = training.shape
    whole = shape.queries + shape.keys if shape.fused and shape.rotary else 0
    per_token = (2 * shape.queries + 2 * shape.keys + whole) * training.computed + shape.heads * WIDE
    repeated = load.repeated * 2 * shape.keys * training.computed
    return load.tokens * per_token + repeated + (0 if training.gpu else load.hidden_from * WIDE)


def _last(training: Training, load: Load) -> int:
    """What the last norm keeps, and the states that it gives."""
    shape, trained = training.shape, training.lora is None
    norm = shape.hidden * (WIDE if shape.root_mean_square else training.stored) * (1 + trained)
    return load.tokens * (norm + shape.hidden * training.stored)


def _head(training: Training, load: Load) -> int:
    """Of the head: the states of the targets, and at its worst moment a chunk of logits and what becomes of it."""
    shape, trained = training.shape, training.lora is None
    states = load.targets * shape.hidden * (training.stored + training.computed)
    chunk = min(load.targets, max(1, LOGITS_BYTES // (2 * WIDE * shape.vocabulary)))
    logits = chunk * shape.vocabulary * (2 * WIDE + (training.computed if training.gpu and trained else 0))
    by_weight = shape.embedding * WIDE * (2 if training.gpu else 1) if trained else 0
    projection = shape.embedding * NARROW if trained and training.gpu else 0
    return states + logits + by_weight + projection


def _backward(training: Training, load: Load) -> int:
    """What the backward pass of a feed-forward network takes at once beside what was kept for it."""
    shape = training.shape
    width = shape.feed or (shape.experts.active * (shape.experts.width + shape.hidden) if shape.experts else 0)
    largest = max(shape.embedding if shape.tied else 0, max(linear.inputs * linear.outputs for linear in shape.linears))
    by_weight = largest * WIDE if training.lora is None else 0
    return load.tokens * (2 * width * training.computed + 2 * shape.hidden * training.stored) + by_weight


def _embedded(training: Training) -> int:
    """What the gradient of the embedding takes, last of all: of a tied one the head's part and the sum beside it."""
    if training.lora is not None:
        return 0
    return training.shape.embedding * WIDE * (3 if training.shape.tied else 1)
