"""What `scale.py` measures, what of it is required, and the page that tells it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from statistics import median

MOST_RATIO, MOST_MEMORY = 1.5, 400 * 10**6
QUIET_SECONDS = 60.0


@dataclass
class Figures:
    """What is measured."""

    jobs: int
    finished: int
    bare: float = 0.0
    plain: list[float] = field(default_factory=list)
    operator: list[float] = field(default_factory=list)
    """Seconds from the first create to the last child Job, of each round."""
    running: float = 0.0
    """Seconds until all run."""
    requests: Counter[str] = field(default_factory=Counter)
    """The operator's, from the first create until all run."""
    quiet_requests: Counter[str] = field(default_factory=Counter)
    """In a minute with all running."""
    etcd_bytes: float = 0.0
    """Per second of that minute."""
    polls: int = 0
    memory: dict[str, int] = field(default_factory=dict)
    status_bytes: int = 0

    @property
    def ratios(self) -> list[float]:
        """The operator's time in that of the plain client, round by round."""
        return [mine / theirs for mine, theirs in zip(self.operator, self.plain, strict=True)]

    @property
    def ratio(self) -> float:
        """Their median."""
        return median(self.ratios)


def etcd_bytes(port: int) -> float:
    """Bytes that clients have sent to the etcd at this port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = re.search(r"^etcd_network_client_grpc_received_bytes_total (\S+)$", text, re.M)
    assert found is not None
    return float(found[1])


def problems_of(figures: Figures) -> list[str]:
    """What is required and not so."""
    found = []
    if figures.ratio > MOST_RATIO:
        found.append(f"the operator takes {figures.ratio:.2f} times as long as the plain client")
    found += [f"{what}: {size >> 20} MiB" for what, size in figures.memory.items() if size > MOST_MEMORY]
    return found


def _each(values: list[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def report(figures: Figures, version: str, at_once: int) -> str:
    """The page."""
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("kubernetes", "kopf", "aiohttp"))
    _, _, running, all_of_them, *_ = figures.memory.values()
    rows = [
        ("bare Jobs, first create to last", f"{figures.bare:.1f} s"),
        ("plain client: FineTuneJob, status, Job, status", f"{_each(figures.plain, '.1f')} s to the last Job"),
        ("operator, all applied at once", f"{_each(figures.operator, '.1f')} s to the last child Job"),
        ("operator / plain client, median of the rounds", f"{figures.ratio:.2f} ({_each(figures.ratios, '.2f')})"),
        ("operator / bare Jobs", f"{median(figures.operator) / figures.bare:.2f}"),
        ("all run after", f"{figures.running:.0f} s"),
        ("requests of the operator per job until it runs", f"{figures.requests.total() / figures.jobs:.1f}"),
        ("requests per second while all run", f"{figures.quiet_requests.total() / QUIET_SECONDS:.1f}"),
        ("of these status writes", f"{figures.quiet_requests['patch finetunejobs/status'] / QUIET_SECONDS:.1f}"),
        ("questions to pods per second", f"{figures.polls / QUIET_SECONDS:.1f}"),
        ("bytes to etcd per second while all run", f"{figures.etcd_bytes:,.0f}"),
        ("a status of full size", f"{figures.status_bytes:,} bytes"),
        *((f"memory, {what}", f"{size / 2**20:.0f} MiB") for what, size in figures.memory.items()),
        ("growth per finished job", f"{(all_of_them - running) / max(1, figures.finished) / 1024:.1f} KiB"),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    verbs = "\n".join(f"| {verb} | {n / figures.jobs:.2f} |" for verb, n in figures.requests.most_common())
    return (
        f"# {figures.jobs} jobs at once\n\n`make scale`, {date.today().isoformat()}; {os.cpu_count()} cores,"
        f" {platform.machine()}; Kubernetes {version}, Python {platform.python_version()}, {libraries}; etcd, API"
        f" server, controllers, pods' answers, clients and operator on this machine; {at_once} requests at a time.\n\n"
        f"| what | |\n|---|---|\n{table}\n\n| requests of the operator, per job | |\n|---|---|\n{verbs}\n"
    )
