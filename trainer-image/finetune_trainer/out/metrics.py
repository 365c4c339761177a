"""metrics.jsonl: one line per optimiser step and one per evaluation, the whole truth of a run in numbers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from finetune_trainer.failures import RunFailed
from finetune_trainer.mirror import VOLUME, Mirror


class MetricsLog:
    """The file, open for appending after `position` bytes; what a killed run wrote beyond them is cut off."""

    def __init__(self, path: Path | None, position: int, mirror: Mirror = VOLUME) -> None:
        """`path`: None = another process writes them."""
        self._path, self._mirror = path, mirror
        self._file = None
        if path is not None:
            mirror.fetch_file(path)
            self._file = path.open("ab")
            self._file.truncate(min(position, self._file.seek(0, os.SEEK_END)))

    def append(self, step: int, stage: str, values: Mapping[str, float], **more: object) -> None:
        """Write `{"step": step, "<stage>/<name>": value, ...}`; values that are not finite have no JSON form."""
        if self._file is None:
            return
        finite = {f"{stage}/{name}": value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite, **more}).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes written so far, all of them where they survive this process."""
        if self._file is None or self._path is None:
            return 0
        os.fsync(self._file.fileno())
        self._mirror.put_file(self._path)
        return self._file.tell()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None or self._path is None:
            return
        self._file.close()
        with suppress(*[RunFailed] if error else []):  # what ended the run matters more than its last lines
            self._mirror.put_file(self._path)
