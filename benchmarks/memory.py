"""Whether a step takes the memory and does the operations that prepare reckons: `make bench-memory`.

Random weights of real architectures, one after the other, none of which takes less than 1 GiB. On a CPU the truth is
the most bytes of tensors that live at the same time, on a GPU what its allocator had handed out at the most. A shape
whose estimate is off by more than is promised ends the run with 1.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from arms import pairs_of, temporary, versions
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from finetune_api.trainer import LoraConfig
from finetune_trainer.cost.flops import Work, training_flops
from finetune_trainer.cost.load import Rows
from finetune_trainer.cost.memory import Training, memory
from finetune_trainer.step.batch import pair_batch
from finetune_trainer.step.recipe import Level

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from live import random_policy, step_peak
from shapes import read_shape

LEAST, MOST = 0.95, 1.15
"""Estimate to truth, as promised."""
MEGA = 1024**2
PAGE = """# Memory and operations of a step: reckoned and real

{date}; {hardware}; {versions}. One forward and backward pass of the trainer's own code on random weights, with the
gradients and the optimizer state of a later micro-batch. Truth: on a CPU the most bytes of tensors that live at the
same time, on a GPU the peak of its allocator, to which the estimate adds 1 GiB for context and libraries. Promised:
from {least:.0%} to {most:.0%} of the truth. Operations are counted by PyTorch's FlopCounterMode, attention as it counts
it; it leaves out experts, and is left out itself where activations are computed again.

{table}"""
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
Lengths = tuple[int, int, int]


def widths(hidden: int, feed: int, layers: int, heads: int, groups: int, words: int) -> dict[str, int]:
    """Arguments of a configuration."""
    return IDS | {
        "hidden_size": hidden,
        "intermediate_size": feed,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": words,
    }


@dataclass(frozen=True)
class Case:
    """A model and the rows of a micro-batch."""

    name: str
    config: Callable[[], PreTrainedConfig]
    pairs: list[Lengths]
    rank: int | None = 16
    """None: full training."""
    least: bool = False
    """The smallest way: activations computed again, a pair as two passes; else the fastest."""

    @property
    def adapter(self) -> LoraConfig | None:
        """What is trained."""
        return self.rank and LoraConfig(rank=self.rank, alpha=16, dropout=0, trainable_modules=("all-linear",))


CASES = (
    Case("Llama, long", lambda: LlamaConfig(**widths(1024, 2816, 8, 16, 4, 32000)), [(1500, 250, 250)]),
    Case(
        "Qwen3, short, large vocabulary, tied",
        lambda: Qwen3Config(**widths(1024, 3072, 4, 16, 8, 151936), head_dim=128, tie_word_embeddings=True),
        [(60, 40, 30)] * 16,
    ),
    Case("Mistral, wide heads", lambda: MistralConfig(**widths(768, 3072, 8, 4, 4, 8000)), [(300, 300, 200)] * 3, 64),
    Case(
        "Gemma 3, long, smallest",
        lambda: Gemma3TextConfig(
            **widths(1152, 6912, 5, 4, 1, 50000), head_dim=256, layer_types=["full_attention"] * 5
        ),
        [(1500, 300, 200)],
        least=True,
    ),
    Case(
        "Qwen3 MoE",
        lambda: Qwen3MoeConfig(
            **widths(512, 1024, 6, 8, 2, 32000),
            head_dim=64,
            num_experts=16,
            num_experts_per_tok=4,
            moe_intermediate_size=512,
        ),
        [(400, 100, 100)] * 3,
    ),
    Case("Llama, full", lambda: LlamaConfig(**widths(768, 2048, 6, 12, 4, 32000)), [(200, 60, 50)] * 3, None),
    Case("Llama, full, long", lambda: LlamaConfig(**widths(512, 1408, 8, 8, 8, 1000)), [(1800, 300, 200)], None),
    Case(
        "GPT-2, full, short",
        lambda: GPT2Config(
            **IDS, vocab_size=50257, n_embd=768, n_layer=8, n_head=12, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0
        ),
        [(30, 20, 20)] * 8,
        None,
    ),
    Case(
        "Qwen3, full, tied, smallest",
        lambda: Qwen3Config(**widths(512, 1536, 6, 8, 4, 100000), head_dim=64, tie_word_embeddings=True),
        [(700, 100, 90)],
        None,
        least=True,
    ),
)


@dataclass(frozen=True)
class Result:
    """What a step was reckoned to take and do, and what it took and did."""

    case: Case
    parameters: int
    tokens: int
    """In the largest pass."""
    bytes: tuple[int, int]
    """Estimated and real."""
    flops: tuple[int, int | None]
    """Reckoned, and as PyTorch counts them; it does not count those of experts."""

    @property
    def holds(self) -> bool:
        """Whether the estimate of memory is as good as promised."""
        return LEAST <= self.bytes[0] / self.bytes[1] <= MOST


def measure(case: Case, device: str, folder: Path) -> Result:
    """One forward and backward pass."""
    shape = read_shape(random_policy(case.config(), None).base.causal, folder)
    assert shape is not None
    policy = random_policy(case.config(), case.adapter, device)
    training = Training(shape, case.adapter, device == "cuda")
    lengths = np.array(case.pairs)
    rows = Rows(*lengths.T, lengths[:, 1:].sum(1), np.arange(len(lengths)))
    load = rows.alone(0) if case.least else rows.packed(1, 1) * (rows.tokens / lengths[0].sum())
    estimate = memory(training, load, checkpointing=case.least)
    batch = pair_batch(pairs_of(case.pairs, shape.vocabulary), Level.SINGLE if case.least else Level.SHARED)
    counts = not (case.least or shape.experts)  # the counter keeps what checkpointing would let go
    with FlopCounterMode(display=False) if counts else nullcontext() as counted:
        real = step_peak(policy, batch, checkpointing=case.least, split=case.least)
    operations = counted.get_total_flops() if counted else None
    reckoned = training_flops(training, Work(rows.tokens, int(rows.targets.sum()), rows.meetings))
    return Result(
        case, shape.parameters, load.tokens, (estimate.total - estimate.overhead, real), (reckoned, operations)
    )


def table(results: list[Result]) -> str:
    """A row for each shape."""
    lines = [
        "| shape | trained | weights | tokens | estimate | truth | ratio | operations | reckoned / counted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        case, (estimate, real), (reckoned, counted) = result.case, result.bytes, result.flops
        trained = "all" if case.rank is None else f"LoRA, rank {case.rank}"
        operations = f"{counted / 1e12:.2f} T | {reckoned / counted:.4f}" if counted else "| "
        lines.append(
            f"| {case.name} | {trained} | {result.parameters / 1e6:.0f} M | {result.tokens:,}"
            f" | {estimate / MEGA:,.0f} MiB | {real / MEGA:,.0f} MiB | {estimate / real:.3f} | {operations} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", help="part of the name of a shape")
    parser.add_argument("--out", type=Path, help="default: memory.md, memory-gpu.md beside this file")
    given = parser.parse_args(arguments)
    set_verbosity_error()
    disable_progress_bar()
    results = []
    for case in CASES:
        if given.only is None or given.only in case.name:
            with temporary() as folder:
                results.append(measure(case, given.device, Path(folder)))
            gc.collect()
            sys.stdout.write(table(results[-1:]).splitlines()[-1] + "\n")
            sys.stdout.flush()
    hardware = torch.cuda.get_device_name() if given.device == "cuda" else "CPU, fp32"
    facts = {"date": date.today(), "hardware": hardware, "versions": versions(), "table": table(results)}
    page = PAGE.format(least=LEAST, most=MOST, **facts)
    name = "memory-gpu.md" if given.device == "cuda" else "memory.md"
    (given.out or Path(__file__).with_name(name)).write_text(page)
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
