"""Which level a model can do: tried at start-up, on the real weights and device, against the model as it is loaded.

No list of architectures. Chunked masks, soft-caps, sinks, ALiBi, recurrent layers and models that never call a
registered attention function all give other scores, and a level that gives other scores is not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.failures import FailureCode
from finetune_trainer.failures import failed
from finetune_trainer.step.attention import AttentionUnsupported
from finetune_trainer.step.batch import Integers, MicroBatch, pair_batch
from finetune_trainer.step.model import Policy
from finetune_trainer.step.ranks import is_of_exchange
from finetune_trainer.step.recipe import Level

PREFERRED, NON_PREFERRED = 7, 5
"""Tokens of the answers of a probe."""
SHORT_PROMPT = 12
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
"""Largest root mean square of the differences of token log-probabilities that is rounding, by the model's precision."""
TOLERANCE_16_BIT = 5e-2
REACH_NAMES = "window", "chunk", "local", "block", "floor"
"""Parts of the names under which configurations say after how many tokens of a pass attention changes."""
POSITION_NAME = "original_max"
"""Part of the name under which they say after how many tokens of a sequence positions are encoded otherwise, in the
other sequences of its pass too (LongRoPE). Dynamic NTK does so after the most tokens that prepare lets pass."""
EAGER = "eager"
SLOWER = {
    Level.PACKED: "the prompt of a pair is computed twice",
    Level.SINGLE: "each sequence is computed alone",
}


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
    policy: Policy
    """The policy; its stock attention is eager where that alone does what the configuration asks for."""
    problem: str | None = None
    """Of the level above; None: it is the level that was wanted."""

    @property
    def sentence(self) -> str:
        """What a person should know about it."""
        return slower(self.level, self.problem)


def slower(level: Level, problem: str | None) -> str:
    """What a person should know of a level that is not the fastest one, used because of `problem`."""
    return f"training is slower than it could be, because {SLOWER[level]}: {problem}"


@torch.no_grad()
def choose_level(policy: Policy, wanted: Level, longest: int, line: int) -> Choice:
    """The first level from `wanted` downwards on which the model's scores are those of its stock attention.

    Args:
        policy: holds the starting weights.
        longest: tokens of the longest sequence of the data; no attention has to reach further.
        line: most tokens of a pass.

    Raises:
        RunFailed: ModelUnsupported: not even one sequence to a pass gives the model's own log-probabilities.
        OutOfMemoryError: not even that fits.
    """
    policy.training(False)
    policy = _with_true_stock(policy)
    levels = list(Level)
    above: str | None = None
    for level in levels[levels.index(wanted) :]:
        try:
            problem = _short(policy, level) or _long(policy, level, longest, line)
        except (AttentionUnsupported, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            if is_of_exchange(error) or (level is Level.SINGLE and isinstance(error, torch.OutOfMemoryError)):
                raise
            said = str(error).strip().split("\n", 1)[0]
            ours = isinstance(error, (AttentionUnsupported, torch.OutOfMemoryError))
            problem = said if ours else f"its code fails on such a pass: {said}"
        if problem is None:
            return Choice(level, policy, above)
        above = problem
    raise failed(FailureCode.MODEL_UNSUPPORTED, uri=policy.base.uri, problem=above)


def _with_true_stock(policy: Policy) -> Policy:
    """Eager attention does all that the configuration asks for; where the one that is loaded differs, it does not."""
    if policy.base.attention == EAGER:
        return policy
    eager = replace(policy, base=replace(policy.base, attention=EAGER))
    row = _probe(policy, SHORT_PROMPT)
    try:
        expected = _stock_scores(eager, row)
    except (AttentionUnsupported, ValueError):
        return policy
    return eager if _differ(policy, _stock_scores(policy, row), expected) else policy


def _short(policy: Policy, level: Level) -> str | None:
    """What is wrong with `level` on a few tokens; None: nothing."""
    row = _probe(policy, SHORT_PROMPT)
    other = _probe(policy, SHORT_PROMPT, seed=1)
    alone = _scores(policy, [row], level)
    if _differ(policy, alone, _stock_scores(policy, row)):
        return "its scores are not those of the model's own attention"
    answered = _scores(policy, [replace(row, preferred=other.preferred)], level)
    if _differ(policy, alone[PREFERRED:], answered[PREFERRED:]):
        return "an answer sees the other answer"
    prompted = np.concatenate([row.prompt[:-2], other.prompt[-2:-1], row.prompt[-1:]])
    changed = alone != _scores(policy, [replace(row, prompt=prompted)], level)
    if not all(side.any() for side in changed.split([PREFERRED, NON_PREFERRED])):
        return "an answer does not see its prompt"
    if _differ(policy, alone, _scores(policy, [other, row], level)[-len(alone) :]):
        return "a row sees the row before it"
    return None


def _long(policy: Policy, level: Level, longest: int, line: int) -> str | None:
    """The same where a model changes after some tokens: a row that is longer, a short one and as many tokens before."""
    reach = max(_reaches(policy.base.causal.config.get_text_config().to_dict(), longest, line), default=0)
    if not reach:
        return None
    short, row = _probe(policy, 1, seed=1), _probe(policy, max(SHORT_PROMPT, min(reach, longest - PREFERRED)))
    before = -(-min(reach, line) // (len(row.prompt) + PREFERRED + NON_PREFERRED))
    scores = _scores(policy, [short] + [row] * (before + 1), level)
    answers = PREFERRED + NON_PREFERRED
    if _differ(policy, scores[-answers:], _stock_scores(policy, row)):
        return f"its scores after {reach} tokens are not those of the model's own attention"
    if _differ(policy, scores[:answers], _stock_scores(policy, short)):
        return f"its scores beside a row of more than {reach} tokens are not those that a row has alone"
    return None


def _reaches(config: dict[str, Any], longest: int, line: int) -> Iterator[int]:
    """After how many tokens something may change, as far as the data come to it."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _reaches(value, longest, line)
        elif type(value) is int:
            on_line = any(part in name for part in REACH_NAMES)
            most = max(longest, line) if on_line else longest if POSITION_NAME in name else 0
            if SHORT_PROMPT < value < most:
                yield value


def _probe(policy: Policy, prompt: int, seed: int = 0) -> Probe:
    length = prompt + PREFERRED + NON_PREFERRED
    known = min(policy.head.vocabulary, policy.base.causal.config.get_text_config().vocab_size)
    tokens = np.random.default_rng(seed).integers(0, known, length)
    return Probe(tokens[:prompt], tokens[prompt:-NON_PREFERRED], tokens[-NON_PREFERRED:])


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


def _stock_scores(policy: Policy, row: Probe) -> Tensor:
    """The same from the whole model's own logits, one sequence to a pass."""
    causal = policy.as_loaded()
    parts = []
    for answer in (row.preferred, row.non_preferred):
        tokens = torch.from_numpy(np.concatenate([row.prompt, answer]))[None].to(policy.device)
        with policy.precision():
            logits = causal(input_ids=tokens, use_cache=False, **_last(causal, len(answer) + 1)).logits
        logps = torch.log_softmax(logits[0, -len(answer) - 1 : -1].double(), dim=-1)
        parts.append(logps.gather(1, tokens[0, len(row.prompt) :, None])[:, 0])
    return torch.cat(parts).cpu()


def _last(causal: PreTrainedModel, tokens: int) -> dict[str, int]:
    """Asks for the logits of the last `tokens` alone, where the model can be asked."""
    return {"logits_to_keep": tokens} if "logits_to_keep" in signature(causal.forward).parameters else {}


def _differ(policy: Policy, ours: Tensor, theirs: Tensor) -> bool:
    on_cpu = policy.device.type == "cpu"
    tolerance = TOLERANCE.get(policy.base.causal.dtype, TOLERANCE_16_BIT) if on_cpu else TOLERANCE_16_BIT
    return not bool((ours - theirs).square().mean().sqrt() <= tolerance)
