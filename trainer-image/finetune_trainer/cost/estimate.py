"""What a job will take, from its configuration, the model's shape and the lengths of its rows; and whether that fits.

A job is refused here only if it cannot run: the smallest way in which the trainer could compute it (activations
computed again, one row at a time, a pair as two passes) is more than a GPU has, by more than this estimate may err.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from math import ceil

from finetune_api.estimate import Estimate, MemoryEstimate
from finetune_api.failures import FailureCode
from finetune_api.method import ALL_LINEAR, DEFAULT_LORA_RANK, MethodType
from finetune_api.trainer import LoraConfig, TrainerConfig
from finetune_trainer.cost.flops import Work, scoring_flops, training_flops
from finetune_trainer.cost.load import Load, Rows
from finetune_trainer.cost.memory import Memory, Training, memory
from finetune_trainer.data.shape import Shape
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.step.recipe import CPU_TOKENS, FROZEN_SHARE, ROW_ALONE, SHORTEST

MILLION, PETA, GIB = 10**6, 10**15, 1024**3
MOST_GPUS = 1024
MARGIN = 1.15
"""Of the true peak, at most so much is estimated."""
USUAL_LORA = LoraConfig(rank=DEFAULT_LORA_RANK, alpha=1.0, dropout=0.0, trainable_modules=(ALL_LINEAR,))
"""What full fine-tuning is compared with."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a job computes, as far as it is known."""

    config: TrainerConfig
    rows: Rows
    validation_tokens: int
    shape: Shape | None
    """None: only tokens are known."""

    @property
    def processes(self) -> int:
        """How many train as one."""
        return self.config.nodes * max(1, self.config.gpus)

    @property
    def training(self) -> Training | None:
        """How it trains: spread over its processes where that is due."""
        if self.shape is None:
            return None
        whole = Training(self.shape, self.config.lora, self.config.gpus > 0)
        memory_of_gpu = self.config.gpu_memory_bytes or math.inf
        spread = whole.lora is None or self.shape.parameters * whole.stored > FROZEN_SHARE * memory_of_gpu
        return replace(whole, shards=self.processes) if spread else whole


def estimate(job: Job) -> Estimate:
    """Tokens and price of a job and, of a model that is known, operations and memory."""
    config, training = job.config, job.training
    tokens = Estimate(
        train_tokens=job.rows.tokens * config.hyperparameters.n_epochs,
        eval_tokens=job.validation_tokens * config.evaluation.n_evals,
    )
    told = tokens.model_copy(update={"price": _price(tokens, config.price_per_million_tokens)})
    if training is None:
        return told
    told = told.model_copy(update={"train_petaflop": _flops(job, training) / PETA})
    return told.model_copy(update=_on_gpu(job, training) if training.gpu else _on_cpu(job, training))


def misfit(job: Job) -> RunFailed | None:
    """Why the job cannot run on the runtime's GPUs, with what would; None: it may."""
    training, limit = job.training, job.config.gpu_memory_bytes
    if training is None or limit is None or not training.gpu:
        return None
    row = job.rows.longest
    load = job.rows.alone(row)
    least = memory(training, load, checkpointing=True)
    if not _impossible(least, limit):
        return None
    sizes = {"needed": _gib(least.total), "has": _gib(limit)}
    if longest := _longest(training, load, limit):
        line = int(job.rows.lines[row])
        return failed(FailureCode.GPU_SMALL_FOR_ROW, line=line, tokens=load.tokens, fits=longest, **sizes)
    if training.lora is not None:
        return failed(FailureCode.GPU_SMALL_FOR_MODEL, **sizes)
    lora = memory(replace(training, lora=USUAL_LORA, shards=1), load, checkpointing=True)
    enough = _enough(training, load, limit) or "more"
    return failed(FailureCode.GPU_SMALL_FOR_FULL, lora=_gib(lora.total), gpus=enough, given=training.shards, **sizes)


def _price(tokens: Estimate, rate: float | None) -> float | None:
    return None if rate is None else (tokens.train_tokens + tokens.eval_tokens) / MILLION * rate


def _flops(job: Job, training: Training) -> int:
    """Of all epochs, and of the reference where there is one."""
    method, rows = job.config.training_method, job.rows
    work = Work(rows.tokens, int(rows.targets.sum()), rows.meetings)
    compares = method.type is MethodType.DPO and not method.preference.reference_free
    epochs = job.config.hyperparameters.n_epochs * training_flops(training, work)
    return epochs + (scoring_flops(training, work) if compares else 0)


def _on_gpu(job: Job, training: Training) -> dict[str, object]:
    """The smallest way of the trainer, and the one in which it does nothing twice."""
    longest = job.rows.longest
    least = memory(training, job.rows.alone(longest), checkpointing=True)
    fast = memory(training, job.rows.packed(ROW_ALONE, 1), checkpointing=False)
    return {
        "gpu_memory_bytes": least.total,
        "fast_gpu_memory_bytes": max(least.total, fast.total),
        "memory": MemoryEstimate(**asdict(least)),
        "fits": _fits(least, job.config.gpu_memory_bytes),
    }


def _on_cpu(job: Job, training: Training) -> dict[str, object]:
    """The way of the trainer where free memory cannot be known."""
    config = job.config
    most = CPU_TOKENS if config.hyperparameters.packing else ROW_ALONE
    load = job.rows.packed(most, ceil(config.batch_size / job.processes))
    return {"memory": MemoryEstimate(**asdict(memory(training, load, checkpointing=False)))}


def _fits(least: Memory, limit: int | None) -> bool | None:
    if limit is None:
        return None
    return True if least.total <= limit else False if _impossible(least, limit) else None


def _impossible(least: Memory, limit: int) -> bool:
    """More than `limit` bytes, whatever the libraries take and however wrong the estimate may be."""
    return (least.total - least.overhead) / MARGIN > limit


def _longest(training: Training, load: Load, limit: int) -> int | None:
    """Tokens of the longest sequence that fits; None: no weights would."""
    fits, fails = SHORTEST - 1, load.tokens
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if memory(training, load * (middle / load.tokens), checkpointing=True).total <= limit:
            fits = middle
        else:
            fails = middle
    return fits if fits >= SHORTEST else None


def _enough(training: Training, load: Load, limit: int) -> int | None:
    """GPUs over which it would fit, in powers of 2; None: no number of them that a job may have."""
    for shards in (1 << power for power in range(1, MOST_GPUS.bit_length())):
        if memory(replace(training, shards=shards), load, checkpointing=True).total <= limit:
            return shards
    return None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
