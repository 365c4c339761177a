"""The data files of a job, fetched from wherever they are to this machine, with their digests and how far they are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from finetune_api.status import Progress, ResolvedFile
from finetune_api.trainer import TrainerConfig
from finetune_trainer.data.check import PROGRESS_SECONDS, Tell
from finetune_trainer.data.https import Web
from finetune_trainer.data.sources import fetch_file
from finetune_trainer.files import sha256_of


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file on this machine."""

    name: str
    """trainingFile or validationFile."""
    uri: str
    path: Path
    digest: ResolvedFile


@dataclass(slots=True)
class Downloads:
    """What is fetched for a run of this step: where it lies until the end, and how it is told of."""

    scratch: Path
    tell: Tell
    told: float = 0.0
    """When progress was last told, on the monotonic clock."""

    def fetch(self, config: TrainerConfig, name: str, uri: str) -> DataFile:
        """The data file of field `name`.

        Raises:
            RunFailed: as `fetch_file`.
        """
        found = fetch_file(
            uri,
            config.mounts,
            config.offline,
            name,
            web=Web(config.https_hosts),
            scratch=self.scratch,
            told=self._progress,
        )
        size, digest = found.path.stat().st_size, sha256_of(found.path)
        return DataFile(name, uri, found.path, ResolvedFile(sha256=digest, size_bytes=size, revision=found.revision))

    def _progress(self, here: int, size: int | None) -> None:
        if time.monotonic() - self.told >= PROGRESS_SECONDS:
            display = f"{here / 1e9:.2f} of {size / 1e9:.2f} GB" if size else f"{here / 1e9:.2f} GB"
            share = int(100 * here / size) if size else 0
            self.tell(progress=Progress(display=display, step=0, total_steps=0, percentage=share))
            self.told = time.monotonic()
