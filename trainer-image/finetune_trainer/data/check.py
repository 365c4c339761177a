"""One pass over a data file: every row checked, rendered, tokenised and counted, every finding reported."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finetune_api.data import DataOptions, Duplicates, ExtraColumns, Overlong
from finetune_api.failures import FailureCode
from finetune_api.findings import DataErrorCode as Code
from finetune_api.findings import DataWarningCode as Odd
from finetune_api.method import MethodType, TrainOnInputs
from finetune_api.status import Progress
from finetune_trainer.data.chat import Part, RowRefused
from finetune_trainer.data.deadline import TEMPLATE_SECONDS, TookTooLong, at_most
from finetune_trainer.data.examples import Example, Text, digest_of, example_of, prompt_digest_of
from finetune_trainer.data.gate import COLUMNS, TEXT, TOKEN_IDS, Format, Shape, check_row, shape_of
from finetune_trainer.data.overlong import longest_side, prompt_size, shortened, split
from finetune_trainer.data.reader import DataFile
from finetune_trainer.data.report import Findings
from finetune_trainer.data.rows import Line, Problem, Row
from finetune_trainer.data.seen import Seen
from finetune_trainer.data.statistics import Lengths, oddities
from finetune_trainer.data.tokenise import Tokeniser
from finetune_trainer.data.tokens import CacheKind, Conversation, Pair
from finetune_trainer.failures import failed

PROGRESS_SECONDS = 1.0
FAULTS_OF_MODEL = frozenset({Code.NO_CHAT_TEMPLATE, Code.NO_END_TOKEN, Code.IMAGES_UNSUPPORTED})

Tell = Callable[..., None]
"""Takes fields of finetune_api.report.Report by name."""
CacheRow = Pair | Conversation


@dataclass(frozen=True, slots=True)
class Rules:
    """What rows are held to."""

    method: MethodType | None
    """None = whatever fits the format."""
    tokenise: Tokeniser | None
    """None = rows are not rendered, as no model is named."""
    max_seq_length: int
    options: DataOptions

    @property
    def kind(self) -> CacheKind:
        """What a row becomes: SFT turns preference rows into conversations that end with the preferred answer."""
        return CacheKind.PREFERENCE if self.method is MethodType.DPO else CacheKind.CONVERSATION


@dataclass(slots=True)
class Tally:
    """What was counted in a file, beside its findings."""

    rows: int = 0
    line: int = 0
    """The one that was read last."""
    used: int = 0
    """Rows for the cache; a text that was split gives several."""


class FileCheck:
    """The pass over one file. `rows()` gives the good rows; the rest is counted and told to `findings`.

    Args:
        training: digests of the training file, if this is another one.
        seen: takes this file's digests.
    """

    def __init__(
        self, path: Path, uri: str, rules: Rules, findings: Findings, seen: Seen, training: Seen | None = None
    ) -> None:
        self.path = path
        self.uri = uri
        self.rules = rules
        self.findings = findings
        self.seen = seen
        self.training = training
        self.tally = Tally()
        self.lengths = Lengths()
        self.shape: Shape | None = None
        self._told_once: set[Code] = set()

    @property
    def format(self) -> Format | None:
        """The format of the file, once a row has told it."""
        return self.shape.format if self.shape else None

    def head(self) -> dict[str, Any]:
        """What a report says of the file before its findings."""
        return {"format": self.format, "rows": self.tally.rows, "used": self.tally.used}

    def oddities(self, *only: Odd) -> list[str]:
        """Sentences on what is odd about the file but no error."""
        warned = {code: count for code, count in self.findings.warned.items() if code in (only or Odd)}
        return list(oddities(self.findings.name, self.tally.rows, self.rules.max_seq_length, warned))

    def rows(self, tell: Tell) -> Iterator[CacheRow]:
        """The rows that are trained on, in the file's order; none without a tokeniser.

        Raises:
            RunFailed: DataUnreachable, MethodNeedsPreference, TextWithoutInputs, ConfigInvalid, StorageFull.
            OSError: the folder of the findings is full.
        """
        told = time.monotonic()
        file = DataFile(self.path, COLUMNS)
        for line in self._lines(file):
            self.tally.rows += 1
            self.tally.line = line.number
            for row in self._row(line):
                self.tally.used += 1
                self.lengths.add(row)
                yield row
            if time.monotonic() - told >= PROGRESS_SECONDS:
                tell(progress=self._progress(file.share))
                told = time.monotonic()
        if self.tally.rows == 0:
            self.findings.errors(1, [Problem("", Code.EMPTY_FILE)])

    def _lines(self, file: DataFile) -> Iterator[Line]:
        try:
            yield from file.lines()
        except OSError as error:
            raise failed(FailureCode.DATA_UNREACHABLE, uri=self.uri, problem=error.strerror) from error

    def _row(self, line: Line) -> list[CacheRow]:
        """The tokens of a row; nothing if it is bad (and reported) or left out (and counted)."""
        content = line.content
        problems = [content] if isinstance(content, Problem) else []
        if isinstance(content, dict):
            try:
                problems = self._judge(content)
                if not problems:
                    return self._good(line.number, content)
            except RowRefused as refused:
                problems = [Problem(self._field(refused.part), refused.code)]
            except UnicodeEncodeError:
                problems = [Problem("", Code.INVALID_UTF8)]
            except RecursionError:
                problems = [Problem("", Code.INVALID_JSON)]
        self._report(line.number, problems)
        return []

    def _report(self, line: int, problems: list[Problem]) -> None:
        """What lies in the model, and so in every row, is told of the first."""
        code = problems[0].code
        if code not in self._told_once:
            self.findings.errors(line, problems)
        if code in FAULTS_OF_MODEL:
            self._told_once.add(code)

    def _judge(self, row: Row) -> list[Problem]:
        """Format and rules; the first row of a known format decides the format of the file."""
        shape = shape_of(row, self.shape)
        if shape is None:
            ids = TOKEN_IDS in row
            return [Problem(TOKEN_IDS, Code.PRETOKENISED) if ids else Problem("", Code.UNKNOWN_FORMAT)]
        if self.shape is None:
            self.shape = shape
            self._judge_method(shape)
        if shape is not self.shape:
            return [Problem("", Code.MIXED_FORMATS)]
        return check_row(row, shape, extra_columns=self.rules.options.extra_columns is ExtraColumns.IGNORE)

    def _judge_method(self, shape: Shape) -> None:
        file = f"{self.findings.name} {self.uri}"
        if shape.format is not Format.PREFERENCE and self.rules.method is MethodType.DPO:
            raise failed(FailureCode.METHOD_NEEDS_PREFERENCE, file=file, format=shape.format)
        never = self.rules.tokenise and self.rules.tokenise.train_on_inputs is TrainOnInputs.NEVER
        if shape is TEXT and never:
            raise failed(FailureCode.TEXT_WITHOUT_INPUTS, file=file)

    def _good(self, line: int, row: Row) -> list[CacheRow]:
        """What a row that broke no rule becomes."""
        assert self.shape is not None
        example, weight = example_of(row, self.shape, self.rules.method), row.get("weight")
        weight = 1.0 if weight is None else float(weight)
        if self._repeats(line, example, weight) and self.rules.options.duplicates is Duplicates.DROP:
            return []
        if self.rules.tokenise is None:
            return []
        if weight == 0 or not self.rules.tokenise.learns(example):
            self.findings.warning(line, Odd.NOTHING_TO_TRAIN)
            return []
        try:
            with at_most(TEMPLATE_SECONDS):
                return self._tokens(line, example, weight)
        except TookTooLong as error:
            problem = f"the chat template is still not done with line {line} after {TEMPLATE_SECONDS:.0f} s"
            raise failed(FailureCode.CONFIG_INVALID, field="data.chatTemplate", problem=problem) from error

    def _repeats(self, line: int, example: Example, weight: float) -> bool:
        """Note the row and its prompt, report what was there before; True if an earlier row is the same."""
        row = digest_of(example, weight)
        wanted = self.training is not None or self.seen.keeps_prompts
        prompt = prompt_digest_of(example) if wanted else None
        first = self.seen.add_row(row)
        if not first:
            self.findings.warning(line, Odd.DUPLICATE_ROW)
        if self.training is None:
            if prompt is not None:
                self.seen.add_prompt(prompt)
        elif self.training.has_row(row):
            self.findings.warning(line, Odd.IN_TRAINING_FILE)
        elif prompt is not None and self.training.has_prompt(prompt):
            self.findings.warning(line, Odd.PROMPT_IN_TRAINING_FILE)
        return not first

    def _tokens(self, line: int, example: Example, weight: float) -> list[CacheRow]:
        assert self.rules.tokenise is not None
        found = self.rules.tokenise(example, line, weight)
        rows = self._fitting(found.row, example)
        if rows and found.last_turn_only:
            self.findings.warning(line, Odd.LAST_TURN_ONLY)
        if rows and self.rules.tokenise.holds_mark(example):
            self.findings.warning(line, Odd.CONTROL_TOKEN)
        return rows

    def _fitting(self, row: CacheRow, example: Example) -> list[CacheRow]:
        """The row, or what is made of one that is too long. An answer is never cut."""
        limit, policy = self.rules.max_seq_length, self.rules.options.overlong
        if longest_side(row) <= limit:
            return [row] if not isinstance(row, Conversation) or row.targets.any() else self._weightless(row)
        full = prompt_size(row) >= limit
        if policy is Overlong.FAIL:
            raise RowRefused(Part.PROMPT, Code.PROMPT_TOO_LONG) if full else RowRefused(Part.ROW, Code.ROW_TOO_LONG)
        made = self._shortened(row, example) if policy is Overlong.TRUNCATE else []
        left_out = Odd.PROMPT_TOO_LONG if full else Odd.TOO_LONG
        self.findings.warning(row.line, Odd.TRUNCATED if made else left_out)
        return made

    def _shortened(self, row: CacheRow, example: Example) -> list[CacheRow]:
        tokenise = self.rules.tokenise
        assert tokenise is not None
        if isinstance(example, Text) and isinstance(row, Conversation) and example.stands_alone:
            return list(split(row, self.rules.max_seq_length))
        again = partial(tokenise, line=row.line, weight=row.weight)
        shorter = shortened(example, self.rules.max_seq_length, lambda choice: again(choice).row)
        return [shorter] if shorter is not None else []

    def _weightless(self, row: CacheRow) -> list[CacheRow]:
        self.findings.warning(row.line, Odd.NOTHING_TO_TRAIN)
        return []

    def _field(self, part: Part) -> str:
        assert self.shape is not None
        answer, worse = self.shape.answers
        return {Part.ROW: "", Part.PROMPT: self.shape.prompt, Part.ANSWER: answer, Part.WORSE_ANSWER: worse}[part]

    def _progress(self, share: float) -> Progress:
        rows = self.tally.rows
        return Progress(display=f"{rows} rows", step=rows, total_steps=0, percentage=int(100 * share))
