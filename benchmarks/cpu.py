"""Does sharing a prompt pay what it should, on a CPU: `make bench-cpu`, minutes; run it on a machine that is idle.

One process, arms alternated, the least of several times as the time of a round, the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from time import perf_counter

import torch
from arms import Arm, Shape, live_peak, policy_of, task_of, temporary, trl, versions
from transformers import LlamaConfig
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from finetune_trainer.step.recipe import Level, Recipe

SHAPES: tuple[Shape, ...] = ((960, 64, 64), (256, 256, 256))
PAIRS = 2
ONE_MICRO_BATCH = 8192
"""Tokens: all pairs are in memory at once, shared or not."""
SHARE_OF_TOKEN_RATIO = 0.85
SLOWER_THAN_PLAIN = 1.05
LOSS_TOLERANCE = 1e-5
RESULT = Path(__file__).with_name("cpu.md")


@dataclass(frozen=True)
class Result:
    """What one shape gave."""

    shape: Shape
    token_ratio: float
    seconds: dict[str, float]
    """Least time of each arm."""
    ratio: float
    """Unshared over shared, median of rounds."""
    over_plain: float
    """Unshared over plain, median of rounds."""
    over_trl: float
    """TRL over shared, median of rounds."""
    over_peft: float
    """Shared with PEFT's layers over shared, median of rounds."""
    peaks: dict[str, int]
    losses: dict[str, float]

    @property
    def problems(self) -> list[str]:
        """What is required and not so."""
        found = []
        if self.ratio < SHARE_OF_TOKEN_RATIO * self.token_ratio:
            found.append(f"ratio {self.ratio:.2f} is under {SHARE_OF_TOKEN_RATIO * self.token_ratio:.2f}")
        if self.over_plain > SLOWER_THAN_PLAIN:
            found.append(f"the unshared arm takes {self.over_plain:.2f} times as long as plain transformers")
        if self.over_peft < 1:
            found.append(f"with PEFT's layers it takes {self.over_peft:.2f} of the time")
        if self.peaks["shared"] >= self.peaks["unshared"]:
            found.append("the shared arm's live tensors take no less memory")
        if max(self.losses.values()) - min(self.losses.values()) > LOSS_TOLERANCE:
            found.append(f"losses differ: {self.losses}")
        return found


def measure(shape: Shape, config: LlamaConfig, rounds: int, repeats: int, folder: Path) -> Result:
    """All arms on pairs of one shape."""
    task = task_of(policy_of(config, torch.device("cpu")), [shape] * PAIRS, folder / "cache")
    arms: dict[str, Arm] = {
        "plain": task.plain(),
        "unshared": task.unshared(),
        "shared": task.ours(Recipe(Level.SHARED, ONE_MICRO_BATCH)),
        "PEFT's layers": task.by_peft(Recipe(Level.SHARED, ONE_MICRO_BATCH)),
        "TRL": trl(task, folder / "trl", PAIRS, precompute_ref_log_probs=True, activation_checkpointing=False),
    }
    losses = {name: arm() for name, arm in arms.items()}
    peaks = {name: live_peak(arm) for name, arm in arms.items()}
    best = [_round(arms, repeats) for _ in range(rounds)]

    def median(slow: str, fast: str) -> float:
        return statistics.median(seconds[slow] / seconds[fast] for seconds in best)

    return Result(
        shape=shape,
        token_ratio=task.tokens / task.shared_tokens,
        seconds={name: min(seconds[name] for seconds in best) for name in arms},
        ratio=median("unshared", "shared"),
        over_plain=median("unshared", "plain"),
        over_trl=median("TRL", "shared"),
        over_peft=median("PEFT's layers", "shared"),
        peaks=peaks,
        losses=losses,
    )


def _round(arms: dict[str, Arm], repeats: int) -> dict[str, float]:
    """Least time of each arm, the arms taken in turn."""
    least = dict.fromkeys(arms, float("inf"))
    for _ in range(repeats):
        for name, arm in arms.items():
            began = perf_counter()
            arm()
            least[name] = min(least[name], perf_counter() - began)
    return least


def written(results: list[Result]) -> str:
    """The results as a page."""
    lines = [
        "# One optimiser step on a CPU",
        "",
        f"{date.today()}; {versions()}. Written by `make bench-cpu`.",
        "",
        f"Forward and backward of {PAIRS} pairs, Llama of 4 layers, LoRA of rank 16, fp32, reference cached. Plain:"
        " stock transformers and PEFT, all logits. Unshared: stock sdpa, both sides as a batch, our head. PEFT's"
        " layers: shared, but each adapter beside its layer and not in one operation with it. Peak: live tensors"
        " without weights. TRL scores every position on a CPU (its kernel for answers alone needs a GPU), so its"
        " column says nothing about GPUs.",
        "",
        "| P, C, R | tokens, unshared / shared | time, unshared / shared | unshared / plain | TRL / shared"
        " | PEFT's layers / shared | shared | peak, unshared | peak, shared | peak, PEFT's layers |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        peak = [f"{r.peaks[name] / 2**20:.0f} MiB" for name in ("unshared", "shared", "PEFT's layers")]
        ratios = f"{r.token_ratio:.2f} | {r.ratio:.2f} | {r.over_plain:.2f} | {r.over_trl:.2f} | {r.over_peft:.3f}"
        lines.append(f"| {r.shape} | {ratios} | {1000 * r.seconds['shared']:.0f} ms | {' | '.join(peak)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="a smaller model and shorter pairs, nothing is required")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    set_verbosity_error()
    disable_progress_bar()
    hidden, shapes = (32, tuple((p // 16, c // 16, r // 16) for p, c, r in SHAPES)) if given.small else (256, SHAPES)
    config = LlamaConfig(
        vocab_size=8 * hidden,
        hidden_size=hidden,
        intermediate_size=43 * hidden // 16,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        pad_token_id=0,
        eos_token_id=2,
    )
    results = []
    for shape in shapes:
        with temporary() as folder:
            results.append(measure(shape, config, given.rounds, given.repeats, Path(folder)))
    page = written(results)
    given.out.write_text(page)
    sys.stdout.write(page)
    problems = [f"{result.shape}: {problem}" for result in results for problem in result.problems]
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems and not given.small else 0


if __name__ == "__main__":
    sys.exit(main())
