"""What a run leaves for its report: how it stood at the end, and the sample rows in words and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune_api.report import Report
from finetune_trainer.data.chat import ChatTokenizer
from finetune_trainer.data.prepared import Prepared
from finetune_trainer.data.tokens import IntArray, Pair
from finetune_trainer.out.card import versions
from finetune_trainer.out.clock import now
from finetune_trainer.out.facts import Answer, Facts, Passage, Sample
from finetune_trainer.out.publish import Publisher
from finetune_trainer.run.loop import Position
from finetune_trainer.run.rows import PreferenceRows
from finetune_trainer.run.samples import Samples, Scores
from finetune_trainer.run.thumbnails import thumbnails
from finetune_trainer.step.losses import preference_rewards

PROMPT_CHARACTERS, ANSWER_CHARACTERS = 1500, 2500
"""What a person reads of a text. A prompt ends with its question, an answer begins with its reply."""


def facts_of(publisher: Publisher, prepared: Prepared, report: Report, samples: Samples, position: Position) -> Facts:
    """What the page about a run tells beside its curves.

    Args:
        report: how the run stands.
        position: has the scores of `samples`, which are left out where it has none of after the first step, or none of
            before it, as a state that an older version saved.
    """
    chat = ChatTokenizer(publisher.tokenizer)
    return Facts(
        written=now(),
        config=publisher.config,
        base=publisher.card.base_name,
        base_revision=publisher.card.base_revision,
        versions=versions(),
        data=prepared.data,
        resolved=prepared.resolved,
        report=report.model_copy(update={"history": None, "data": None, "resolved": None}),
        held_out=samples.held_out,
        samples=_Telling(samples, chat).all(position) if position.samples_before and position.samples_after else (),
        control_tokens=tuple(sorted(set(chat.control.values()))),
    )


@dataclass(frozen=True, slots=True)
class _Telling:
    """Puts rows into words and figures."""

    samples: Samples
    chat: ChatTokenizer

    def all(self, position: Position) -> tuple[Sample, ...]:
        """Every sample, in the order of its file."""
        count = len(self.samples.chosen)
        before, after = _by_row(position.samples_before, count), _by_row(position.samples_after, count)
        margins = zip(self._margins(before), self._margins(after), strict=True)
        found = zip(self.samples.chosen, before, after, margins, strict=True)
        return tuple(self._sample(row, list(zip(was, became, strict=True)), m) for row, was, became, m in found)

    def _sample(
        self, row: int, scores: list[tuple[float, float]], margins: tuple[float | None, float | None]
    ) -> Sample:
        """A row; of each of its answers the score before and after."""
        found = self.samples.rows.cache[row]
        if isinstance(found, Pair):
            prompt = found.prompt
            answers = [(found.preferred, len(found.preferred)), (found.non_preferred, len(found.non_preferred))]
        else:
            begin = int(found.targets.argmax())
            prompt, answers = found.tokens[:begin], [(found.tokens[begin:], int(found.targets.sum()))]
        return Sample(
            line=found.line,
            images=thumbnails(found.images),
            prompt=passage(self.chat, prompt, PROMPT_CHARACTERS, from_end=True),
            answers=tuple(
                Answer(
                    passage=passage(self.chat, tokens, ANSWER_CHARACTERS),
                    tokens=count,
                    before=_finite(before),
                    after=_finite(after),
                )
                for (tokens, count), (before, after) in zip(answers, scores, strict=True)
            ),
            margin_before=margins[0],
            margin_after=margins[1],
        )

    def _margins(self, scores: Sequence[Scores]) -> list[float | None]:
        """Reward of the preferred answer minus that of the other, for each row; None where there is none."""
        rows = self.samples.rows
        if not isinstance(rows, PreferenceRows):
            return [None] * len(scores)
        chosen = torch.tensor(self.samples.chosen)
        reference: Tensor | None = None if rows.reference is None else rows.reference[chosen]
        lengths = torch.from_numpy(rows.lengths[self.samples.chosen])
        rewards = preference_rewards(torch.tensor(scores, dtype=torch.float64), reference, lengths, rows.objective)
        return [_finite(margin) for margin in (rewards[:, 0] - rewards[:, 1]).tolist()]


def passage(chat: ChatTokenizer, tokens: IntArray, most: int, *, from_end: bool = False) -> Passage:
    """The text of `tokens`, of which at most `most` characters stay: the first ones, or the last.

    A run of one and the same control token, of which an image has hundreds, stands once.
    """
    repeats = np.append(False, tokens[1:] == tokens[:-1]) & np.isin(tokens, list(chat.control))
    text = str(chat.tokenizer.decode(tokens[~repeats].tolist(), clean_up_tokenization_spaces=False))
    kept = text[-most:] if from_end else text[:most]
    return Passage(text=kept, omitted=len(text) - len(kept))


def _by_row(scores: Scores, count: int) -> list[Scores]:
    """The scores of each of `count` rows."""
    each = len(scores) // count
    return [scores[each * k : each * (k + 1)] for k in range(count)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
