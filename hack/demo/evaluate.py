"""Judge the demo's result from its published files alone, with plain transformers and peft.

Which answer of a held-out pair does the model find likelier, per token? On the DPO job's starting weights that is a
coin's toss, because the SFT rows showed both manners equally; after DPO it is the preferred one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

BEFORE, AFTER = (0.3, 0.7), 0.9
LN_2_TOLERANCE = 1e-4
SHOWN = 2
console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Print the comparison; exit 1 unless every claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "sft", "dpo", "pairs"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft asks transformers for a name that is going
    pairs = [json.loads(line) for line in Path(arguments.pairs).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(Path(arguments.dpo) / "adapter")
    before = judged(adapted(arguments.base, Path(arguments.sft)), tokenizer, pairs)
    after = judged(adapted(arguments.base, Path(arguments.dpo)), tokenizer, pairs)
    first_loss = first_training_loss(Path(arguments.dpo) / "metrics.jsonl")
    show(before, after, first_loss, pairs)
    check(before.share, after.share, first_loss)


def adapted(base: str, output: Path) -> torch.nn.Module:
    """The base model in fp32 with a job's published adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, output / "adapter").eval()


@dataclass(frozen=True, slots=True)
class Judged:
    """Mean log-probability per token of each pair's two answers, in nats."""

    preferred: list[float]
    other: list[float]

    @property
    def margins(self) -> list[float]:
        """Preferred minus other."""
        return [p - o for p, o in zip(self.preferred, self.other, strict=True)]

    @property
    def share(self) -> float:
        """Share of pairs whose preferred answer is likelier per token."""
        return sum(m > 0 for m in self.margins) / len(self.margins)


def judged(model: torch.nn.Module, tokenizer, pairs: list[dict]) -> Judged:
    """Every pair under one model."""
    sides = ("preferred_output", "non_preferred_output")
    scores = [[mean_logp(model, tokenizer, pair["input"]["messages"], pair[side]) for pair in pairs] for side in sides]
    return Judged(*scores)


@torch.no_grad()
def mean_logp(model: torch.nn.Module, tokenizer, prompt: list[dict], answer: list[dict]) -> float:
    """Mean log-probability of the answer's tokens, in nats."""
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(prompt + answer)["input_ids"]
    logits = model(input_ids=torch.tensor([whole])).logits[0, len(start) - 1 : -1]
    targets = torch.tensor(whole[len(start) :])
    return float(logits.log_softmax(-1).gather(-1, targets[:, None]).mean())


def first_training_loss(metrics: Path) -> float:
    """The loss of step 1, from metrics.jsonl."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return float(next(row["train/loss"] for row in rows if "train/loss" in row))


def show(before: Judged, after: Judged, first_loss: float, pairs: list[dict]) -> None:
    """The comparison over all pairs, and a few of them in full."""
    table = Table(box=None, pad_edge=False)
    for title, side in (("held-out pairs", "left"), ("starting weights (SFT)", "right"), ("after DPO", "right")):
        table.add_column(title, justify=side)
    table.add_row("preferred answer likelier per token", f"{before.share:.1%}", f"[bold green]{after.share:.1%}[/]")
    table.add_row("mean margin, nats per token", f"{mean(before.margins):+.3f}", f"{mean(after.margins):+.3f}")
    for number, pair in enumerate(pairs[:SHOWN]):
        table.add_section()
        table.add_row(f"[bold]{pair['input']['messages'][-1]['content']}[/]", "", "")
        for side, mark in (("preferred", "+"), ("other", "-")):
            said = pair["preferred_output" if side == "preferred" else "non_preferred_output"][0]["content"]
            values = [f"{getattr(judged, side)[number]:.3f}" for judged in (before, after)]
            table.add_row(f"  {mark} {said}", *values)
    console.print(table)
    console.print(f"\nfirst DPO loss {first_loss:.6f}, ln 2 = {math.log(2):.6f}")


def check(before: float, after: float, first_loss: float) -> None:
    """The demo's claims; a broken one ends the program with its numbers."""
    broken = []
    if not BEFORE[0] <= before <= BEFORE[1]:
        broken.append(f"the share before DPO is {before:.3f}, not within {BEFORE}")
    if after < AFTER:
        broken.append(f"the share after DPO is {after:.3f}, below {AFTER}")
    if abs(first_loss - math.log(2)) > LN_2_TOLERANCE:
        broken.append(f"the first DPO loss is {first_loss:.6f}, not ln 2")
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
