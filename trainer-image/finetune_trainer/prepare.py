"""The prepare step: check the data, turn it into tokens, and resolve what training must not guess twice.

Everything here runs without torch on a CPU. It may be stopped and run again at any point: caches and prepared.json
take their names only when they are complete, prepared.json last, and a finished step for the same data is kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

from pydantic.alias_generators import to_camel

from finetune_api.report import DATA_SENTENCES, DataErrorCode, FailureCode
from finetune_api.status import DataStatus, Resolved, ResolvedFile, ResolvedModel
from finetune_api.trainer import JobIdentity, TrainerConfig
from finetune_trainer.data.check import FileCheck, Rules, Tell
from finetune_trainer.data.model import StartModel, check_checkpoint, read_model, resolve_length
from finetune_trainer.data.prepared import (
    PREPARED_FILE,
    TRAIN_FOLDER,
    VALIDATION_FOLDER,
    Prepared,
    cache_digests,
    load_prepared,
)
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.sources import fetch_file
from finetune_trainer.data.statistics import oddities, token_statistics
from finetune_trainer.data.tokens import CacheKind, open_cache, write_cache
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.files import replace, sha256_of, write_atomically, writing_to
from finetune_trainer.layout import Layout, OutputManifest, claimed

CACHE_VERSION = 2
"""Raised when the same data would give other tokens than before."""
CACHE_OF = {"trainingFile": TRAIN_FOLDER, "validationFile": VALIDATION_FOLDER}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file on this machine."""

    name: str
    """trainingFile or validationFile."""
    uri: str
    path: Path
    digest: ResolvedFile


@dataclass(frozen=True, slots=True)
class Checked:
    """Good data: what was counted, and the digests of the caches that hold its tokens."""

    rows: int
    validation_rows: int
    data: DataStatus
    digests: dict[str, str]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a configuration names, fetched and read."""

    config: TrainerConfig
    layout: Layout
    checkpoint_digest: str | None
    model: StartModel
    rules: Rules
    files: list[DataFile]

    @property
    def key(self) -> str:
        """Digest of everything that decides the tokens."""
        parts = [
            CACHE_VERSION,
            [file.digest.sha256 for file in self.files],
            self.model.revision,
            self.rules.chat.digest,
            self.rules.method,
            self.rules.max_seq_length,
            self.rules.vocab_size,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def prepare(config: TrainerConfig, tell: Tell) -> Prepared:
    """Check and tokenise the data of `config`; `tell` gets progress and findings (fields of Report) on the way.

    Raises:
        RunFailed: any cause that lies in the configuration, the data, the model, the checkpoint or the output.
    """
    layout = Layout.of(config)
    with writing_to(config.output_uri):
        _claim_output(layout, config.job)
    inputs = _gather(config, layout)
    with writing_to(config.output_uri):
        checked = _finished(inputs) or _check(inputs, tell)
        prepared = _conclude(inputs, checked)
        write_atomically(layout.prepared / PREPARED_FILE, json.dumps(prepared.to_json(), indent=1))
    tell(data=prepared.data, resolved=prepared.resolved)
    return prepared


def _claim_output(layout: Layout, job: JobIdentity) -> None:
    """Prove that the output takes a file, and put this job's name on it unless another's is there.

    Raises:
        RunFailed: OutputTaken.
    """
    for folder in (layout.output, layout.prepared):
        folder.mkdir(parents=True, exist_ok=True)
    probe = layout.output / f".{job.uid}.probe"
    probe.write_text("written to see whether this folder can be written\n")
    probe.unlink()
    if claimed(layout, job) is None:
        write_atomically(layout.manifest, json.dumps(OutputManifest(job=job).to_json()))


def _gather(config: TrainerConfig, layout: Layout) -> Inputs:
    """Cheap and certain things first, so that a wrong checkpoint or length is told before the data is read."""
    checkpoint_digest = check_checkpoint(config.start, config.mounts)
    model = read_model(config.start.model, config.mounts, config.offline)
    length = resolve_length(config.max_seq_length, model)
    rules = Rules(model.chat, config.training_method.type, length, model.vocab_size)
    named = (("trainingFile", config.training_file), ("validationFile", config.validation_file))
    files = [_fetch_file(config, name, uri) for name, uri in named if uri is not None]
    return Inputs(config, layout, checkpoint_digest, model, rules, files)


def _fetch_file(config: TrainerConfig, name: str, uri: str) -> DataFile:
    path = fetch_file(uri, config.mounts, config.offline, name)
    return DataFile(name, uri, path, ResolvedFile(sha256=sha256_of(path), size_bytes=path.stat().st_size))


def _finished(inputs: Inputs) -> Checked | None:
    """What an earlier run of this step left, if it was about the same data and every file is whole."""
    found = load_prepared(inputs.layout.prepared)
    if found is None or found.key != inputs.key or found.digests != cache_digests(inputs.layout.prepared):
        return None
    return Checked(found.rows, found.validation_rows, found.data, found.digests)


def _check(inputs: Inputs, tell: Tell) -> Checked:
    """Pass over every file, all of them before any error ends the run, so that one run finds all errors.

    Raises:
        RunFailed: DataInvalid, NoTrainableRows, MethodNeedsPreference, DataUnreachable.
    """
    layout, rules, files = inputs.layout, inputs.rules, inputs.files
    _clear(layout.prepared)
    with DataReport(layout.data_report) as report:
        checks = [FileCheck(file.name, file.path, file.uri, rules, report) for file in files]
        training = checks[0]
        for check in checks:
            folder = layout.prepared / f"{CACHE_OF[check.name]}.tmp"
            write_cache(folder, rules.kind, check.rows(None if check is training else training.seen, tell))
        data = _describe(layout, checks, report)
        report.summary = _summary(files, checks, data)
    tell(data=data)
    if report.first:
        _clear(layout.prepared)
        raise _data_invalid(checks, report)
    for check in checks:
        if check.tally.used == 0:
            raise failed(
                FailureCode.NO_TRAINABLE_ROWS,
                file=f"{check.name} {check.uri}",
                dropped=check.tally.dropped,
                limit=rules.max_seq_length,
            )
        folder = layout.prepared / CACHE_OF[check.name]
        replace(folder.with_name(f"{folder.name}.tmp"), folder)
    used = [check.tally.used for check in checks]
    return Checked(used[0], sum(used[1:]), data, cache_digests(layout.prepared))


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, what vouches for the rest first."""
    (folder / PREPARED_FILE).unlink(missing_ok=True)
    for name in CACHE_OF.values():
        for leftover in (folder / name, folder / f"{name}.tmp"):
            if leftover.exists():
                shutil.rmtree(leftover)


def _describe(layout: Layout, checks: list[FileCheck], report: DataReport) -> DataStatus:
    """The data as status tells it; token statistics only of data that can be trained on."""
    training = checks[0]
    cache = None
    if not report.first and training.tally.used:
        cache = open_cache(layout.prepared / f"{TRAIN_FOLDER}.tmp")
    return DataStatus(
        format=training.format,
        rows=training.tally.rows,
        pairs=training.tally.used if training.rules.kind is CacheKind.PREFERENCE else None,
        validation_rows=sum(check.tally.used for check in checks[1:]) if checks[1:] else None,
        tokens=token_statistics(cache) if cache else {},
        total_tokens=int(cache.lengths.sum()) if cache else None,
        dropped=training.tally.dropped,
        duplicates=training.tally.duplicates,
        warnings=tuple(sentence for check in checks for sentence in oddities(check)),
        errors=tuple(report.first),
        error_count=report.bad_row_count,
        report_uri=layout.uri_of(layout.data_report),
    )


def _summary(files: list[DataFile], checks: list[FileCheck], data: DataStatus) -> dict[str, object]:
    """What data-report.json says beside the errors."""
    described = {
        file.name: {
            "uri": file.uri,
            **file.digest.to_json(),
            "format": check.format,
            **{to_camel(name): value for name, value in asdict(check.tally).items()},
        }
        for file, check in zip(files, checks, strict=True)
    }
    told = data.to_json()
    return {**described, "tokens": told["tokens"], "warnings": told["warnings"]}


def _data_invalid(checks: list[FileCheck], report: DataReport) -> RunFailed:
    first = report.first[0]
    bad = [f"{check.name} {check.uri}" for check in checks if check.name in report.bad_rows]
    return failed(
        FailureCode.DATA_INVALID,
        count=report.bad_row_count,
        file=" and ".join(bad),
        line=first.line,
        field=first.field or "the row",
        problem=DATA_SENTENCES[DataErrorCode(first.code)],
    )


def _conclude(inputs: Inputs, checked: Checked) -> Prepared:
    """What names and absent values became, for status and for training."""
    config, model, files = inputs.config, inputs.model, inputs.files
    start, lora, length = config.start, config.lora, inputs.rules.max_seq_length
    total_steps = config.hyperparameters.n_epochs * ceil(checked.rows / config.batch_size)
    resolved = Resolved(
        model=ResolvedModel(
            source=model.source,
            revision=model.revision,
            parameters=model.parameters,
            checkpoint=(start.adapter or start.model) if inputs.checkpoint_digest else None,
            checkpoint_sha256=inputs.checkpoint_digest,
        ),
        training_file=files[0].digest,
        validation_file=files[1].digest if files[1:] else None,
        batch_size=config.batch_size,
        lora_rank=lora.rank if lora else None,
        lora_alpha=lora.alpha if lora else None,
        trainable_modules=lora.trainable_modules if lora else (),
        max_seq_length=length,
        total_steps=total_steps,
    )
    return Prepared(
        key=inputs.key,
        model_revision=model.revision,
        kind=inputs.rules.kind,
        rows=checked.rows,
        validation_rows=checked.validation_rows,
        max_seq_length=length,
        batch_size=config.batch_size,
        total_steps=total_steps,
        data=checked.data,
        resolved=resolved,
        digests=checked.digests,
    )
