"""finetune-train: `prepare CONFIG`, `train CONFIG` in a pod; `check FILE`, `local JOB.yaml --output DIR` on a laptop;
`report DIR` wherever there is a result.

The only place that takes signals, turns a named cause into an exit code and, torchrun's part of it apart, reads the
environment. An exception that has no name here ends with Python's own exit code 1 and its traceback, which the operator
counts as worth a retry.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from types import FrameType

from pydantic import ValidationError

from finetune_api import names
from finetune_api.data import MAX_CHAT_TEMPLATE, DataOptions, Duplicates, ExtraColumns, Overlong
from finetune_api.failures import Failure, FailureCode
from finetune_api.method import MethodType, TrainOnInputs
from finetune_api.trainer import ExitCode, JobIdentity, Stage, TrainerConfig
from finetune_trainer.failures import PeerLost, RunFailed, failed
from finetune_trainer.launch import has_to_be_launched, is_first, launch, leave, speaks_for_its_pod
from finetune_trainer.out.console import Console
from finetune_trainer.out.progress import Reporter

LOG_PERIOD = 10.0
"""Seconds between two step lines in a pod's log."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = given.command
    return command(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune-train", description="Preference fine-tuning: SFT, then DPO.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, does in (
        ("prepare", _prepare, "check and tokenise the data of a job"),
        ("train", _train, "train on prepared data and publish"),
    ):
        stage = commands.add_parser(name, help=does)
        stage.add_argument("config", type=Path, metavar="CONFIG.json", help="the TrainerConfig")
        stage.set_defaults(command=command)
    local = commands.add_parser("local", help="run a FineTuneJob manifest on this machine")
    local.add_argument("job", type=Path, metavar="JOB.yaml", help="the manifest")
    local.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the result")
    local.add_argument("--runtime", type=Path, metavar="FILE", help="FineTuneRuntime manifest: models and defaults")
    local.add_argument(
        "--claim", type=_mapping, action="append", default=[], metavar="NAME=DIR", help="folder of pvc://NAME"
    )
    local.add_argument(
        "--checkpoint", type=_mapping, action="append", default=[], metavar="JOB=DIR", help="output of an earlier job"
    )
    local.set_defaults(command=_local)
    report = commands.add_parser("report", help="make report.html of a result again, from the files beside it")
    report.add_argument("folder", type=Path, metavar="DIR", help="output folder of a job")
    report.set_defaults(command=_report)
    _add_check(commands.add_parser("check", help="check a data file: what a job would say of it"))
    return parser


def _add_check(check: argparse.ArgumentParser) -> None:
    """Options are named as the fields of a job that they stand for."""
    kinds = "JSON Lines (also .gz, .zst) or Parquet: a path, or hf:// s3:// gs:// az:// https://"
    check.add_argument("file", metavar="FILE", help=kinds)
    check.add_argument("--model", help="folder, Hub id or URI: its tokenizer and template render the rows")
    check.add_argument("--method", type=MethodType, choices=list(MethodType), help="absent: what the format is for")
    check.add_argument("--max-seq-length", type=_length, metavar="N", help="absent: the model's own limit")
    check.add_argument("--overlong", type=Overlong, choices=list(Overlong), default=Overlong.DROP)
    check.add_argument("--extra-columns", type=ExtraColumns, choices=list(ExtraColumns), default=ExtraColumns.REJECT)
    check.add_argument("--duplicates", type=Duplicates, choices=list(Duplicates), default=Duplicates.WARN)
    check.add_argument("--chat-template", type=_template, metavar="JINJA", help="file that takes the template's place")
    check.add_argument("--train-on-inputs", type=TrainOnInputs, choices=list(TrainOnInputs), default=TrainOnInputs.AUTO)
    check.add_argument("--json", action="store_true", help="print data-report.json, every finding in it")
    check.set_defaults(command=_check)


def _length(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens")
    return int(text)


def _template(text: str) -> str:
    try:
        template = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error}") from error
    if not 1 <= len(template) <= MAX_CHAT_TEMPLATE:
        raise argparse.ArgumentTypeError(f"{text} must hold 1 to {MAX_CHAT_TEMPLATE} characters")
    return template


def _mapping(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=DIR")
    return name, Path(folder).resolve()


def _prepare(given: argparse.Namespace) -> int:
    stopping = Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_IGN)
        raise failed(FailureCode.STOPPED, step=0)

    def run(config: TrainerConfig, reporter: Reporter) -> None:
        signal.signal(signal.SIGTERM, stop)
        from finetune_trainer.prepare import prepare

        try:
            prepare(config, reporter.update)
        finally:
            signal.signal(signal.SIGTERM, lambda *_: stopping.set())

    return _in_pod(given.config, Stage.PREPARE, run, stopping)


def _train(given: argparse.Namespace) -> int:
    """Signals are heard before the slow imports begin: a first process of a container has no default for them."""
    stopping = _stop_on(signal.SIGTERM)

    def run(config: TrainerConfig, reporter: Reporter) -> None:
        from finetune_trainer.run.train import train
        from finetune_trainer.step.ranks import meeting

        with meeting() as ranks:
            train(config, reporter, stopping, ranks)

    return leave(_in_pod(given.config, Stage.TRAIN, run, stopping))


def _local(given: argparse.Namespace) -> int:
    stopping = _stop_on(signal.SIGTERM, signal.SIGINT)
    from finetune_trainer.local import LocalRun

    run = LocalRun(
        manifest=given.job,
        output=given.output.resolve(),
        runtime=given.runtime,
        claims=dict(given.claim),
        checkpoints=dict(given.checkpoint),
    )
    return run.run(stopping)


def _report(given: argparse.Namespace) -> int:
    from finetune_trainer.out.facts import NoFacts
    from finetune_trainer.out.report import rewrite_report

    try:
        print(rewrite_report(given.folder))
    except (NoFacts, OSError) as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_CONFIG
    return ExitCode.DONE


def _check(given: argparse.Namespace) -> int:
    from finetune_trainer.check import CheckRun

    options = DataOptions(
        overlong=given.overlong,
        extra_columns=given.extra_columns,
        duplicates=given.duplicates,
        chat_template=given.chat_template,
    )
    method, length, inputs = given.method, given.max_seq_length, given.train_on_inputs
    return CheckRun(given.file, given.model, method, length, options, inputs, given.json).run()


def _stop_on(*signals: signal.Signals) -> Event:
    """An event that the signals set; a second one of them ends the process at once."""
    stopping = Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in signals:
        signal.signal(number, stop)
    return stopping


def _in_pod(path: Path, stage: Stage, run: Callable[[TrainerConfig, Reporter], object], stopping: Event) -> int:
    """Run a stage with its progress served, and leave its last word.

    A pod that is deleted takes its last word with it, and the operator may be away: so an end that is not recorded when
    the pod must go is none. It is stopped, and the pod that takes its place finds the work done, or meets what failed.
    """
    try:
        config = TrainerConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        print(f"{path} is no trainer configuration: {error}", file=sys.stderr)
        return _unreadable(path, stage, error)
    if stage is Stage.TRAIN and has_to_be_launched(config):
        # Until there are processes that could save anything: from then on the agent takes the signal.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.STOPPED))
        return launch(config, path)
    leads = is_first()
    reporter = Reporter(config.job, stage, os.environ.get(names.POD_UID_ENV), Console(LOG_PERIOD) if leads else None)
    if leads:
        reporter.serve()
    failure: Failure | None = None
    try:
        run(config, reporter)
    except PeerLost as lost:
        print(f"another process of this training has ended: {lost}", file=sys.stderr)
        return ExitCode.PEER_LOST
    except RunFailed as end:
        failure = end.failure
        print(failure.sentence, file=sys.stderr)
    recorded = speaks_for_its_pod() and reporter.last_word(failure, stopping)
    if leads and stopping.is_set() and not recorded:
        return ExitCode.STOPPED
    return failure.exit_code if failure is not None else ExitCode.DONE


def _unreadable(path: Path, stage: Stage, error: OSError | ValidationError) -> int:
    """Operator and image do not understand each other; the last word names no job, because nobody said which."""
    field, problem = str(path), str(error)
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        field, problem = ".".join(map(str, first["loc"])) or field, first["msg"]
    failure = failed(FailureCode.CONFIG_UNREADABLE, field=field, problem=problem).failure
    nobody = JobIdentity(namespace="", name="", uid="")
    Reporter(nobody, stage, os.environ.get(names.POD_UID_ENV)).last_word(failure, Event())
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
