"""What a run leaves for its report, made up: facts and curves of any shape."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from finetune_trainer.out.facts import Answer, Facts, Passage, Sample
from training import trainer_config

WRITTEN = "2026-01-02T03:04:05Z"
TOKENS = {"p50": 20, "p95": 90, "max": 120}
MODEL = Path("/models/tiny")
SFT = {"trainingMethod": {"type": "SFT"}, "lora": None, "trainingKind": "Full"}


def answer(text: str = "yes", before: float | None = -20.0, after: float | None = -18.0, tokens: int = 8) -> Answer:
    return Answer(passage=Passage(text=text), tokens=tokens, before=before, after=after)


def pair(
    line: int = 1, gain: float | None = 0.5, prompt: str = "what?", texts: tuple[str, str] = ("yes", "no")
) -> Sample:
    return Sample(
        line=line,
        prompt=Passage(text=prompt),
        answers=(answer(texts[0]), answer(texts[1], after=-22.0)),
        margin_before=0.0,
        margin_after=gain,
    )


def checkpoint(step: int, kind: str = "Intermediate", *, best: bool = False, **metrics: float) -> dict[str, Any]:
    return {
        "name": f"dpo:{step}",
        "step": step,
        "type": kind,
        "uri": f"pvc://finetune-outputs/dpo/checkpoints/step-{step}",
        "time": WRITTEN,
        "sizeBytes": 123456,
        "sha256": "ab" * 32,
        "best": best,
        "metrics": metrics,
    }


def facts(samples: tuple[Sample, ...] = (), config: dict[str, Any] | None = None, **report: Any) -> Facts:
    """Of a DPO with an evaluation; `config` replaces fields of its configuration, `report` of its report."""
    asked = trainer_config(MODEL, MODEL.parent, validationFile="file:///models/eval.jsonl", **(config or {}))
    return Facts.model_validate(
        {
            "written": WRITTEN,
            "config": asked,
            "base": "org/tiny",
            "baseRevision": "0123456789abcdef",
            "versions": {"torch": "2.15.0"},
            "data": {
                "format": "preference",
                "rows": 64,
                "pairs": 60,
                "validationRows": 16,
                "tokens": {"prompt": TOKENS},
            },
            "resolved": {"totalSteps": 100, "maxSeqLength": 512},
            "report": {"jobUid": asked.job.uid, "stage": "Train", **report},
            "heldOut": True,
            "samples": samples,
            "controlTokens": ("<|end|>",),
        }
    )


def metrics_line(step: int, stage: str, progress: float, *, pairs: bool = True) -> dict[str, float]:
    """A line of metrics.jsonl as a run that goes well has it after a share `progress` of its steps."""
    values = {"loss": 0.7 - 0.4 * progress + 0.05 * math.sin(step)}
    if pairs:
        values |= {
            "rewards/accuracies": 0.5 + 0.4 * progress,
            "rewards/margins": 2 * progress,
            "logps/chosen": -100 - 5 * progress,
            "logps/rejected": -100 - 30 * progress,
            "kl": 15 * progress,
            "kl/chosen": 5 * progress,
            "kl/rejected": 25 * progress,
        }
    if stage == "train":
        values |= {"learning_rate": 1e-5 * (1 - progress), "grad_norm": 1 + 0.3 * math.cos(step), "epoch": progress}
    return {"step": step, **{f"{stage}/{name}": value for name, value in values.items()}}


def write_metrics(folder: Path, steps: int, every: int = 0, *, pairs: bool = True) -> Path:
    """metrics.jsonl of `steps` steps in `folder`, with an evaluation before the first and after each `every`-th."""
    lines = [metrics_line(0, "eval", 0, pairs=pairs)] if every else []
    for step in range(1, steps + 1):
        lines.append(metrics_line(step, "train", step / steps, pairs=pairs))
        if every and step % every == 0:
            lines.append(metrics_line(step, "eval", step / steps, pairs=pairs))
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
