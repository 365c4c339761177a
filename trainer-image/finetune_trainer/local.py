"""A FineTuneJob manifest on this machine: the same fields, the same checks, the same training, no Kubernetes."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune_api.failures import Failure, FailureCode
from finetune_api.job import FineTuneJob, JobSpec, job_from
from finetune_api.names import JOB_KIND, RUNTIME_KIND
from finetune_api.report import Report
from finetune_api.resolve import (
    BEST,
    Place,
    checkpoint_named,
    configure,
    inherited_conflict,
    resolve,
    revision_conflict,
    same_as,
    source_uri,
    starting_uri,
)
from finetune_api.runtime import RuntimeModel, RuntimeSpec, runtime_from
from finetune_api.status import Checkpoint, CheckpointType
from finetune_api.trainer import ExitCode, JobIdentity, LoraConfig, Stage, Start, TrainerConfig
from finetune_trainer.data.https import ANYWHERE
from finetune_trainer.failures import RunFailed
from finetune_trainer.files import ADAPTER_WEIGHTS
from finetune_trainer.layout import Layout, OutputManifest, concluded
from finetune_trainer.out.card import MERGE_ERROR
from finetune_trainer.out.console import Console
from finetune_trainer.out.progress import Reporter
from finetune_trainer.prepare import prepare
from finetune_trainer.run.train import train

STEP_PERIOD = 0.5
"""Seconds between two lines about steps."""
NAMESPACE = "local"


class Refused(Exception):
    """A manifest that would not be accepted; each argument is one sentence."""


@dataclass(frozen=True, slots=True)
class LocalRun:
    """One call of `finetune-train local`."""

    manifest: Path
    output: Path
    """Absolute folder of the result."""
    runtime: Path | None
    claims: Mapping[str, Path]
    """Folder of each claim."""
    checkpoints: Mapping[str, Path]
    """Output folder of each earlier job."""

    def run(self, stopping: Event) -> int:
        """Prepare, train, publish, and print how it went; returns the exit code."""
        try:
            config = self.config()
        except Refused as refused:
            for sentence in refused.args:
                print(sentence, file=sys.stderr)
            return ExitCode.BAD_CONFIG
        reporter = Reporter(config.job, Stage.TRAIN, None, Console(STEP_PERIOD))
        try:
            if concluded(Layout.of(config), config.job) is None:
                prepare(config, reporter.update)
            train(config, reporter, stopping)
        except RunFailed as end:
            print("\n".join(_explained(end.failure, reporter.report)), file=sys.stderr)
            return end.failure.exit_code
        print("\n".join(_summary(reporter.report)))
        return ExitCode.DONE

    def config(self) -> TrainerConfig:
        """What a pod would have been given for this manifest.

        Raises:
            Refused: the manifest or the runtime is invalid, or they do not fit together.
        """
        job = self._job()
        runtime = self._runtime()
        start, entry, parent = self._start(job.spec, runtime)
        if parent is not None and (conflict := inherited_conflict(job.spec, parent)):
            raise Refused(conflict)
        values = resolve(job.spec, entry, parent)
        spec, gpus = job.spec, _gpus(job.spec, runtime)
        if gpus > 1:
            raise Refused(f"spec.resources.gpusPerNode is {gpus}, and a local run takes one GPU: set it to 1 or 0")
        place = Place(
            job=_identity(job),
            start=start,
            output_uri=f"file://{self.output}",
            output_name="",
            gpus=gpus,
            offline=runtime.offline if runtime else False,
            mounts={f"pvc://{name}": str(folder) for name, folder in self.claims.items()},
            allow_remote_code=runtime.allow_remote_code if runtime else False,
            https_hosts=ANYWHERE.hosts,
            gpu_memory=runtime.gpu_memory if runtime else None,
            price_per_million_tokens=entry.price_per_million_tokens if entry else None,
        )
        return configure(spec, values, place)

    def _job(self) -> FineTuneJob:
        try:
            return job_from(_object(self.manifest, JOB_KIND), local=True)
        except ValidationError as error:
            raise Refused(*_sentences(error)) from error

    def _runtime(self) -> RuntimeSpec | None:
        if self.runtime is None:
            return None
        try:
            return runtime_from(_object(self.runtime, RUNTIME_KIND)).spec
        except ValidationError as error:
            raise Refused(*_sentences(error)) from error

    def _start(
        self, spec: JobSpec, runtime: RuntimeSpec | None
    ) -> tuple[Start, RuntimeModel | None, LoraConfig | None]:
        """Starting weights, their entry in the runtime, and the adapter whose shape the job inherits."""
        if spec.from_checkpoint is not None:
            return self._continued(spec.from_checkpoint, spec, runtime)
        assert spec.model is not None
        entry = runtime.model_named(spec.model) if runtime else None
        if runtime and runtime.models and entry is None:
            known = ", ".join(model.name for model in runtime.models)
            raise Refused(f"spec.model {spec.model} is not in the runtime's list: choose one of {known}")
        if (conflict := revision_conflict(spec, entry)) is not None:
            raise Refused(conflict)
        uri = starting_uri(spec, entry)
        if uri is None:
            raise Refused(f"spec.model {spec.model} is no Hub id (org/name), no URI and in no runtime's list")
        return Start(model=uri, same_as=same_as(spec, entry)), entry, None

    def _continued(
        self, name: str, spec: JobSpec, runtime: RuntimeSpec | None
    ) -> tuple[Start, RuntimeModel | None, LoraConfig | None]:
        job, _, which = name.partition(":")
        if job not in self.checkpoints:
            raise Refused(f"spec.fromCheckpoint names the job {job}: add --checkpoint {job}=DIR with its output folder")
        folder = self.checkpoints[job]
        manifest = _output_manifest(folder)
        found = _checkpoint(manifest, which, folder)
        weights = folder / "checkpoints" / f"step-{found.step}"
        assert manifest.start is not None
        models = runtime.models if runtime else ()
        entry = next((model for model in models if source_uri(model.source) == manifest.start.model), None)
        if not (weights / ADAPTER_WEIGHTS).is_file():
            return Start(model=f"file://{weights}", sha256=found.sha256), entry, None
        start = Start(model=manifest.start.model, adapter=f"file://{weights}", sha256=found.sha256)
        return start, entry, _adapter_shape(weights)


def _object(path: Path, kind: str) -> dict[str, Any]:
    """The one object of `kind` in a file of YAML documents."""
    try:
        documents = list(YAML(typ="safe", pure=True).load_all(path))
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error
    except (YAMLError, UnicodeError, RecursionError) as error:
        raise Refused(f"{path} is no YAML: {error}") from error
    found = [d for d in documents if isinstance(d, dict) and d.get("kind") == kind]
    if len(found) != 1:
        raise Refused(f"{path} holds {len(found)} objects of kind {kind}: give exactly one")
    return found[0]


def _sentences(error: ValidationError) -> list[str]:
    """One line per broken bound or rule: field, what is wrong, given value."""
    lines = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"]) or "the manifest"
        given = problem["input"]
        plain = given is not None and not isinstance(given, dict | list)
        lines.append(f"{field}: {problem['msg']}" + (f" (given: {given!r})" if plain else ""))
    return lines


def _identity(job: FineTuneJob) -> JobIdentity:
    """The same manifest is the same job, so that running it again goes on; another one is another job."""
    spec = json.dumps([job.metadata.name, job.spec.to_json()], sort_keys=True)
    uid = str(uuid.uuid5(uuid.NAMESPACE_OID, spec))
    return JobIdentity(namespace=job.metadata.namespace or NAMESPACE, name=job.metadata.name, uid=uid)


def _gpus(spec: JobSpec, runtime: RuntimeSpec | None) -> int:
    given = spec.resources.gpus_per_node if spec.resources else None
    default = runtime.defaults.resources.gpus_per_node if runtime else None
    return given if given is not None else default or 0


def _output_manifest(folder: Path) -> OutputManifest:
    try:
        manifest = OutputManifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise Refused(f"{folder} is no output folder of a job: its manifest.json cannot be read") from error
    if manifest.start is None:
        raise Refused(f"{folder} holds no published checkpoint yet")
    return manifest


def _checkpoint(manifest: OutputManifest, which: str, folder: Path) -> Checkpoint:
    if which == BEST and manifest.last is None:
        raise Refused(f"the job of {folder} has not ended, so that a better checkpoint may follow: let it end first")
    if (found := checkpoint_named(which, manifest.checkpoints)) is not None:
        return found
    steps = ", ".join(str(c.step) for c in manifest.checkpoints if c.type is not CheckpointType.FINAL_MERGED) or "none"
    if which == BEST:
        raise Refused(f"{folder} has no best checkpoint, because its job made no evaluations: name a step of {steps}")
    raise Refused(f"{folder} has no {'checkpoint of step ' + which if which else 'final checkpoint'}: it has {steps}")


def _adapter_shape(folder: Path) -> LoraConfig:
    """The shape of a published adapter."""
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text())
        if isinstance(config["target_modules"], str):
            raise Refused(f"{file}: target_modules is an expression, which cannot be continued: list the modules")
        return LoraConfig(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=0.0,
            trainable_modules=tuple(sorted(config["target_modules"])),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"{file} cannot be read: publish the checkpoint again or choose another one") from error


def _explained(failure: Failure, report: Report) -> list[str]:
    """Why the run ended: every bad row that was told, then the cause."""
    errors = report.data.errors if report.data else ()
    lines = [f"{e.file} line {e.line}, {e.field or 'the row'}: {e.message}" for e in errors]
    if failure.code is FailureCode.STOPPED:
        return [f"{failure.sentence}; run the same command again to go on"]
    page = report.output.report_uri if report.output else None
    return [*lines, failure.sentence, *([f"report: {page}"] if page else [])]


def _summary(report: Report) -> list[str]:
    progress, output = report.progress, report.output
    lines = [f"done: {progress.display} steps, {progress.tokens} tokens" if progress else "done"]
    lines += [f"{c.name}  {_shown(c.metrics)}  {c.uri}" for c in report.checkpoints]
    if output:
        lines.append(f"result: {output.adapter_uri or output.model_uri}")
        lines += [f"merged: {output.merged_uri}"] if output.merged_uri else []
        lines += [f"on the Hub: {output.hf_url}"] if output.hf_url else []
        lines += [f"report: {output.report_uri}"] if output.report_uri else []
    shown = report.tracking.to_json().values() if report.tracking else ()
    lines += [f"shown at: {place}" for place in shown]
    return lines


def _shown(metrics: Mapping[str, float]) -> str:
    return "  ".join(
        f"{name} {metrics[name]:.4g}" for name in ("evalLoss", "evalRewardAccuracy", MERGE_ERROR) if name in metrics
    )
