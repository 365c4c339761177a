"""What leaves a run for others: checkpoints and the final weights, each folder complete the moment it has its name.

manifest.json at the output lists what is complete. Publishing again, after a restart, gives the same folders. The best
checkpoint is published when it becomes the best; the one before it stays, listed for a restart and told to nobody,
until no recovery state is left that knows it as the best.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_api.method import TrainingKind
from finetune_api.report import Report
from finetune_api.schedule import offered
from finetune_api.status import Checkpoint, CheckpointType, OutputStatus
from finetune_api.trainer import TrainerConfig
from finetune_trainer.files import replace, weights_digest, write_atomically, writing_to
from finetune_trainer.layout import Layout, OutputManifest, claimed
from finetune_trainer.out.card import MERGE_ERROR, Card, Kind
from finetune_trainer.out.clock import now

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    TEMPLATE_FILE,
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes the weights of one run."""

    config: TrainerConfig
    layout: Layout
    tokenizer: Path
    """Folder whose tokenizer and template go with the weights."""
    card: Card
    """README.md of every published folder."""
    planned: frozenset[int]
    """Steps of the checkpoints that the job asks for; any other is published for being the best."""

    def forget_after(self, step: int, best: int = 0) -> tuple[Checkpoint, ...]:
        """Take up the list of checkpoints up to `step`; later ones will be published again.

        Args:
            best: step of the best evaluation so far, 0 before the first.
        """
        return self._list((c for c in self._published() if c.step <= step), best)

    def publish(
        self, step: int, kind: CheckpointType, metrics: dict[str, float], save: Callable[[Path], None], best: int = 0
    ) -> tuple[Checkpoint, ...]:
        """Write checkpoint `step` with `save`, and as the final one also the job's adapter or model.

        Args:
            best: step of the best evaluation so far, 0 before the first.

        Returns:
            every checkpoint that is offered, oldest first.

        Raises:
            RunFailed: OutputNotWritable, StorageFull, OutputTaken.
        """
        folder = self._folder(step)
        full = self.config.training_kind is TrainingKind.FULL
        card = self.card.text(Kind.MODEL if full else Kind.ADAPTER, step, metrics)
        with writing_to(self.layout.uri):
            self._write_folder(folder, save, lambda: card)
            if kind is CheckpointType.FINAL:
                self._write_folder(self.layout.final, lambda new: _copy(folder, new, folder.iterdir()), lambda: card)
            entry = self._entry(step, kind, folder, metrics)
            self.layout.mirror.spare(folder)
            return self._list((*(c for c in self._published() if c.uri != entry.uri), entry), best)

    def publish_merged(self, save: Callable[[Path], float]) -> tuple[Checkpoint, ...]:
        """Write the merged weights of the final adapter, which `save` makes and whose mergeError it returns.

        Returns:
            every checkpoint that is offered, oldest first, the merged one last.

        Raises:
            RunFailed: OutputNotWritable, StorageFull, OutputTaken, or what `save` raises.
        """
        folder = self.layout.merged
        with writing_to(self.layout.uri):
            others = tuple(c for c in self._published() if c.type is not CheckpointType.FINAL_MERGED)
            final, best = others[-1], next((c.step for c in others if c.best), 0)
            metrics = dict(final.metrics)

            def merge(new: Path) -> None:
                metrics[MERGE_ERROR] = save(new)

            self._write_folder(folder, merge, lambda: self.card.text(Kind.MERGED, final.step, metrics))
            return self._list((*others, self._entry(final.step, CheckpointType.FINAL_MERGED, folder, metrics)), best)

    def _entry(self, step: int, kind: CheckpointType, folder: Path, metrics: dict[str, float]) -> Checkpoint:
        return Checkpoint(
            name=f"{self.config.job.name}:{step}",
            step=step,
            type=kind,
            uri=self.layout.uri_of(folder),
            time=now(),
            size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            sha256=weights_digest(folder),
            metrics=metrics,
        )

    def remove_superseded(self, states: Collection[int]) -> None:
        """Remove checkpoints that were published for being the best and are so no more.

        One stays while a restart could go on from a state that knows it as the best.

        Args:
            states: steps of the recovery states that a restart may go on from.

        Raises:
            RunFailed: OutputNotWritable, StorageFull.
        """
        listed = self._published()
        wanted = offered(listed, self.planned)
        kept = tuple(c for c in listed if c in wanted or self._is_known(c, listed, states))
        if kept != listed:
            with writing_to(self.layout.uri):
                self._write_manifest(kept)
                for checkpoint in listed:
                    if checkpoint not in kept:
                        _unpublish(self.layout, self._folder(checkpoint.step))

    def _is_known(self, superseded: Checkpoint, listed: Iterable[Checkpoint], states: Collection[int]) -> bool:
        """Whether one of `states` may know `superseded` as the best: it was saved before the next best one.

        A state at the very step of the next one may have been saved before that step's evaluation. A planned
        checkpoint may have been the best in between; as nobody wrote that down, it does not count.
        """
        after = (c.step for c in listed if c.step > superseded.step and (c.best or c.step not in self.planned))
        until = min(after, default=math.inf)
        return any(superseded.step <= state <= until for state in states)

    @property
    def weights(self) -> Path:
        """The folder of the final weights for those who want one: merged where the job asks for that."""
        return self.layout.merged if self.config.merge else self.layout.final

    def weights_output(self) -> OutputStatus:
        """Where the final weights lie."""
        uri = self.layout.uri_of(self.layout.final)
        full = self.config.training_kind is TrainingKind.FULL
        return OutputStatus(model_uri=uri) if full else OutputStatus(adapter_uri=uri)

    def output(self) -> OutputStatus:
        """Where everything lies: the final weights, merged ones, and the report."""
        merged = self.layout.uri_of(self.layout.merged) if self.config.merge else None
        return self.weights_output().model_copy(update={"merged_uri": merged, "report_uri": self.report_uri})

    @property
    def report_uri(self) -> str:
        """Where the page about the run will lie."""
        return self.layout.uri_of(self.layout.report)

    def conclude(self, last: Report) -> None:
        """Note that the output is complete, then remove what only a restart would need.

        Raises:
            RunFailed: OutputNotWritable, StorageFull.
        """
        with writing_to(self.layout.uri):
            self._write_manifest(last.checkpoints, last)
            tidy(self.layout, last)

    def _list(self, checkpoints: Iterable[Checkpoint], best: int) -> tuple[Checkpoint, ...]:
        """Write `checkpoints` into the manifest; returns those that are offered."""
        weights = CheckpointType.INTERMEDIATE, CheckpointType.FINAL
        every = tuple(c.model_copy(update={"best": c.step == best and c.type in weights}) for c in checkpoints)
        self._write_manifest(every)
        return offered(every, self.planned)

    def _folder(self, step: int) -> Path:
        return self.layout.checkpoints / f"step-{step}"

    def _published(self) -> tuple[Checkpoint, ...]:
        manifest = claimed(self.layout, self.config.job)
        return manifest.checkpoints if manifest else ()

    def _write_manifest(self, checkpoints: tuple[Checkpoint, ...], last: Report | None = None) -> None:
        manifest = OutputManifest(job=self.config.job, start=self.config.start, checkpoints=checkpoints, last=last)
        write_atomically(self.layout.manifest, json.dumps(manifest.to_json(), indent=1) + "\n")
        self.layout.mirror.put_file(self.layout.manifest)

    def _write_folder(self, folder: Path, save: Callable[[Path], None], card: Callable[[], str]) -> None:
        """Write a folder under a temporary name, then put it in place of an earlier one with other weights.

        Args:
            card: asked for its README.md once `save` is done.
        """
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with ExitStack() as left_over:
            left_over.callback(shutil.rmtree, temporary, ignore_errors=True)
            save(temporary)
            _copy(self.tokenizer, temporary, (self.tokenizer / name for name in TOKENIZER_FILES))
            self._put_template(temporary)
            (temporary / "README.md").write_text(card(), encoding="utf-8")
            if not folder.exists() or weights_digest(folder) != weights_digest(temporary):
                _remove(folder)
                replace(temporary, folder)
        self.layout.mirror.put_folder(folder)

    def _put_template(self, folder: Path) -> None:
        """Put the job's own chat template where it is read before any that the tokenizer has."""
        if self.config.data.chat_template is not None:
            (folder / "chat_template.json").unlink(missing_ok=True)
            (folder / TEMPLATE_FILE).write_text(self.config.data.chat_template, encoding="utf-8")


def tidy(layout: Layout, last: Report) -> None:
    """Remove what only a restart would need: checkpoints that `last` does not name, and the job's private state."""
    named = {f"step-{checkpoint.step}" for checkpoint in last.checkpoints}
    for name in layout.mirror.names(layout.checkpoints):
        if name.startswith("step-") and name not in named:
            _unpublish(layout, layout.checkpoints / name)
    for leftover in (*layout.checkpoints.glob(".step-*"), layout.private):
        with suppress(FileNotFoundError):  # each pod of a job that is done finds it done, and may be here at once
            shutil.rmtree(leftover)
    layout.mirror.remove_folder(layout.private)
    with suppress(OSError):
        layout.private.parent.rmdir()


def _unpublish(layout: Layout, folder: Path) -> None:
    """Remove a folder that manifest.json does not list any more."""
    _remove(folder)
    layout.mirror.remove_folder(folder)


def _remove(folder: Path) -> None:
    """Remove a published folder, which loses its name first: killed in between, nothing half removed has that name."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.replace(aside)
        shutil.rmtree(aside)


def _copy(source: Path, target: Path, paths: Iterable[Path]) -> None:
    """Copy those of `paths` that exist and are not in `target` yet."""
    for path in paths:
        if path.is_file() and not (target / path.relative_to(source)).exists():
            shutil.copyfile(path, target / path.relative_to(source))
