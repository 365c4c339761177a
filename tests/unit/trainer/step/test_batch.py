"""Micro-batches: which state predicts which target, and that padding is seen by nobody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune_trainer.step.batch import conversation_batch, pair_batch


@dataclass
class Pair:
    prompt: np.ndarray
    preferred: np.ndarray
    non_preferred: np.ndarray


@dataclass
class Conversation:
    tokens: np.ndarray
    targets: np.ndarray


def pair(prompt, preferred, non_preferred):
    return Pair(*(np.array(part, np.int32) for part in (prompt, preferred, non_preferred)))


def test_a_pair_is_two_lines_and_its_answers_are_the_targets():
    batch = pair_batch([pair([1, 2], [3, 4], [5]), pair([6], [7], [8, 9])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [1, 2, 5, 0], [6, 7, 0, 0], [6, 8, 9, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch.targets.tolist() == [3, 4, 5, 7, 8, 9]
    assert batch.sequence.tolist() == [0, 0, 1, 2, 3, 3]
    assert (batch.sequences, batch.tokens) == (4, 16)


def test_a_target_is_predicted_from_the_position_before_it():
    batch = pair_batch([pair([1, 2], [3, 4], [5]), pair([6], [7], [8, 9])])
    before = batch.input_ids.flatten()[batch.predictors]
    assert before.tolist() == [2, 3, 2, 6, 6, 8], "the first token of each answer: from the prompt's last position"


def test_a_conversation_trains_on_its_marked_tokens():
    rows = [
        Conversation(np.array([1, 2, 3, 4, 5], np.int32), np.array([False, False, True, False, True])),
        Conversation(np.array([6, 7], np.int32), np.array([False, True])),
    ]
    batch = conversation_batch(rows)
    assert batch.targets.tolist() == [3, 5, 7]
    assert batch.input_ids.flatten()[batch.predictors].tolist() == [2, 4, 6]
    assert batch.sequence.tolist() == [0, 0, 1]
    assert batch.sequences == 2
