"""One pass over a data file: every row checked, rendered, tokenised and counted, every bad one reported."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune_api.method import MethodType
from finetune_api.report import DataErrorCode as Code
from finetune_api.report import FailureCode
from finetune_api.status import Progress
from finetune_trainer.data.chat import ChatTokenizer, RowRefused, for_template
from finetune_trainer.data.gate import ASSISTANT, Format, check_row, format_of
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Line, Problem, Row, read_lines
from finetune_trainer.data.tokens import CacheKind, Conversation, Pair
from finetune_trainer.failures import failed

DIGEST_BYTES = 16
PROGRESS_SECONDS = 1.0

Tell = Callable[..., None]
"""Takes fields of finetune_api.report.Report by name."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What rows are held to."""

    chat: ChatTokenizer
    method: MethodType
    max_seq_length: int
    vocab_size: int | None
    """Rows of the model's embedding, where its configuration says."""

    @property
    def kind(self) -> CacheKind:
        """What a row becomes: SFT turns preference rows into conversations that end with the preferred answer."""
        return CacheKind.PREFERENCE if self.method is MethodType.DPO else CacheKind.CONVERSATION


@dataclass(slots=True)
class Seen:
    """Digests of the rows and prompts of a file."""

    rows: set[bytes] = field(default_factory=set)
    prompts: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Tally:
    """What was counted in a file."""

    rows: int = 0
    used: int = 0
    dropped: int = 0
    duplicates: int = 0
    last_turn_only: int = 0
    shared_rows: int = 0
    shared_prompts: int = 0
    """Rows that differ from all of the training file but whose prompt does not."""


class FileCheck:
    """The pass over one file. `rows()` gives the good rows; the rest is counted in `tally` and told to the report."""

    def __init__(self, name: str, path: Path, uri: str, rules: Rules, report: DataReport) -> None:
        self.name = name
        self.path = path
        self.uri = uri
        self.rules = rules
        self.report = report
        self.tally = Tally()
        self.seen = Seen()
        self.format: Format | None = None
        self._no_template_reported = False

    def rows(self, training: Seen | None, tell: Tell) -> Iterator[Pair | Conversation]:
        """The rows that are trained on, in the file's order. `training` holds what an earlier file had.

        Raises:
            RunFailed: DataUnreachable, MethodNeedsPreference.
        """
        size = max(self.path.stat().st_size, 1)
        told = time.monotonic()
        for line in self._lines():
            self.tally.rows += 1
            row = self._row(line, training)
            if row is not None:
                self.tally.used += 1
                yield row
            if time.monotonic() - told >= PROGRESS_SECONDS:
                tell(progress=self._progress(line.end / size))
                told = time.monotonic()
        if self.tally.rows == 0:
            self.report.add(self.name, 1, [Problem("", Code.EMPTY_FILE)])

    def _lines(self) -> Iterator[Line]:
        try:
            yield from read_lines(self.path)
        except OSError as error:
            raise failed(FailureCode.DATA_UNREACHABLE, uri=self.uri, problem=error.strerror) from error

    def _row(self, line: Line, training: Seen | None) -> Pair | Conversation | None:
        """The tokens of a row; None if it is bad (and reported) or too long (and counted)."""
        content = line.content
        problems = [content] if isinstance(content, Problem) else self._judge(content)
        if not problems and isinstance(content, dict):
            try:
                self._count_repeats(content, training)
                return self._fitting(self._tokenise(line.number, content))
            except RowRefused as refused:
                problems = [refused.problem]
        if problems != [Problem("", Code.NO_CHAT_TEMPLATE)] or not self._no_template_reported:
            self._no_template_reported |= problems == [Problem("", Code.NO_CHAT_TEMPLATE)]
            self.report.add(self.name, line.number, problems)
        return None

    def _judge(self, row: Row) -> list[Problem]:
        """Format and rules; the first row of a known format decides the format of the file."""
        form = format_of(row, self.format)
        if form is None:
            return [Problem("", Code.UNKNOWN_FORMAT)]
        if self.format is None:
            self.format = form
            if form is not Format.PREFERENCE and self.rules.method is MethodType.DPO:
                file = f"{self.name} {self.uri}"
                raise failed(FailureCode.METHOD_NEEDS_PREFERENCE, file=file, format=form)
        if form is not self.format:
            return [Problem("", Code.MIXED_FORMATS)]
        return check_row(row, form)

    def _count_repeats(self, row: Row, training: Seen | None) -> None:
        prompt = row["input"] if self.format is Format.PREFERENCE else row["messages"][: _last_answer(row["messages"])]
        row_digest, prompt_digest = _digest(row), _digest(prompt)
        self.tally.duplicates += row_digest in self.seen.rows
        if training is None:
            self.seen.prompts.add(prompt_digest)
        elif row_digest in training.rows:
            self.tally.shared_rows += 1
        elif prompt_digest in training.prompts:
            self.tally.shared_prompts += 1
        self.seen.rows.add(row_digest)

    def _tokenise(self, line: int, row: Row) -> Pair | Conversation:
        chat = self.rules.chat
        if not chat.has_template:
            raise RowRefused("", Code.NO_CHAT_TEMPLATE)
        source = row["input"] if self.format is Format.PREFERENCE else row
        messages, tools = for_template(source["messages"]), source.get("tools") or None
        answers = for_template([row[side][0] for side in ("preferred_output", "non_preferred_output") if side in row])
        if self.rules.kind is CacheKind.PREFERENCE:
            pair = chat.pair(messages, tools, *answers)
            return Pair(line, pair.prompt, pair.preferred, pair.non_preferred)
        conversation = chat.conversation([*messages, *answers[:1]], tools)
        self.tally.last_turn_only += conversation.last_turn_only
        return Conversation(line, conversation.tokens, conversation.targets)

    def _fitting(self, row: Pair | Conversation) -> Pair | Conversation | None:
        """The row if it may be trained on; None, and counted, if it is too long. An answer is never cut."""
        if isinstance(row, Pair):
            prompt = row.prompt.size
            longest = prompt + max(row.preferred.size, row.non_preferred.size)
            tokens, where = np.concatenate([row.prompt, row.preferred, row.non_preferred]), "input.messages"
        else:
            prompt, longest, tokens = int(np.argmax(row.targets)), row.tokens.size, row.tokens
            where = "messages" if self.format is Format.CONVERSATION else "input.messages"
        if self.rules.vocab_size is not None and tokens.max() >= self.rules.vocab_size:
            raise RowRefused("", Code.TOKEN_OUT_OF_RANGE)
        if prompt >= self.rules.max_seq_length:
            raise RowRefused(where, Code.PROMPT_TOO_LONG)
        if longest > self.rules.max_seq_length:
            self.tally.dropped += 1
            return None
        return row

    def _progress(self, share: float) -> Progress:
        rows = self.tally.rows
        return Progress(display=f"{rows} rows", step=rows, total_steps=0, percentage=int(100 * share))


def _last_answer(messages: list[Row]) -> int:
    return max(index for index, message in enumerate(messages) if message["role"] == ASSISTANT)


def _digest(value: object) -> bytes:
    """16 bytes that tell rows apart whatever the order of their keys.

    Raises:
        RowRefused: a text holds a lone surrogate, which no encoding can write.
    """
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise RowRefused("", Code.INVALID_UTF8) from error
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()
