"""Where everything of a run lies: the published folder and, beside it, the job's private state.

<output URI>/<output name>/     metrics.jsonl data-report.json manifest.json report.html report.json
                                checkpoints/ adapter/ or model/ merged/
<output URI>/.finetune/<uid>/   prepared/ reference/ recovery/

Paths are those of this machine; where the output is in an object store, its mirror carries what is there.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api import names
from finetune_api.base import ApiModel
from finetune_api.failures import FailureCode
from finetune_api.method import TrainingKind
from finetune_api.report import Report
from finetune_api.status import Checkpoint
from finetune_api.trainer import JobIdentity, Start, TrainerConfig
from finetune_api.uris import OBJECT_STORES, parse_uri
from finetune_trainer.failures import failed
from finetune_trainer.mirror import VOLUME, Mirror, StoreMirror
from finetune_trainer.volumes import OutsideVolume, locate_folder


class OutputManifest(ApiModel):
    """manifest.json at the output: whose folder it is, and what of it is complete."""

    job: JobIdentity
    """The job that writes here; any other is refused."""
    start: Start | None = None
    """Weights that training started from."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """What is published, oldest first."""
    last: Report | None = None
    """The report of the run that finished; only then is it there."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one run. Nothing is created by making a Layout."""

    uri: str
    """URI of `output`."""
    output: Path
    """Published folder of this job."""
    private: Path
    """State that no other job reads."""
    final: Path
    """The trained adapter or model, below `output`."""
    mirror: Mirror = VOLUME
    """Told of everything that is complete, wanted or removed."""

    @property
    def prepared(self) -> Path:
        """Token cache and what prepare resolved."""
        return self.private / "prepared"

    @property
    def reference(self) -> Path:
        """Scores of the starting weights."""
        return self.private / "reference"

    @property
    def recovery(self) -> Path:
        """Resumable states."""
        return self.private / "recovery"

    @property
    def metrics(self) -> Path:
        """One line per optimiser step and evaluation."""
        return self.output / names.METRICS_FILE

    @property
    def data_report(self) -> Path:
        """Every bad row and the token statistics."""
        return self.output / names.DATA_REPORT_FILE

    @property
    def report(self) -> Path:
        """How the run went, for people."""
        return self.output / names.REPORT_FILE

    @property
    def merged(self) -> Path:
        """The final adapter merged into its base."""
        return self.output / names.MERGED_DIRECTORY

    @property
    def manifest(self) -> Path:
        """Whose folder this is, see OutputManifest."""
        return self.output / names.MANIFEST_FILE

    @property
    def checkpoints(self) -> Path:
        """Published checkpoints, `step-<N>/` each."""
        return self.output / names.CHECKPOINTS_DIRECTORY

    def clear(self) -> None:
        """Clear away what a killed process of this job has left half uploaded: other jobs may be uploading beside it.

        Raises:
            RunFailed: OutputNotWritable.
        """
        for folder in (self.output, self.private):
            self.mirror.abort_uploads(folder)

    def uri_of(self, path: Path) -> str:
        """The URI of a path at or below `output`."""
        relative = path.relative_to(self.output).as_posix()
        return self.uri if relative == "." else f"{self.uri}/{relative}"

    @classmethod
    def of(cls, config: TrainerConfig) -> Layout:
        """The layout that `config` asks for.

        Raises:
            RunFailed: the output URI names no mounted volume, or a symlink leads out of it; or its store has no client.
        """
        base = config.output_uri.rstrip("/")
        uri = f"{base}/{config.output_name}" if config.output_name else base
        final = names.ADAPTER_DIRECTORY if config.training_kind is TrainingKind.LORA else names.MODEL_DIRECTORY
        if parse_uri(base).scheme in OBJECT_STORES:
            root = Path(tempfile.gettempdir()) / f"finetune-{config.job.uid}"
            output, private = root / config.output_name, root / names.PRIVATE_DIRECTORY / config.job.uid
            return cls(uri, output, private, output / final, StoreMirror.of(root, base))
        try:
            output = locate_folder(uri, config.mounts)
            private = locate_folder(f"{base}/{names.PRIVATE_DIRECTORY}/{config.job.uid}", config.mounts)
        except OutsideVolume as problem:
            raise failed(FailureCode.OUTPUT_NOT_WRITABLE, uri=uri, problem=problem) from problem
        return cls(uri=uri, output=output, private=private, final=output / final)


def claimed(layout: Layout, job: JobIdentity) -> OutputManifest | None:
    """The manifest that `job` has put at its output; None where nobody has yet.

    Raises:
        RunFailed: OutputTaken: it is another job's, or damaged; OutputNotWritable: it is out of reach.
    """
    try:
        layout.mirror.fetch_file(layout.manifest)
        manifest = OutputManifest.model_validate_json(layout.manifest.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed(FailureCode.OUTPUT_NOT_WRITABLE, uri=layout.uri, problem=error.strerror) from error
    except ValidationError as error:
        raise failed(FailureCode.OUTPUT_TAKEN, uri=layout.uri) from error
    if manifest.job.uid != job.uid:
        raise failed(FailureCode.OUTPUT_TAKEN, uri=layout.uri)
    return manifest


def concluded(layout: Layout, job: JobIdentity) -> Report | None:
    """The last report of `job`, once everything of it is published.

    Raises:
        RunFailed: as `claimed`.
    """
    manifest = claimed(layout, job)
    return manifest.last if manifest is not None else None
