"""Which level a model can do: tried at start-up, on the real weights and device, against its stock attention.

No list of architectures. Chunked masks, soft-caps, sinks, ALiBi, recurrent layers and models that never call a
registered attention function all give other scores, and a level that gives other scores is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from finetune_trainer.step.attention import AttentionUnsupported
from finetune_trainer.step.batch import Integers, MicroBatch, pair_batch
from finetune_trainer.step.model import Policy
from finetune_trainer.step.recipe import Level

ANSWERS = 7, 5
"""Tokens of the two answers of a probe."""
SHORT_PROMPT = 12
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest root mean square of the differences of token log-probabilities that is rounding, by the model's precision."""
TOLERANCE_16_BIT = 1e-1
REACH_NAMES = "window", "chunk", "local", "block"
"""Parts of the names under which configurations say how far attention reaches."""
EAGER = "eager"


@dataclass(frozen=True, slots=True)
class Probe:
    """A row made up to try a level."""

    prompt: Integers
    preferred: Integers
    non_preferred: Integers
    line: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """The level that is used, and why it is not the one that was wanted."""

    level: Level
    reason: str | None = None
    """A sentence; None: it is the one that was wanted."""


@torch.no_grad()
def choose_level(policy: Policy, wanted: Level, longest: int) -> Choice:
    """The first level from `wanted` downwards on which the model's scores are those of its stock attention.

    Args:
        policy: holds the starting weights.
        longest: tokens of the longest sequence of the data: how far attention may ever have to reach.

    Raises:
        RunFailed: ModelUnsupported: not even one sequence at a time gives the model's own log-probabilities.
    """
    policy.training(False)
    levels = list(Level)
    reasons = []
    for level in levels[levels.index(wanted) :]:
        if level is Level.SINGLE or (problem := _problem(policy, level, longest)) is None:
            break
        reasons.append(f"{level}: {problem}")
    return Choice(level, "; ".join(reasons) or None)


def _problem(policy: Policy, level: Level, longest: int) -> str | None:
    """What is wrong with `level`; None: nothing."""
    probe = _probe(policy, SHORT_PROMPT)
    try:
        return _short(policy, level, probe) or _long(policy, level, longest)
    except (AttentionUnsupported, RuntimeError, TypeError, ValueError) as error:
        return str(error).strip().split("\n", 1)[0]


def _short(policy: Policy, level: Level, probe: Probe) -> str | None:
    other, third = 1 + probe.preferred % 7, 1 + probe.prompt % 11
    alone = _scores(policy, [probe], level)
    if _differ(policy, alone, _scores(policy, [probe], Level.SINGLE)):
        return "its scores are not those of the model's own attention"
    answered = _scores(policy, [replace(probe, preferred=other)], level)
    if _differ(policy, alone[ANSWERS[0] :], answered[ANSWERS[0] :]):
        return "an answer sees the other answer"
    prompted = np.concatenate([probe.prompt[:-2], third[-2:-1], probe.prompt[-1:]])
    changes = (alone != _scores(policy, [replace(probe, prompt=prompted)], level)).split(ANSWERS)
    if not all(change.any() for change in changes):
        return "an answer does not see its prompt"
    before = replace(probe, prompt=third, preferred=probe.non_preferred, non_preferred=other)
    if _differ(policy, alone, _scores(policy, [before, probe], level)[-sum(ANSWERS) :]):
        return "a row sees the row before it"
    return None


def _long(policy: Policy, level: Level, longest: int) -> str | None:
    """A reach shorter than the longest row shows only on a row that is longer than it."""
    config = policy.base.causal.config.get_text_config().to_dict()
    named = (value for name, value in config.items() if any(part in name for part in REACH_NAMES))
    reaches = [value for value in named if type(value) is int and SHORT_PROMPT < value < longest]
    if not reaches:
        return None
    probe = _probe(policy, max(reaches))
    if _differ(policy, _scores(policy, [probe], level), _scores(policy, [probe], Level.SINGLE)):
        return f"its scores on {len(probe.prompt)} tokens are not those of the model's own attention"
    return None


def _probe(policy: Policy, prompt: int) -> Probe:
    tokens = np.random.default_rng(0).integers(0, policy.head.vocabulary, prompt + sum(ANSWERS))
    return Probe(tokens[:prompt], tokens[prompt : prompt + ANSWERS[0]], tokens[prompt + ANSWERS[0] :])


def _scores(policy: Policy, rows: Sequence[Probe], level: Level) -> Tensor:
    """Log-probability of every answer token, fp64 [targets]."""
    return policy.score(_by_token(pair_batch(rows, level))).cpu()


def _by_token(batch: MicroBatch) -> MicroBatch:
    """The same with every target a sequence of its own."""
    passes, count = [], 0
    for one in batch.passes:
        passes.append(replace(one, sequence=torch.arange(count, count + len(one.targets))))
        count += len(one.targets)
    return replace(batch, passes=tuple(passes), sequences=count)


def _differ(policy: Policy, ours: Tensor, theirs: Tensor) -> bool:
    tolerance = TOLERANCE_16_BIT if policy.device.type == "cuda" else TOLERANCE[policy.base.causal.dtype]
    return not bool((ours - theirs).square().mean().sqrt() <= tolerance)
