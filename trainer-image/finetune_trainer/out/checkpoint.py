"""Recovery states: from the newest one a run goes on exactly as if it had never stopped.

A state is a folder of safetensors and JSON. It gets a temporary name, a manifest with the SHA-256 of each file as the
last of them, and then its own name, so a state is either whole or recognisably not. To a store its manifest goes last
too. The newest two are kept, because the newest may turn out damaged.
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer.files import replace, sha256_of
from finetune_trainer.mirror import VOLUME, Mirror

STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
WEIGHTS_FILE, OPTIMIZER_FILE = "weights.safetensors", "optimizer.safetensors"
KEPT = 2


@dataclass(frozen=True, slots=True)
class RecoveryState:
    """Everything that training needs to go on after `step`."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File name without ending (weights, optimizer) to its tensors."""
    facts: Mapping[str, Any]
    """The rest, as JSON."""


class RecoveryStore:
    """The recovery states of one run, written by one background thread."""

    def __init__(self, folder: Path, identity: str, saved: Callable[[int], None], mirror: Mirror = VOLUME) -> None:
        """`identity` stands for the run's plan: states of another plan are never loaded. `saved` hears each step."""
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        mirror.remove_halves(folder, MANIFEST_FILE)
        self._folder, self._mirror = folder, mirror
        self._identity = identity
        self._saved = saved
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recovery")
        self._pending: Future[None] | None = None
        self._pending_step: int | None = None

    def save(self, state: RecoveryState) -> None:
        """Copy `state` and write the copy in the background, after any earlier one.

        Raises:
            OSError, SafetensorError: the earlier one could not be written.
        """
        self.wait()
        copied = {file: {k: t.detach().cpu().clone() for k, t in part.items()} for file, part in state.tensors.items()}
        self._pending_step = state.step
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

    def newest(self) -> tuple[RecoveryState | None, list[str]]:
        """The newest state that is whole and of this plan, and a sentence for each newer one that is not."""
        skipped: list[str] = []
        for step in sorted(self._written(), reverse=True):
            folder = self._place(step)
            self._mirror.fetch_folder(folder)
            try:
                return self._read(folder), skipped
            except (OSError, ValueError, KeyError, SafetensorError) as problem:
                skipped.append(f"the recovery state {folder.name} was skipped: {problem}")
            finally:
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
        temporary = self._folder / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, tensors in state.tensors.items():
            save_file(dict(tensors), temporary / f"{name}.safetensors")
        facts = {"step": state.step, "identity": self._identity, "facts": state.facts}
        (temporary / STATE_FILE).write_text(json.dumps(facts))
        digests = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST_FILE).write_text(json.dumps(digests))
        _put(temporary, final)
        self._mirror.put_folder(final, last=MANIFEST_FILE)
        self._mirror.spare(final)
        self._forget(state.step)
        self._saved(state.step)

    def _forget(self, step: int) -> None:
        """Remove all but the newest two up to `step`: this run has skipped what lies beyond its newest state."""
        written = self._written()
        for gone in written.difference(sorted(known for known in written if known <= step)[-KEPT:]):
            if self._place(gone).exists():
                shutil.rmtree(self._place(gone))
            self._mirror.remove_folder(self._place(gone), first=MANIFEST_FILE)

    def _read(self, folder: Path) -> RecoveryState:
        """Raises: OSError, ValueError, KeyError, SafetensorError: the state is damaged or of another plan."""
        digests = json.loads((folder / MANIFEST_FILE).read_text())
        if not isinstance(digests, dict) or not digests.keys() >= {STATE_FILE, WEIGHTS_FILE, OPTIMIZER_FILE}:
            raise ValueError(f"{MANIFEST_FILE} is damaged")
        for name, digest in digests.items():
            if sha256_of(folder / name) != digest:
                raise ValueError(f"{name} is damaged")
        facts = json.loads((folder / STATE_FILE).read_text())
        if facts["identity"] != self._identity:
            raise ValueError("it belongs to other data or settings")
        weights = [name for name in digests if name.endswith(".safetensors")]
        tensors = {name.removesuffix(".safetensors"): load_file(folder / name) for name in weights}
        return RecoveryState(facts["step"], tensors, facts["facts"])


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
