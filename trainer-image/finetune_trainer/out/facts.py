"""report.json: what the page about a run tells that metrics.jsonl does not hold.

Written at the output together with the page, so that the page can be made again from files alone. It quotes rows of
the data, as the page does; both lie beside the weights, where whoever may read the result may read them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from finetune_api.base import ApiModel, Flag, Integer, Number, Time
from finetune_api.names import REPORT_FACTS_FILE
from finetune_api.report import Report
from finetune_api.status import DataStatus, Resolved
from finetune_api.trainer import TrainerConfig


class Passage(ApiModel):
    """A text of a row, cut to what a person reads."""

    text: str
    omitted: Integer = 0
    """Characters left out: of a prompt its beginning, of an answer its end."""


class Answer(ApiModel):
    """What is trained on, or against."""

    passage: Passage
    tokens: Integer
    """Length of the whole answer."""
    before: Number | None = None
    """Sum of the log-probabilities of its tokens before the first step; None where it was not finite or not scored."""
    after: Number | None = None
    """The same at the end."""

    @property
    def change(self) -> float | None:
        """What training added, in nats."""
        return None if self.before is None or self.after is None else self.after - self.before


class Sample(ApiModel):
    """A row, and what training has made of it."""

    line: Integer
    """Line in its file, from 1."""
    images: tuple[Annotated[str, StringConstraints(pattern=r"^data:image/webp;base64,[A-Za-z0-9+/]+=*$")], ...] = ()
    """What the prompt shows, small, as URLs that hold it."""
    prompt: Passage
    answers: tuple[Answer, ...]
    """The preferred and the non-preferred one; under SFT the trained one alone."""
    margin_before: Number | None = None
    """Reward of the preferred answer minus that of the other, before the first step; None under SFT."""
    margin_after: Number | None = None
    """The same at the end."""

    @property
    def gain(self) -> float | None:
        """What training has changed for the better: of the margin, under SFT of the answer's log-probability a token.

        None where it is not known.
        """
        if len(self.answers) == 1:
            change = self.answers[0].change
            return None if change is None else change / self.answers[0].tokens
        if self.margin_before is None or self.margin_after is None:
            return None
        return self.margin_after - self.margin_before


class Facts(ApiModel):
    """All that the page says but the curves."""

    written: Time
    """When."""
    config: TrainerConfig
    """What was asked for, absent values filled in."""
    base: str
    """The starting model: its Hub id, else its URI."""
    base_revision: str | None = None
    """Its commit on the Hub."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the libraries that computed."""
    data: DataStatus
    """What was found in the data."""
    resolved: Resolved
    """What absent values became, and the digests of the files."""
    report: Report
    """How the run stood: checkpoints, warnings, how it ended."""
    held_out: Flag = False
    """The samples are validation rows, which were not trained on."""
    samples: tuple[Sample, ...] = ()
    """A few rows at equal distances in their file."""
    control_tokens: tuple[str, ...] = ()
    """How the tokenizer writes those of its tokens that are no text."""


class NoFacts(Exception):
    """A folder has no report.json that can be read; the text says why."""


def read_facts(folder: Path) -> Facts:
    """What a run has left in its output folder.

    Raises:
        NoFacts
    """
    path = folder / REPORT_FACTS_FILE
    try:
        return Facts.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NoFacts(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise NoFacts(f"{path} is not what this version writes") from error
