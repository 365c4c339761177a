"""What each technique gains on a GPU, against TRL as it comes and at its best: `make bench-gpu`, ten minutes.

All arms hold the same weights and pairs and are interleaved, so that a GPU that slows down slows all of them. What is
TRL's best was found here: reference scored beforehand, no checkpointing, the largest batch that fits. Liger's layers
take part where the package is installed. Unsloth does not: it replaces parts of transformers and TRL when it is
imported, so that no other arm could run beside it, and the newest that resolves beside these versions is older than
both. Compiled layers are an arm and not in the trainer until this page shows what they gain.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from arms import Arm, Shape, Task, policy_of, task_of, temporary, trl, versions
from bars import bars
from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from finetune_trainer.step.recipe import Level
from finetune_trainer.step.rehearsal import Rehearsal

BF16_FLOPS = 989e12
"""Dense, of an H100 or H200."""
TRL_BATCHES = 8, 4, 2, 1
WORDS = {
    "vocab_size": 128256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 32768,
}
MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "8b": lambda: LlamaConfig(
        **WORDS, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8
    ),
    "0.6b": lambda: Qwen3Config(
        **WORDS | {"vocab_size": 151936},
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "tiny": lambda: LlamaConfig(
        **WORDS | {"vocab_size": 256},
        hidden_size=32,
        intermediate_size=86,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}


def workloads(shrink: int) -> dict[str, list[Shape]]:
    """Lengths of pairs, all of them divided by `shrink`."""
    random = np.random.default_rng(0)

    def between(low: int, high: int, count: int) -> np.ndarray:
        return np.maximum(random.integers(low, high + 1, (count, 1)) // shrink, 2)

    def shapes(*parts: np.ndarray) -> list[Shape]:
        return [tuple(map(int, row)) for row in np.concatenate(parts, axis=1)]

    chat = np.maximum(random.lognormal(np.log(409), 0.8, (64, 3)) * [0.42, 1, 1] // shrink, 2).astype(int)
    return {
        "W1 long prompts": shapes(between(6000, 7000, 8), between(500, 1000, 8), between(500, 1000, 8)),
        "W2 chat": shapes(chat),
        "W3 no prompts": shapes(between(8, 8, 32), between(200, 600, 32), between(200, 600, 32)),
        "W4 mixed": shapes(between(64, 4096, 16), between(64, 512, 16), between(64, 512, 16)),
    }


@dataclass(frozen=True)
class Row:
    """One arm on one workload."""

    name: str
    seconds: list[float]
    loss: float
    peak: int
    processed: int
    """Tokens that go through the model."""


def arms_of(task: Task, folder: Path) -> dict[str, tuple[Callable[[], Arm], int]]:
    """How to make each arm, and the tokens that go through the model in it."""
    rehearsal = Rehearsal(task.policy, task.rows, len(task.pairs), packing=True)

    def ours(level: Level, **changes: bool) -> Callable[[], Arm]:
        return lambda: task.ours(replace(rehearsal.plan(level), **changes))

    def theirs(**options: object) -> Callable[[], Arm]:
        return lambda: _largest(lambda batch: trl(task, folder / "trl", batch, **options))

    best = {"activation_checkpointing": False, "precompute_ref_log_probs": True}
    liger = {"TRL with Liger's layers": (theirs(**best, use_liger_kernel=True), task.tokens)} if _has_liger() else {}
    return {
        "TRL as it comes": (theirs(activation_checkpointing=True), task.tokens),
        "TRL at its best": (theirs(**best), task.tokens),
        **liger,
        "ours, each sequence alone": (ours(Level.SINGLE), task.tokens),
        "+ packing": (ours(Level.PACKED), task.tokens),
        "+ shared prompts": (ours(Level.SHARED), task.shared_tokens),
        "the same with PEFT's layers": (lambda: task.by_peft(rehearsal.plan(Level.SHARED)), task.shared_tokens),
        "the same, layers compiled": (lambda: task.compiled(rehearsal.plan(Level.SHARED)), task.shared_tokens),
        "the same, activations computed again": (ours(Level.SHARED, checkpointing=True), task.shared_tokens),
    }


def _has_liger() -> bool:
    """Its kernels run on GPUs alone."""
    return torch.cuda.is_available() and find_spec("liger_kernel") is not None


def _largest(make: Callable[[int], Arm]) -> Arm:
    """The arm with the largest batch that fits."""
    for batch in TRL_BATCHES:
        try:
            arm = make(batch)
            arm()
            return arm
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    raise MemoryError("not even one pair fits")


def measure(task: Task, folder: Path, warm_up: int, steps: int) -> list[Row]:
    """All arms on one workload; one that does not fit is left out."""
    arms: dict[str, tuple[Arm, int]] = {}
    for name, (make, processed) in arms_of(task, folder).items():
        try:
            arm = make()
            for _ in range(warm_up):
                arm()
            arms[name] = arm, processed
        except (MemoryError, torch.OutOfMemoryError):
            sys.stdout.write(f"{name}: out of memory\n")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(steps):
        for name, (arm, _) in arms.items():
            seconds[name].append(_timed(arm)[0])
    last = {name: _timed(arm) for name, (arm, _) in arms.items()}
    return [Row(name, seconds[name], *last[name][1:], arms[name][1]) for name in arms]


def _timed(arm: Arm) -> tuple[float, float, int]:
    """Seconds, loss and peak of allocated bytes; weights of all arms are in the peak."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = perf_counter()
    loss = arm()
    if gpu:
        torch.cuda.synchronize()
    return perf_counter() - began, loss, torch.cuda.max_memory_allocated() if gpu else 0


def table(title: str, task: Task, rows: Sequence[Row]) -> str:
    """Work is what someone computes who shares nothing, so that it compares arms; the two shares of the peak rate count
    the linear layers alone, forward and the gradient of their inputs: 4 operations per weight and token."""
    layers = task.policy.backbone.named_parameters()
    weights = sum(p.numel() for name, p in layers if "base_layer" in name and p.dim() == 2)
    lines = [
        f"\n## {title}\n",
        "| arm | pairs/s | step, median (least to most) | work tokens/s | tokens/s | hardware share | work share"
        " | peak | loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        median = statistics.median(row.seconds)
        work, done = task.tokens / median, row.processed / median
        spread = f"{median:.3f} s ({min(row.seconds):.3f} to {max(row.seconds):.3f})"
        share = [f"{4 * weights * rate / BF16_FLOPS:.1%}" for rate in (done, work)]
        lines.append(
            f"| {row.name} | {len(task.pairs) / median:.2f} | {spread} | {work:,.0f} | {done:,.0f} | {share[0]}"
            f" | {share[1]} | {row.peak / 2**30:.1f} GiB | {row.loss:.5f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shrink", type=int, default=1, help="divide all lengths")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", help="a workload: W1 ... W4")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    set_verbosity_error()
    disable_progress_bar()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    page = f"# One optimiser step on a GPU: {given.model}\n\n{date.today()}; {name}; {versions()}.\n"
    policy = policy_of(MODELS[given.model](), device)
    out, rates = given.out or Path(__file__).with_name(f"gpu-{given.model}.md"), {}
    for title, shapes in workloads(given.shrink).items():
        if given.only in (None, title[:2]):
            with temporary() as folder:
                task = task_of(policy, shapes, Path(folder) / "cache")
                rows = measure(task, Path(folder), given.warm_up, given.steps)
                page += table(title, task, rows)
                rates[title] = {row.name: len(task.pairs) / statistics.median(row.seconds) for row in rows}
    out.with_suffix(".svg").write_text(bars(rates, "pairs a second"))
    out.write_text(f"{page}\n![pairs a second]({out.with_suffix('.svg').name})\n")
    sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
