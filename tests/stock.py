"""Pairs of every shape, and what a model's stock attention makes of them, one sequence at a time."""

from __future__ import annotations

import numpy as np
import torch

from architectures import VOCABULARY
from finetune_trainer.data.tokens import Pair
from finetune_trainer.step.batch import pair_batch

SIZES = [(12, 7, 5), (1, 1, 1), (1, 4, 3), (5, 1, 6), (9, 6, 1), (20, 11, 12)]
"""Tokens of prompt, preferred and non-preferred answer."""


def pairs(sizes=SIZES):
    """Answers that differ from their first token on, but for the last pair, whose first five are the same."""
    random = np.random.default_rng(0)
    rows = []
    for line, (p, c, r) in enumerate(sizes):
        prompt, preferred, other = (random.integers(3, VOCABULARY, n).astype(np.int32) for n in (p, c, r))
        if preferred[0] == other[0]:
            other[0] = 3 + (other[0] - 2) % (VOCABULARY - 3)
        rows.append(Pair(line, prompt, preferred, other))
    rows[-1].non_preferred[:5] = rows[-1].preferred[:5]
    return rows


def stock_sums(policy, rows):
    """Sums of log-probabilities from the whole model's own logits, one sequence to a pass."""
    causal, sums = policy.as_loaded(), []
    for row in rows:
        for answer in (row.preferred, row.non_preferred):
            tokens = torch.from_numpy(np.concatenate([row.prompt, answer]).astype(np.int64))[None]
            logps = torch.log_softmax(causal(input_ids=tokens, use_cache=False).logits[0, :-1], dim=-1)
            sums.append(logps.gather(1, tokens[0, 1:, None])[len(row.prompt) - 1 :].sum())
    return torch.stack(sums)


def gradients(policy, sums):
    """Of a sum in which every sequence counts differently, sign included."""
    (sums * torch.linspace(-1, 1, len(sums), dtype=torch.float64)).sum().backward()
    found = {}
    for name, parameter in policy.trainable.items():
        found[name], parameter.grad = parameter.grad, None
    return found


def compare(policy, rows, level, value, gradient):
    sums = policy.score(pair_batch(rows, level))
    found = gradients(policy, sums)
    expected = stock_sums(policy, rows)
    torch.testing.assert_close(sums, expected, rtol=0, atol=value)
    right = gradients(policy, expected)
    nothing = 1e-15 * max(theirs.norm() for theirs in right.values() if theirs is not None)
    for name, theirs in right.items():
        assert (found[name] is None) == (theirs is None), name
        if theirs is not None:
            assert (found[name] - theirs).norm() <= gradient * theirs.norm() + nothing, name
