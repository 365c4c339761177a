"""The prepare step: check the data, turn it into tokens, and resolve what training must not guess twice.

Everything here runs without torch on a CPU. It may be stopped and run again at any point: caches and prepared.json
take their names only when they are complete, prepared.json last, and a finished step for the same data is kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune_api.failures import FailureCode
from finetune_api.findings import DATA_SENTENCES, DataErrorCode, DataWarningCode
from finetune_api.report import WarningCode
from finetune_api.status import MAX_DATA_ERRORS, DataStatus, JobWarning, Resolved, ResolvedModel
from finetune_api.trainer import JobIdentity, TrainerConfig
from finetune_trainer.cost.estimate import Job, estimate, misfit
from finetune_trainer.cost.load import Rows
from finetune_trainer.data.check import FileCheck, Rules, Tell
from finetune_trainer.data.downloads import DataFile, Downloads
from finetune_trainer.data.model import (
    StartModel,
    check_architecture,
    check_checkpoint,
    inherited_template,
    read_model,
    resolve_length,
)
from finetune_trainer.data.prepared import (
    PREPARED_FILE,
    TRAIN_FOLDER,
    VALIDATION_FOLDER,
    Prepared,
    cache_digests,
    load_prepared,
)
from finetune_trainer.data.report import FileReport, Findings, write_reports
from finetune_trainer.data.seen import Seen
from finetune_trainer.data.tokenise import Tokeniser
from finetune_trainer.data.tokens import CacheKind, open_cache, write_cache
from finetune_trainer.failures import RunFailed, failed
from finetune_trainer.files import replace, write_atomically, writing, writing_to
from finetune_trainer.layout import Layout, OutputManifest, claimed
from finetune_trainer.push import check_repository

CACHE_VERSION = 4
"""Raised when the same data would give other tokens than before."""
CACHE_OF = {"trainingFile": TRAIN_FOLDER, "validationFile": VALIDATION_FOLDER}


@dataclass(frozen=True, slots=True)
class Checked:
    """Good data: what was counted, and the digests of the caches that hold its tokens."""

    rows: int
    validation_rows: int
    data: DataStatus
    warnings: tuple[JobWarning, ...]
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
            self.model.chat.digest,
            self.config.training_method.type,
            self.config.training_method.train_on_inputs,
            self.config.data.to_json(),
            self.rules.max_seq_length,
            self.model.vocab_size,
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
        layout.clear()
    check_repository(config)
    with TemporaryDirectory(prefix="finetune-") as scratch:
        inputs = _gather(config, layout, Downloads(Path(scratch), tell))
        with writing_to(config.output_uri):
            checked = _finished(inputs) or _check(inputs, tell)
            _estimate(inputs, tell)
            prepared = _conclude(inputs, checked)
            write_atomically(layout.prepared / PREPARED_FILE, json.dumps(prepared.to_json(), indent=1))
            layout.mirror.put_folder(layout.prepared, last=PREPARED_FILE)
    tell(data=prepared.data, resolved=prepared.resolved, warnings=prepared.warnings)
    return prepared


def _claim_output(layout: Layout, job: JobIdentity) -> None:
    """Prove that the output takes a file, and put this job's name on it unless another's is there.

    Raises:
        RunFailed: OutputTaken, OutputNotWritable.
    """
    for folder in (layout.output, layout.prepared):
        folder.mkdir(parents=True, exist_ok=True)
    probe = layout.output / f".{job.uid}.probe"
    probe.write_text("written to see whether this folder can be written\n")
    layout.mirror.put_file(probe)
    probe.unlink()
    layout.mirror.remove_file(probe)
    if claimed(layout, job) is None:
        write_atomically(layout.manifest, json.dumps(OutputManifest(job=job).to_json()))
        layout.mirror.claim(layout.manifest)
        claimed(layout, job)


def _gather(config: TrainerConfig, layout: Layout, downloads: Downloads) -> Inputs:
    """Cheap and certain things first, so that a wrong checkpoint or length is told before the data is read."""
    checkpoint_digest = check_checkpoint(config.start, config.mounts)
    check_architecture(config.start, config.mounts, config.offline)
    template = config.data.chat_template or inherited_template(config.start, config.mounts)
    model = read_model(
        config.start.model,
        config.mounts,
        config.offline,
        template,
        config.allow_remote_code,
        weights=config.shared_cache,
    )
    if config.train_vision and model.chat.vision is None:
        raise failed(FailureCode.NO_VISION_ENCODER, uri=config.start.model)
    length = resolve_length(config.max_seq_length, model)
    method = config.training_method
    tokenise = Tokeniser(model.chat, model.vocab_size, method.train_on_inputs)
    rules = Rules(method.type, tokenise, length, config.data)
    named = (("trainingFile", config.training_file), ("validationFile", config.validation_file))
    files = [downloads.fetch(config, name, uri) for name, uri in named if uri is not None]
    return Inputs(config, layout, checkpoint_digest, model, rules, files)


def _finished(inputs: Inputs) -> Checked | None:
    """What an earlier run of this step left, if it was about the same data and every file is whole."""
    inputs.layout.mirror.fetch_folder(inputs.layout.prepared)
    found = load_prepared(inputs.layout.prepared)
    if found is None or found.key != inputs.key or found.digests != cache_digests(inputs.layout.prepared):
        return None
    return Checked(found.rows, found.validation_rows, found.data, found.warnings, found.digests)


def _check(inputs: Inputs, tell: Tell) -> Checked:
    """Pass over every file, all of them before any error ends the run, so that one run finds all errors.

    Raises:
        RunFailed: DataInvalid, NoTrainableRows, MethodNeedsPreference, TextWithoutInputs, ConfigInvalid,
            DataUnreachable.
    """
    layout = inputs.layout
    _clear(layout.prepared)
    layout.mirror.remove_folder(layout.prepared, first=PREPARED_FILE)
    with ExitStack() as open_files:
        checks = _checks(inputs, open_files)
        for file, check in zip(inputs.files, checks, strict=True):
            write_cache(layout.prepared / f"{CACHE_OF[file.name]}.tmp", inputs.rules.kind, check.rows(tell))
        data = _describe(layout, inputs.rules, checks)
        with writing(layout.data_report) as out:
            write_reports(out, [_reported(file, check) for file, check in zip(inputs.files, checks, strict=True)])
        layout.mirror.put_file(layout.data_report)
    tell(data=data)
    if data.error_count:
        _clear(layout.prepared)
        raise _data_invalid(checks)
    _refuse_empty(inputs, checks)
    for file in inputs.files:
        folder = layout.prepared / CACHE_OF[file.name]
        replace(folder.with_name(f"{folder.name}.tmp"), folder)
    used = [check.tally.used for check in checks]
    return Checked(used[0], sum(used[1:]), data, _warnings(checks), cache_digests(layout.prepared))


def _checks(inputs: Inputs, open_files: ExitStack) -> list[FileCheck]:
    """One pass for each file; those after the first know what the training file has."""
    checks: list[FileCheck] = []
    for file in inputs.files:
        findings = open_files.enter_context(Findings(file.name, inputs.layout.prepared))
        training = checks[0].seen if checks else None
        seen = open_files.enter_context(Seen(prompts=training is None and len(inputs.files) > 1))
        checks.append(FileCheck(file.path, file.uri, inputs.rules, findings, seen, training))
    return checks


def _refuse_empty(inputs: Inputs, checks: list[FileCheck]) -> None:
    for check in checks:
        if check.tally.used == 0:
            warned = check.findings.warned
            raise failed(
                FailureCode.NO_TRAINABLE_ROWS,
                file=f"{check.findings.name} {check.uri}",
                dropped=warned[DataWarningCode.TOO_LONG] + warned[DataWarningCode.PROMPT_TOO_LONG],
                limit=inputs.rules.max_seq_length,
                weightless=warned[DataWarningCode.NOTHING_TO_TRAIN],
            )


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, what vouches for the rest first."""
    (folder / PREPARED_FILE).unlink(missing_ok=True)
    for name in CACHE_OF.values():
        for leftover in (folder / name, folder / f"{name}.tmp"):
            if leftover.exists():
                shutil.rmtree(leftover)


def _describe(layout: Layout, rules: Rules, checks: list[FileCheck]) -> DataStatus:
    """The data as status tells it: the training file's counts, every file's errors and oddities."""
    training, *others = checks
    warned, lengths = training.findings.warned, training.lengths
    errors = [error for check in checks for error in check.findings.first]
    return DataStatus(
        format=training.format,
        rows=training.tally.rows,
        pairs=training.tally.used if rules.kind is CacheKind.PREFERENCE else None,
        validation_rows=sum(check.tally.used for check in others) if others else None,
        tokens=lengths.statistics(),
        total_tokens=lengths.tokens or None,
        images=lengths.images or None,
        max_tokens=lengths.longest or None,
        dropped=warned[DataWarningCode.TOO_LONG] + warned[DataWarningCode.PROMPT_TOO_LONG],
        truncated=warned[DataWarningCode.TRUNCATED],
        duplicates=warned[DataWarningCode.DUPLICATE_ROW],
        weightless=warned[DataWarningCode.NOTHING_TO_TRAIN],
        warnings=tuple(sentence for check in checks for sentence in check.oddities()),
        errors=tuple(errors[:MAX_DATA_ERRORS]),
        error_count=sum(check.findings.error_count for check in checks),
        report_uri=layout.uri_of(layout.data_report),
    )


def _reported(file: DataFile, check: FileCheck) -> FileReport:
    """What data-report.json says of a file beside its findings."""
    return FileReport(
        check.findings,
        {"uri": file.uri, **file.digest.to_json(), **check.head()},
        {"tokens": {side: found.to_json() for side, found in check.lengths.statistics().items()}},
    )


def _warnings(checks: list[FileCheck]) -> tuple[JobWarning, ...]:
    """What of the data changes how the job trains, beside the data's own warnings."""
    code = DataWarningCode.LAST_TURN_ONLY
    found = [s for check in checks if check.findings.warned[code] for s in check.oddities(code)]
    return tuple(JobWarning(reason=WarningCode.LAST_TURN_ONLY, message=sentence) for sentence in found[:1])


def _data_invalid(checks: list[FileCheck]) -> RunFailed:
    bad = [check for check in checks if check.findings.bad_rows]
    first = bad[0].findings.first[0]
    return failed(
        FailureCode.DATA_INVALID,
        count=sum(check.findings.bad_rows for check in bad),
        file=" and ".join(f"{check.findings.name} {check.uri}" for check in bad),
        line=first.line,
        field=first.field or "the row",
        problem=DATA_SENTENCES[DataErrorCode(first.code)],
    )


def _estimate(inputs: Inputs, tell: Tell) -> None:
    """Tell what the job will take.

    Raises:
        RunFailed: GpuSmallForRow, GpuSmallForModel, GpuSmallForFull: more than the runtime's GPUs have.
    """
    folder = inputs.layout.prepared
    held_out = open_cache(folder / VALIDATION_FOLDER).tokens.size if inputs.files[1:] else 0
    job = Job(inputs.config, Rows.of(open_cache(folder / TRAIN_FOLDER)), held_out, inputs.model.shape)
    tell(estimate=estimate(job))
    if problem := misfit(job):
        raise problem


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
        warnings=checked.warnings,
        resolved=resolved,
        digests=checked.digests,
    )
