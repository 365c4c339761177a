"""Recovery states: from the newest one a run goes on exactly as if it had never stopped.

A state is a folder of safetensors and JSON. It gets a temporary name, a manifest with the SHA-256 of each file as the
last of them, and then its own name, so a state is either whole or recognisably not. To a store its manifest goes last
too. The newest two are kept, because the newest may turn out damaged. Where weights are spread over processes, each
writes its shares, and the first one, when all have, the manifest.
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

from finetune_trainer.files import replace, sha256_of, sync
from finetune_trainer.mirror import VOLUME, Mirror
from finetune_trainer.shares import SavedShares, Share, save_shares

STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
WEIGHTS, OPTIMIZER = "weights", "optimizer"
ENDING = ".safetensors"
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
    exchange: Callable[[dict[str, str]], dict[str, str]] = dict
    """What each of them gives, together, once all have come so far; called by a background thread."""

    def file(self, kind: str) -> str:
        """What this process's file of a kind of tensors is called."""
        return f"{kind}{ENDING}" if self.size == 1 else f"{kind}-{self.rank + 1:05}-of-{self.size:05}{ENDING}"


class RecoveryStore:
    """The recovery states of one run, written by one background thread of each process that has something to write."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        saved: Callable[[int], None],
        mirror: Mirror = VOLUME,
        writers: Writers | None = None,
    ) -> None:
        """`identity` stands for the run's plan: states of another plan are never loaded. `saved` hears each step.

        Of several writers the first one is made before any of them saves.
        """
        self._writers = writers or Writers()
        if self._writers.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _clean(folder)
            mirror.remove_halves(folder, MANIFEST_FILE)
        self._folder, self._mirror = folder, mirror
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
        for step in sorted(self._written(), reverse=True):
            folder = self._place(step)
            self._mirror.fetch_folder(folder)
            try:
                return self._read(folder), skipped
            except (OSError, ValueError, KeyError, SafetensorError) as problem:
                skipped.append(f"the recovery state {folder.name} was skipped: {problem}")
                self._mirror.spare(folder)
        return None, skipped

    def steps(self) -> frozenset[int]:
        """Steps of the states that a restart may go on from, the one that is being written among them."""
        written = self._written()
        return written if self._pending_step is None else written | {self._pending_step}

    def _written(self) -> frozenset[int]:
        numbers = [name.removeprefix("step-") for name in self._mirror.names(self._folder) if name.startswith("step-")]
        return frozenset(int(number) for number in numbers if number.isdecimal())

    def _place(self, step: int) -> Path:
        return self._folder / f"step-{step}"

    def _write(self, state: RecoveryState) -> None:
        final = self._place(state.step)
        # Counted, so that no writer takes the folder of an earlier state of this step for that of this one.
        temporary = self._folder / f".{final.name}.{self._saves}.tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        digests = self._write_shares(state, temporary, final)
        if self._writers.rank == 0:
            facts = {"step": state.step, "identity": self._identity, "facts": state.facts}
            (temporary / STATE_FILE).write_text(json.dumps(facts))
            digests[STATE_FILE] = sha256_of(temporary / STATE_FILE)
            (temporary / MANIFEST_FILE).write_text(json.dumps(digests))
            _put(temporary, final)
            self._mirror.put_folder(final, last=MANIFEST_FILE, kept=digests.keys())
            self._mirror.spare(final)
            self._forget(state.step)
            self._saved(state.step)

    def _write_shares(self, state: RecoveryState, temporary: Path, final: Path) -> dict[str, str]:
        """This process's files, to be those of the state `final`; returns the digests of all writers' files.

        In a store there is no temporary name: of an earlier state of this step, which this one replaces, the manifest
        goes before any other file does.
        """
        first, several = self._writers.rank == 0, self._writers.size > 1
        if first and several:
            self._mirror.remove_file(final / MANIFEST_FILE)
        if several:
            self._writers.exchange({})
        digests = {}
        for kind, shares in state.tensors.items():
            file = temporary / self._writers.file(kind)
            save_shares(shares, file)
            digests[file.name] = sha256_of(file)
            if not first:
                sync(file)
                self._mirror.put_file(file, final / file.name)
                self._mirror.spare(file)
        return self._writers.exchange(digests)

    def _forget(self, step: int) -> None:
        """Remove all but the newest two up to `step`: this run has skipped what lies beyond its newest state."""
        written = self._written()
        for gone in written.difference(sorted(known for known in written if known <= step)[-KEPT:]):
            if self._place(gone).exists():
                shutil.rmtree(self._place(gone))
            self._mirror.remove_folder(self._place(gone), first=MANIFEST_FILE)

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
