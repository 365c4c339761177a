"""Micro-batches at every level: which state predicts which target, who sees whom, and no padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune_trainer.data.tokens import Conversation, Pair
from finetune_trainer.step.attention import Segment
from finetune_trainer.step.batch import conversation_batch, pair_batch
from finetune_trainer.step.recipe import Level


def pair(line, prompt, preferred, non_preferred):
    return Pair(line, *(np.array(part, np.int32) for part in (prompt, preferred, non_preferred)))


PAIRS = [pair(7, [1, 2], [3, 4], [5]), pair(9, [6], [7], [8, 9])]
CONVERSATIONS = [
    Conversation(3, np.array([1, 2, 3, 4, 5], np.int32), np.array([False, False, True, False, True])),
    Conversation(4, np.array([6, 7], np.int32), np.array([False, True])),
]


def flat(batch, field):
    return [value for one in batch.passes for value in getattr(one, field).flatten().tolist()]


def before(batch):
    """The token from whose state each target is predicted."""
    return [token for one in batch.passes for token in one.input_ids[0, one.predictors].tolist()]


def test_a_shared_pair_holds_its_prompt_once():
    batch = pair_batch(PAIRS, Level.SHARED)
    (one,) = batch.passes
    assert one.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert one.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 1, 2]]
    assert one.layout.segments == (Segment(0, 0, 0, 4), Segment(0, 2, 4, 1), Segment(5, 0, 5, 2), Segment(5, 1, 7, 2))


def test_the_tensors_of_a_layout_say_what_its_segments_say():
    layout = pair_batch(PAIRS, Level.SHARED).passes[0].layout
    assert layout.cu_q.tolist() == [0, 4, 5, 7, 9]
    assert layout.cu_k.tolist() == [0, 4, 7, 9, 12]
    assert layout.k_index.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 5, 7, 8]
    assert (layout.max_q, layout.max_k) == (4, 4)
    assert layout.cu_q.dtype is layout.cu_k.dtype is torch.int32


def test_a_packed_pair_is_two_sequences_and_needs_no_gathering():
    (one,) = pair_batch(PAIRS, Level.PACKED).passes
    assert one.input_ids.tolist() == [[1, 2, 3, 4, 1, 2, 5, 6, 7, 6, 8, 9]]
    assert one.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 1, 2]]
    assert one.layout.k_index is None
    assert one.layout.cu_q.tolist() == one.layout.cu_k.tolist() == [0, 4, 7, 9, 12]


def test_a_single_pass_holds_one_sequence_for_stock_attention():
    batch = pair_batch(PAIRS, Level.SINGLE)
    assert [one.input_ids.tolist() for one in batch.passes] == [[[1, 2, 3, 4]], [[1, 2, 5]], [[6, 7]], [[6, 8, 9]]]
    assert all(one.layout is None for one in batch.passes)
    assert batch.tokens == 4, "of the largest pass"


@pytest.mark.parametrize("level", Level)
def test_answers_are_the_targets_and_their_first_token_comes_from_the_prompts_last_position(level):
    batch = pair_batch(PAIRS, level)
    assert flat(batch, "targets") == [3, 4, 5, 7, 8, 9]
    assert flat(batch, "sequence") == [0, 0, 1, 2, 3, 3]
    assert before(batch) == [2, 3, 2, 6, 6, 8]
    assert (batch.sequences, batch.lines) == (4, (7, 9))


@pytest.mark.parametrize("level", Level)
def test_a_conversation_trains_on_its_marked_tokens(level):
    batch = conversation_batch(CONVERSATIONS, level)
    assert flat(batch, "targets") == [3, 5, 7]
    assert before(batch) == [2, 4, 6]
    assert flat(batch, "sequence") == [0, 0, 1]
    assert (batch.sequences, batch.lines) == (2, (3, 4))
    assert len(batch.passes) == (2 if level is Level.SINGLE else 1)
