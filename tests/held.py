"""What trackers hold of a run, read by their own means where they have any, as series: name to [(step, value)]."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

import httpx2
from wandb.proto import wandb_internal_pb2

from manifests import ROOT

Series = dict[str, list[tuple[int, float]]]
MLFLOW = Path(os.environ.get("MLFLOW_VENV", ROOT / ".venv-mlflow")) / "bin" / "python"
APP = "mlflow.server.fastapi_app:app"
FOLLOWER = "finetune_trainer.out.follow"
START_SECONDS = 300.0
CHUNK, HEAD = 32768, 7


def series(rows: list[tuple[int, dict[str, float]]]) -> Series:
    found: Series = defaultdict(list)
    for step, values in rows:
        for name, value in values.items():
            found[name].append((step, value))
    return dict(found)


def written_series(metrics: Path) -> Series:
    """What metrics.jsonl holds."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return series([(row.pop("step"), row) for row in rows])


def single(found: Series) -> Series:
    """In single precision."""
    return {name: [(step, struct.unpack("<f", struct.pack("<f", v))[0]) for step, v in p] for name, p in found.items()}


def wandb_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: protocol buffers in a log of blocks, as LevelDB has it, behind a head."""
    data, at, part = file.read_bytes(), HEAD, b""
    while at + HEAD <= len(data):
        if CHUNK - at % CHUNK < HEAD:
            at += CHUNK - at % CHUNK
            continue
        _crc, size, kind = struct.unpack("<IHB", data[at : at + HEAD])
        part += data[at + HEAD : at + HEAD + size]
        at += HEAD + size
        if kind in (1, 4):  # whole, or the last of several
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def wandb_series(file: Path) -> Series:
    rows = []
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            named = {name: value for name, value in items.items() if not name.startswith("_")}
            rows.append((record.history.step.num, named))
    return series(rows)


def wandb_config(file: Path) -> dict[str, Any]:
    (run,) = [r.run for r in wandb_records(file) if r.WhichOneof("record_type") == "run"]
    return {item.key: json.loads(item.value_json) for item in run.config.update}


def tensorboard_series(folder: Path) -> Series:
    """As TensorBoard's own reader has it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


class MlflowServer:
    """MLflow's real server on loopback; its runs outlive a kill."""

    def __init__(self, folder: Path) -> None:
        with socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MLFLOW.is_file(), f"{MLFLOW} is missing: make setup-mlflow"
        # What `mlflow server` starts in the end, without the processes that it starts beside it.
        command = [MLFLOW, "-m", "uvicorn", "--log-level", "warning", "--port", str(self.port), APP]
        settings = {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.folder}/mlflow.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": f"{self.folder}/artifacts",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": "",
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env={**os.environ, **settings}
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                if httpx2.get(f"{self.uri}/health").is_success:
                    self.ask("GET", "experiments/get-by-name", experiment_name="Default")  # the first answer is slow
                    return
            except httpx2.TransportError:
                time.sleep(0.05)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ask(self, method: str, path: str, **asked: Any) -> dict[str, Any]:
        how: dict[str, Any] = {"params": asked} if method == "GET" else {"json": asked}
        how["timeout"] = START_SECONDS
        answer = httpx2.request(method, f"{self.uri}/api/2.0/mlflow/{path}", **how)
        return answer.raise_for_status().json()

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        found = self.ask("GET", "experiments/get-by-name", experiment_name=experiment)["experiment"]
        return self.ask("POST", "runs/search", experiment_ids=[found["experiment_id"]]).get("runs", [])

    def series(self, run: dict[str, Any]) -> Series:
        found: Series = {}
        for name in (metric["key"] for metric in run["data"]["metrics"]):
            history = self.ask(
                "GET", "metrics/get-history", run_id=run["info"]["run_id"], metric_key=name, max_results=10000
            )
            found[name] = sorted((point["step"], point["value"]) for point in history["metrics"])
        return found


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def children_of(pid: int) -> list[int]:
    """Processes that `pid` has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def program_of(pid: int) -> str:
    """The command line of a process; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def followers() -> list[int]:
    """The processes of trackers that this one has started."""
    return [pid for pid in children_of(os.getpid()) if FOLLOWER in program_of(pid)]
