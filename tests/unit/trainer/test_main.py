"""The commands as a pod runs them: a real process, its exit code, its progress and its signals."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from types import ModuleType

import pytest

from apiserver import free_ports
from finetune_api import names
from finetune_api.failures import FailureCode
from finetune_api.report import Report
from finetune_trainer import __main__ as entry
from finetune_trainer import prepare
from finetune_trainer.out import progress
from finetune_trainer.out.report import write_report
from finetune_trainer.run import train as train_module
from reports import facts, pair, write_metrics
from training import metrics_rows, preference_rows, trainer_config, write_jsonl


@pytest.fixture
def pod(monkeypatch):
    """A free port, and nobody who records the last word."""
    monkeypatch.setattr(names, "PROGRESS_PORT", 0)
    monkeypatch.setattr(progress, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "WAIT_SECONDS_AFTER_STOP", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def write_config(tiny_model, folder, **changes):
    write_jsonl(folder / "train.jsonl", preference_rows(8))
    path = folder / "config.json"
    path.write_text(json.dumps(trainer_config(tiny_model, folder, **changes).to_json()))
    return path


def test_prepare_then_train(tiny_model, tmp_path, pod, capsys):
    config = write_config(tiny_model, tmp_path)
    assert entry.main(["prepare", str(config)]) == 0
    assert entry.main(["train", str(config)]) == 0
    told = capsys.readouterr().out
    assert "data: 8 preference rows" in told
    assert "published dpo:4 (Final)" in told
    assert len(metrics_rows(tmp_path / "out" / "metrics.jsonl")) == 4


def test_a_report_is_made_again_from_what_a_job_left(tmp_path, capsys):
    write_metrics(tmp_path, 30, 10)
    write_report(tmp_path, facts((pair(1),)))
    whole = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    assert entry.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"
    assert (tmp_path / "report.html").read_text() == whole
    (tmp_path / "report.json").unlink()
    assert entry.main(["report", str(tmp_path)]) == 10
    assert "report.json cannot be read: No such file" in capsys.readouterr().err


def test_a_named_cause_is_said_and_is_the_exit_code(tiny_model, tmp_path, pod, capsys):
    config = write_config(tiny_model, tmp_path)
    assert entry.main(["train", str(config)]) == 10
    assert "run `finetune-train prepare` with the same configuration first" in capsys.readouterr().err
    (tmp_path / "train.jsonl").unlink()
    assert entry.main(["prepare", str(config)]) == 20
    assert "train.jsonl does not exist or may not be read: check trainingFile" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "field"),
    [(None, "config.json"), ("{", "config.json"), ('{"job": {}}', "job.namespace"), ('{"token": "hf_CANARY"}', "job")],
)
def test_a_configuration_that_cannot_be_read_is_told_in_a_last_word(tmp_path, monkeypatch, content, field, capsys):
    path, message = tmp_path / "config.json", tmp_path / "termination-log"
    message.touch()
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(names.POD_UID_ENV, "pod-7")
    monkeypatch.setattr(progress.Reporter.last_word, "__defaults__", (message,))
    assert entry.main(["train", str(path)]) == 10
    assert f"{path} is no trainer configuration" in capsys.readouterr().err
    word = Report.model_validate_json(message.read_bytes())
    assert (word.job_uid, word.pod_uid, word.finished) == ("", "pod-7", True)
    assert word.failure.code is FailureCode.CONFIG_UNREADABLE
    assert field in word.failure.args["field"]
    assert "CANARY" not in message.read_text()


def test_a_mapping_must_have_a_name_and_a_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        entry.main(["local", "job.yaml", "--output", str(tmp_path), "--claim", "data"])
    assert "'data' is not of the form NAME=DIR" in capsys.readouterr().err


def test_prepare_ends_at_once_on_sigterm(tiny_model, tmp_path, pod, monkeypatch, capsys):
    def slow(_config, _tell):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(prepare, "prepare", slow)
    assert entry.main(["prepare", str(write_config(tiny_model, tmp_path))]) == 3
    assert "stopped on request" in capsys.readouterr().err


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_what_is_done_but_not_recorded_when_the_pod_must_go_is_told_by_the_next(
    tiny_model, tmp_path, pod, monkeypatch, command, recorded
):
    config = write_config(tiny_model, tmp_path)
    assert entry.main(["prepare", str(config)]) == 0
    last_word, reports = progress.Reporter.last_word, []

    def asked_to_end(reporter, failure, stopping):
        os.kill(os.getpid(), signal.SIGTERM)
        if recorded:
            reporter._recorded.set()
        reports.append(reporter)
        return last_word(reporter, failure, stopping)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Reporter, "last_word", asked_to_end)
        assert entry.main([command, str(config)]) == (0 if recorded else 3)
        assert reports[0].report.failure is None
    rows = metrics_rows(tmp_path / "out" / "metrics.jsonl") if command == "train" else []
    assert entry.main([command, str(config)]) == 0
    if command == "train":
        assert metrics_rows(tmp_path / "out" / "metrics.jsonl") == rows, "nothing is trained again"


@pytest.mark.parametrize("recorded", [False, True])
def test_a_failure_that_is_not_recorded_when_the_pod_must_go_is_met_again(
    tiny_model, tmp_path, pod, monkeypatch, recorded
):
    """Also where the signal comes after the failure, while its last word waits."""
    config = write_config(tiny_model, tmp_path)
    (tmp_path / "train.jsonl").write_text("no JSON")
    last_word = progress.Reporter.last_word

    def asked_to_end(reporter, failure, stopping):
        os.kill(os.getpid(), signal.SIGTERM)
        if recorded:
            reporter._recorded.set()
        return last_word(reporter, failure, stopping)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Reporter, "last_word", asked_to_end)
        assert entry.main(["prepare", str(config)]) == (11 if recorded else 3)
    assert entry.main(["prepare", str(config)]) == 11


class SlowImport(ModuleType):
    """A module in whose import the pod is asked to end, once."""

    def __getattr__(self, name):
        if not self.__dict__.setdefault("asked", False):
            self.asked = True
            os.kill(os.getpid(), signal.SIGTERM)
        return getattr(REAL[self.__name__], name)


REAL = {module.__name__: module for module in (prepare, train_module)}


@pytest.mark.parametrize(("command", "module"), [("prepare", prepare), ("train", train_module)])
def test_a_pod_that_is_asked_to_end_while_it_imports_ends(tiny_model, tmp_path, pod, monkeypatch, command, module):
    config = write_config(tiny_model, tmp_path)
    assert entry.main(["prepare", str(config)]) == 0
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody heard it"))
    monkeypatch.setitem(sys.modules, module.__name__, SlowImport(module.__name__))
    assert entry.main([command, str(config)]) == 3


def test_a_pod_serves_its_progress_and_stops_on_sigterm(tiny_model, tmp_path, pod):
    """Train as a process, ask it for progress, stop it: exit 3, a saved state, and the next one goes on from it."""
    epochs = {"nEpochs": 1000, "learningRate": 1e-3}
    config = write_config(tiny_model, tmp_path, hyperparameters=epochs, checkpointing={"recoveryPeriodSeconds": 3600})
    assert entry.main(["prepare", str(config)]) == 0
    (port,) = free_ports(1)
    process = train_in_a_process(config, port, tmp_path / "stderr")
    report = wait_for_step(process, port, 5)
    assert (report.pod_uid, report.finished) == ("pod-7", False)
    assert report.metrics.train["loss"] < 1
    os.kill(process, signal.SIGTERM)
    last = wait_for_end(port)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 3
    told = (tmp_path / "stderr").read_text()
    assert last.failure.exit_code == 3
    assert last.recovery.step == last.progress.step >= 5
    assert f"stopped on request after step {last.progress.step}" in told


def train_in_a_process(config, port, errors):
    """The command in a child of its own; forked, because importing torch again takes longer than the rest."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with errors.open("w") as file:
                os.dup2(file.fileno(), 2)
                sys.stderr = file
                names.PROGRESS_PORT = port
                progress.WAIT_SECONDS_AFTER_STOP = 30.0
                os.environ[names.POD_UID_ENV] = "pod-7"
                code = entry.main(["train", str(config)])
        finally:
            os._exit(code)
    return child


def ask(port, **headers):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{names.PROGRESS_PATH}",
        headers={names.PROGRESS_HEADER: "0f1e2d3c-0000-0000-0000-000000000000", **headers},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return Report.model_validate_json(answer.read())


def wait_for_step(process, port, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "it ended by itself"
        try:
            report = ask(port)
        except OSError:
            time.sleep(0.2)
            continue
        if report.progress and report.progress.step >= step:
            return report
        time.sleep(0.05)
    raise AssertionError("no progress")


def wait_for_end(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        report = ask(port)
        if report.finished:
            return ask(port, **{names.RECORDED_HEADER: "pod-7"})
        time.sleep(0.05)
    raise AssertionError("no last word")
