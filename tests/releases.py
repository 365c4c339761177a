"""A release of the chart in a cluster, and operators that run as processes with its settings and rights."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from apiserver import ControlPlane, free_ports
from manifests import ROOT, documents
from world import OperatorProcess

CHART = ROOT / "charts" / "finetune-operator"
IMPATIENT: dict[str, Any] = {"pollPeriodSeconds": 0.3, "resyncPeriodSeconds": 1, "trainerImage": "trainer:1"}


@dataclass
class Release:
    """One installation."""

    plane: ControlPlane
    folder: Path
    name: str = "finetune-operator"
    namespace: str = "finetune-system"
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """The name of its objects."""
        return self.name if CHART.name in self.name else f"{self.name}-{CHART.name}"

    def install(self, chart: Path = CHART) -> str:
        """Install or upgrade; returns the notes."""
        command = ["upgrade", "--install", self.name, str(chart), "--create-namespace", "--values", "-"]
        return self.helm(*command, stdin=json.dumps(self.values))

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        """A helm that must succeed."""
        done = self.plane.run("helm", *arguments, "--namespace", self.namespace, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def operator(self, label: str = "operator", **more: Any) -> tuple[OperatorProcess, str]:
        """One that is not started yet, and the address of its health port."""
        where = ("--namespace", self.namespace)
        token = self.plane.kubectl("create", "token", self.full_name, *where, "--duration", "2h").strip()
        kubeconfig = self.plane.kubeconfig_for(token, self.folder / f"{label}.kubeconfig")
        (given,) = documents(self.plane.kubectl("get", "configmap", self.full_name, *where, "-o", "yaml"))
        (settings,) = documents(given["data"]["settings.yaml"])
        (port,) = free_ports(1)
        path = self.folder / f"{label}.yaml"
        path.write_text(json.dumps({**settings, **IMPATIENT, "healthPort": port}))
        return OperatorProcess(kubeconfig, path, self.folder / f"{label}.log", **more), f"http://127.0.0.1:{port}"


def asked(url: str, seconds: float = 2.0) -> tuple[int, str]:
    """Status and body of an answer; status 0 = there is none."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def metric(url: str, name: str) -> float | None:
    """The value of a series, its labels and all, such as `finetune_operator_leader`; None if it is not told."""
    lines = asked(f"{url}/metrics")[1].splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), None)
