"""What a job will take, reckoned by the prepare step before any GPU is asked for."""

from __future__ import annotations

from finetune_api.base import ApiModel, Flag, Integer, Number


class MemoryEstimate(ApiModel):
    """Bytes at the moment of a step that takes most, in each GPU; in the pod's memory where it trains on the CPU."""

    weights: Integer
    """The model, its adapter, and copies in the precision in which a GPU computes."""
    gradients: Integer
    """Of what is trained."""
    optimizer: Integer
    """AdamW's two moments."""
    activations: Integer
    """What is kept for the backward pass."""
    temporaries: Integer
    """A chunk of logits, or what the backward pass of one layer takes, whichever is more."""
    overhead: Integer = 0
    """Driver and libraries of a GPU, and what lies unused between tensors."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.model_dump().values())


class Estimate(ApiModel):
    """What a job will take. Tokens are exact; the rest is absent where the model is of a kind that is not known."""

    train_tokens: Integer
    """Tokens of the training file times nEpochs. The prompt of a pair counts once, as it is computed once."""
    eval_tokens: Integer = 0
    """Tokens of the validation file times nEvals; the baseline before the first step is not counted."""
    price: Number | None = None
    """(trainTokens + evalTokens) / 1,000,000 * the model's pricePerMillionTokens in the runtime, in its currency."""
    train_petaflop: Number | None = None
    """Floating-point operations of training, in 10^15: matrix products of every epoch and, where pairs are compared
    with a reference, of scoring it once."""
    gpu_memory_bytes: Integer | None = None
    """The least memory of each GPU with which the job runs: the longest row alone, activations computed again."""
    fast_gpu_memory_bytes: Integer | None = None
    """Memory of each GPU with which nothing is computed again: the longest row alone, activations kept. What is beyond
    that lets more rows share a micro-batch."""
    memory: MemoryEstimate | None = None
    """What gpuMemoryBytes is made of; on the CPU, what tensors take in the pod's memory."""
    fits: Flag | None = None
    """Whether gpuMemoryBytes fits into the runtime's gpuMemory. False ends the job before a GPU is asked for. Absent:
    the runtime does not state its gpuMemory, or it is too close to tell."""
