"""An hour without any job: the operator must neither restart, nor call itself unhealthy, nor grow.

    python benchmarks/idle.py [--minutes 60]

The operator is a process of its own under its shipped role and with its shipped settings, on a real API server. Every
few seconds /healthz is asked and the process is measured; at the end a job is applied, which must be looked at within
seconds: watches that had died in silence would show so. Writes idle.md; ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import installed
from apiserver import Api, ControlPlane, control_plane, free_ports
from judges import collection
from kubelet import wait_for
from manifests import job
from world import OperatorProcess

PERIOD_SECONDS = 5.0
SETTLED_SECONDS = 60.0
"""From here on the process must not grow."""
MOST_GROWTH = 8 * 2**20
"""Bytes; Python's allocator gives and takes a few."""
MOST_SECONDS_TO_A_LOOK = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at one moment."""

    at: float
    """Seconds since its start."""
    healthy: bool
    answer: str
    resident: int
    files: int
    threads: int


def main() -> None:
    """Run, tell and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder, control_plane(Path(folder) / "plane") as plane:
        installed.kinds(plane)
        operator, port = start(plane, Path(folder))
        try:
            before = requests(plane.api())
            samples = watch(operator, port, minutes * 60)
            asked = requests(plane.api()) - before
            seconds = seconds_to_a_look(plane.api())
        finally:
            code = operator.stop()
        problems = wrong(samples, seconds, code)
    text = report(samples, asked, seconds, problems)
    print(text)
    (Path(__file__).parent / "idle.md").write_text(text)
    sys.exit(1 if problems else 0)


def start(plane: ControlPlane, folder: Path) -> tuple[OperatorProcess, int]:
    """The operator with the settings that the chart ships, but for a free port. Returns it and its port."""
    (port,) = free_ports(1)
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps({"healthPort": port, "trainerImage": "trainer:1"}))
    operator = OperatorProcess(installed.operator_account(plane, folder), settings, folder / "operator.log")
    operator.start()
    operator.wait_for_log("made FineTuneRuntime default", seconds=60)
    return operator, port


def watch(operator: OperatorProcess, port: int, seconds: float) -> list[Sample]:
    """Measure until the time is over, or the process is."""
    begun, samples = time.monotonic(), []
    assert operator.process is not None
    while (at := time.monotonic() - begun) < seconds and operator.process.poll() is None:
        samples.append(measured(operator.process.pid, port, at))
        time.sleep(PERIOD_SECONDS)
    return samples


def measured(pid: int, port: int, at: float) -> Sample:
    """One sample."""
    healthy, answer = health(port)
    process = Path("/proc") / str(pid)
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
    resident, threads = int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"])
    return Sample(at, healthy, answer, resident, len(list((process / "fd").iterdir())), threads)


def health(port: int) -> tuple[bool, str]:
    """Whether /healthz says healthy, and its words."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
            return response.status == 200, response.read().decode()
    except urllib.error.HTTPError as error:
        return False, error.read().decode()
    except OSError as error:
        return False, str(error)


def requests(api: Api) -> int:
    """Requests for our two kinds, Jobs and pods that the API server has answered; a watch counts at its end."""
    text = api.request("GET", "/metrics").message
    api.close()
    wanted = r'^apiserver_request_total\{.*resource="(?:finetunejobs|finetuneruntimes|jobs|pods)".*\} (\S+)$'
    return round(sum(float(count) for count in re.findall(wanted, text, re.M)))


def seconds_to_a_look(api: Api) -> float:
    """Seconds from a job's creation to the first word in its status."""
    jobs = collection(job(), "default")
    begun = time.monotonic()
    api.post(jobs, job("first")).must()
    wait_for(lambda: api.get(f"{jobs}/first").must().get("status"), "a look at the job", seconds=120)
    api.close()
    return time.monotonic() - begun


def wrong(samples: list[Sample], seconds: float, code: int) -> list[str]:
    """What must not be; empty = all is well."""
    found = [f"unhealthy after {s.at:.0f} s: {s.answer}" for s in samples if not s.healthy]
    settled = [s for s in samples if s.at >= SETTLED_SECONDS] or samples
    early, late = settled[: len(settled) // 4 + 1], settled[-(len(settled) // 4 + 1) :]
    grown = median(s.resident for s in late) - median(s.resident for s in early)
    if grown > MOST_GROWTH:
        found.append(f"it has grown by {grown / 2**20:.1f} MiB")
    if late[-1].files > max(s.files for s in early):
        found.append(f"open files: {late[-1].files}, at first {early[0].files}")
    if seconds > MOST_SECONDS_TO_A_LOOK:
        found.append(f"the first job was looked at after {seconds:.1f} s")
    if code != 0:
        found.append(f"it ended with {code}")
    return found


def report(samples: list[Sample], asked: int, seconds: float, problems: list[str]) -> str:
    """The page."""
    settled = next((s for s in samples if s.at >= SETTLED_SECONDS), samples[0])
    last, hours = samples[-1], samples[-1].at / 3600
    versions = f"Python {sys.version.split()[0]}, kopf {version('kopf')}, kubernetes {version('kubernetes')}"
    rows = [
        ("without any job", f"{last.at / 60:.0f} min"),
        ("restarts", "0"),
        ("/healthz", f"{len(samples)} asked, {sum(s.healthy for s in samples)} healthy"),
        ("resident memory after 1 min, at the end", f"{settled.resident / 2**20:.1f}, {last.resident / 2**20:.1f} MiB"),
        ("open files after 1 min, at the end", f"{settled.files}, {last.files}"),
        ("threads after 1 min, at the end", f"{settled.threads}, {last.threads}"),
        (
            "requests to the API server (all who ask for our kinds, Jobs and pods)",
            f"{asked / max(hours, 1e-9):.0f} an hour",
        ),
        ("then a job is applied: seconds to the first word in its status", f"{seconds:.1f}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    verdict = "Nothing was wrong." if not problems else "Wrong: " + "; ".join(problems)
    return (
        f"# An hour without any job\n\n{date.today()}; {versions}; shipped role and settings, a real API server."
        f" Written by `make bench-idle`.\n\n| what | found |\n|---|---|\n{table}\n\n{verdict}\n"
    )


if __name__ == "__main__":
    main()
