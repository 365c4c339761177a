"""Recovery states: from the newest one a run goes on exactly as if it had never stopped.

A state is a folder of safetensors and JSON. It gets a temporary name, a manifest with the SHA-256 of each file as the
last of them, and then its own name, so a state is either whole or recognisably not. The newest two are kept, because
the newest may turn out damaged. Where weights are spread over processes, each writes its shares, and the first one,
when all have, the manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from finetune_trainer.files import replace, sha256_of, sync, write_atomically
from finetune_trainer.shares import SavedShares, Share, save_shares

STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
WEIGHTS, OPTIMIZER = "weights", "optimizer"
ENDING = ".safetensors"
DIGESTS = ".digests-"
NEEDED = {"state", WEIGHTS, OPTIMIZER}
KEPT = 2


@dataclass(frozen=True, slots=True)
class RecoveryState:
    """Everything that training needs to go on after `step`."""

    step: int
    tensors: Mapping[str, Mapping[str, Share]]
    """Kind of tensors (weights, optimizer) to what this process writes of them."""
    facts: Mapping[str, Any]
    """The rest, as JSON."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """A state as it was found, whole and of this plan."""

    step: int
    facts: Mapping[str, Any]
    folder: Path

    def tensors(self, kind: str) -> SavedShares:
        """Those of a kind.

        Raises:
            OSError, SafetensorError: a file has gone since, or is damaged.
        """
        return SavedShares(sorted(self.folder.glob(f"{kind}*{ENDING}")))


@dataclass(frozen=True, slots=True)
class Writers:
    """The processes that write a state, each what it has."""

    rank: int = 0
    size: int = 1
    meet: Callable[[], None] = lambda: None
    """Returns once all have come so far; called by a background thread."""

    def file(self, kind: str) -> str:
        """What this process's file of a kind of tensors is called."""
        return f"{kind}{ENDING}" if self.size == 1 else f"{kind}-{self.rank + 1:05}-of-{self.size:05}{ENDING}"


class RecoveryStore:
    """The recovery states of one run, written by one background thread of each process that has something to write."""

    def __init__(
        self, folder: Path, identity: str, saved: Callable[[int], None], writers: Writers | None = None
    ) -> None:
        """`identity` stands for the run's plan: states of another plan are never loaded. `saved` hears each step.

        Of several writers the first one is made before any of them saves.
        """
        self._writers = writers or Writers()
        if self._writers.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _clean(folder)
        self._folder = folder
        self._identity = identity
        self._saved = saved
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recovery")
        self._pending: Future[None] | None = None
        self._pending_step: int | None = None
        self._saves = 0

    def save(self, state: RecoveryState) -> None:
        """Copy `state` and write the copy in the background, after any earlier one.

        Raises:
            OSError, SafetensorError: the earlier one could not be written.
        """
        self.wait()
        copied = {
            kind: {name: Share(share.tensor.detach().cpu().clone(), share.begin) for name, share in shares.items()}
            for kind, shares in state.tensors.items()
        }
        self._pending_step = state.step
        self._saves += 1
        self._pending = self._writer.submit(self._write, RecoveryState(state.step, copied, dict(state.facts)))

    def wait(self) -> None:
        """Until everything given to `save` is on the disk.

        Raises:
            OSError, SafetensorError: it could not be written.
        """
        pending, self._pending, self._pending_step = self._pending, None, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the background thread."""
        self._writer.shutdown()

    def newest(self) -> tuple[SavedState | None, list[str]]:
        """The newest state that is whole and of this plan, and a sentence for each newer one that is not."""
        skipped: list[str] = []
        for folder in reversed(self._folders()):
            try:
                return self._read(folder), skipped
            except (OSError, ValueError, KeyError, SafetensorError) as problem:
                skipped.append(f"the recovery state {folder.name} was skipped: {problem}")
        return None, skipped

    def steps(self) -> frozenset[int]:
        """Steps of the states that a restart may go on from, the one that is being written among them."""
        written = {_step_of(folder) for folder in self._folders()}
        return frozenset(written if self._pending_step is None else written | {self._pending_step})

    def _folders(self) -> list[Path]:
        found = (folder for folder in self._folder.glob("step-*") if folder.name.removeprefix("step-").isdecimal())
        return sorted(found, key=_step_of)

    def _write(self, state: RecoveryState) -> None:
        final = self._folder / f"step-{state.step}"
        # Counted, so that no writer takes the folder of an earlier state of this step for that of this one.
        temporary = self._folder / f".{final.name}.{self._saves}.tmp"
        temporary.mkdir(exist_ok=True)
        self._write_shares(state, temporary)
        self._writers.meet()
        if self._writers.rank == 0:
            facts = {"step": state.step, "identity": self._identity, "facts": state.facts}
            (temporary / STATE_FILE).write_text(json.dumps(facts))
            (temporary / MANIFEST_FILE).write_text(json.dumps(_digests(temporary)))
            _put(temporary, final)
            self._forget(state.step)
            self._saved(state.step)

    def _write_shares(self, state: RecoveryState, folder: Path) -> None:
        """This process's files; and, where it is not the first one, their digests, so that nobody has to read them."""
        for kind, shares in state.tensors.items():
            save_shares(shares, folder / self._writers.file(kind))
        if self._writers.rank > 0:
            files = [folder / self._writers.file(kind) for kind in state.tensors]
            for file in files:
                sync(file)
            digests = {file.name: sha256_of(file) for file in files}
            write_atomically(folder / f"{DIGESTS}{self._writers.rank}", json.dumps(digests))

    def _forget(self, step: int) -> None:
        """Remove all but the newest two up to `step`: this run has skipped what lies beyond its newest state."""
        kept = [folder for folder in self._folders() if _step_of(folder) <= step][-KEPT:]
        for folder in self._folders():
            if folder not in kept:
                shutil.rmtree(folder)

    def _read(self, folder: Path) -> SavedState:
        """Raises: OSError, ValueError, KeyError, SafetensorError: the state is damaged or of another plan."""
        digests = json.loads((folder / MANIFEST_FILE).read_text())
        if not isinstance(digests, dict) or not {name.split("-")[0].split(".")[0] for name in digests} >= NEEDED:
            raise ValueError(f"{MANIFEST_FILE} is damaged")
        for name, digest in digests.items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is damaged")
        facts = json.loads((folder / STATE_FILE).read_text())
        if facts["identity"] != self._identity:
            raise ValueError("it belongs to other data or settings")
        state = SavedState(facts["step"], facts["facts"], folder)
        for kind in (WEIGHTS, OPTIMIZER):
            state.tensors(kind)
        return state


def _digests(folder: Path) -> dict[str, str]:
    """Of every file of a state; those that the other writers have left are taken from what they say, which goes."""
    told: dict[str, str] = {}
    for note in folder.glob(f"{DIGESTS}*"):
        told |= json.loads(note.read_text())
        note.unlink()
    own = {path.name: sha256_of(path) for path in folder.iterdir() if path.name not in told}
    return dict(sorted((told | own).items()))


def _put(temporary: Path, final: Path) -> None:
    """Give a complete state its name; the one that has it already stands aside until that is done."""
    if final.exists():
        final.replace(_aside(final))
    replace(temporary, final)
    shutil.rmtree(_aside(final), ignore_errors=True)


def _clean(folder: Path) -> None:
    """Mend what a killed process left: states half written, and one that stands aside for nothing."""
    for half in folder.glob(".step-*.tmp"):
        shutil.rmtree(half)
    for aside in folder.glob(".step-*.old"):
        final = folder / aside.name.removeprefix(".").removesuffix(".old")
        if final.exists():
            shutil.rmtree(aside)
        else:
            aside.replace(final)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
