"""Which jobs the watch has told of, and who waits for whom: what decides whom an event wakes.

Decisions rest on live reads; a roster that is behind only makes a look come later, and the resync finds it out. The one
exception is a new job, which is kept for its first look: all that this does is one write, which fails if it is behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api import names
from finetune_operator.census import Census
from finetune_operator.queue import Key

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """A job as the watch has last told of it."""

    uid: str
    version: str
    generation: int
    going: bool
    """It is being deleted."""
    started: bool
    final: bool
    settled: bool
    """It is final, says so of what it asks for now, and nothing is to be done in time: thousands may lie about when the
    operator starts, and those that run must not wait for them."""
    parent: str | None
    """The job of fromCheckpoint."""
    queue: str | None
    """The label that names its queue: the one label that decides something."""

    @property
    def asked(self) -> tuple[object, ...]:
        """What a user may have changed."""
        return (self.uid, self.generation, self.going, self.queue)


class Roster:
    """All jobs that the watch has told of."""

    def __init__(self, census: Census | None = None) -> None:
        self._known: dict[Key, Known] = {}
        self._new: dict[Key, Manifest] = {}
        self._heirs: dict[Key, Key] = {}
        """Of each job that waits for a checkpoint, whose it is: every event asks, and few jobs continue another."""
        self._census = census

    def saw(self, manifest: Manifest) -> bool:
        """Note a job. Returns whether it is to be looked at: it is new, and not long settled, or what it asks for has
        changed. A status change is our own writing."""
        key, now = key_of(manifest), _known(manifest)
        before = self._known.get(key)
        self._known[key] = now
        self._new.pop(key, None)
        self._heirs.pop(key, None)
        if now.parent is not None and not now.started and not now.final:
            self._heirs[key] = (key[0], now.parent)
        if self._census is not None:
            self._census.saw(key, manifest)
        return not now.settled if before is None else before.asked != now.asked

    def news(self, manifest: Manifest) -> None:
        """Keep a job as an event has just told of it, until it is looked at, if it has not started."""
        key = key_of(manifest)
        known = self._known.get(key)
        if known is not None and not known.started and not known.final:
            self._new[key] = manifest

    def take(self, key: Key) -> Manifest | None:
        """What `news` has kept, once. It may be behind: only a write that fails then may rest on it."""
        return self._new.pop(key, None)

    def gone(self, key: Key, uid: str) -> None:
        """Forget a deleted job, unless the watch has told of its successor already."""
        known = self._known.get(key)
        if known is not None and known.uid != uid:
            return
        self._known.pop(key, None)
        self._new.pop(key, None)
        self._heirs.pop(key, None)
        if self._census is not None:
            self._census.gone(key)

    def waiting(self) -> list[Key]:
        """Jobs that have not started: a new or changed runtime may be what they wait for."""
        return [key for key, known in self._known.items() if not known.started and not known.final]

    def unfinished(self) -> list[Key]:
        """Jobs that are not final."""
        return [key for key, known in self._known.items() if not known.final]

    def waiting_for(self, parent: Key) -> list[Key]:
        """Jobs that wait for a checkpoint of `parent`."""
        return [key for key, awaited in self._heirs.items() if awaited == parent]

    def versions(self) -> dict[Key, tuple[str, str]]:
        """uid and resourceVersion of each job."""
        return {key: (known.uid, known.version) for key, known in self._known.items()}


def key_of(manifest: Manifest) -> Key:
    """(namespace, name) of an object."""
    return (manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def _known(manifest: Manifest) -> Known:
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    spec, generation = manifest.get("spec") or {}, metadata.get("generation", 0)
    final = any(c.get("type") in ("Complete", "Failed") and c.get("status") == "True" for c in _conditions(status))
    told, checkpoint = status.get("observedGeneration", 0) == generation, spec.get("fromCheckpoint")
    return Known(
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        generation=generation,
        going="deletionTimestamp" in metadata,
        started="startTime" in status,
        final=final,
        settled=final and told and spec.get("ttlSecondsAfterFinished") is None,
        parent=checkpoint.split(":", 1)[0] if isinstance(checkpoint, str) else None,
        queue=metadata.get("labels", {}).get(names.QUEUE_LABEL),
    )


def _conditions(status: Manifest) -> list[Manifest]:
    return [c for c in status.get("conditions") or () if isinstance(c, dict)]
