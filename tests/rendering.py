"""The chart as rendered by Helm, and sets of values that together turn on everything."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from apiserver import BINARIES
from manifests import ROOT, documents

CHART = ROOT / "charts" / "finetune-operator"
DIGEST = "sha256:" + "a" * 64
VALUES: list[dict[str, Any]] = [
    {},
    {"settings": {"namespaces": ["team-a", "team-b"], "workers": 2, "healthPort": 9000, "pollPeriodSeconds": 0.5}},
    {"image": {"repository": "registry/operator", "digest": DIGEST}, "imagePullSecrets": [{"name": "registry"}]},
    {
        "crds": {"enabled": False},
        "rbac": {"aggregate": False},
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podLabels": {"team": "platform"},
        "podAnnotations": {"note": "yes"},
        "priorityClassName": "system-cluster-critical",
        "resources": {"limits": {"memory": "1Gi"}},
    },
    {
        "replicas": 3,
        "leaderElection": {"enabled": True, "leaseDurationSeconds": 30},
        "settings": {"shutdownSeconds": 45.5, "kueue": True, "createClaims": True},
        "admissionPolicies": {"secrets": {"enabled": True}},
        "metrics": {
            "serviceMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True},
        },
        "podDisruptionBudget": {"enabled": True},
        "networkPolicy": {"enabled": True, "from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    },
]


def template(values: dict[str, Any], release: str = "finetune-operator") -> subprocess.CompletedProcess[str]:
    """Run `helm template`."""
    command = ["helm", "template", release, str(CHART), "--namespace", "system", "--kube-version", "1.34.0"]
    environment = {**os.environ, "PATH": f"{BINARIES}:{os.environ['PATH']}"}
    return subprocess.run(
        [*command, "--values", "-"],
        input=json.dumps(values),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(values: dict[str, Any], release: str = "finetune-operator") -> list[dict[str, Any]]:
    """The objects of a rendering that must succeed."""
    done = template(values, release)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The objects of one kind."""
    return [each for each in objects if each["kind"] == kind]


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only object of a kind."""
    (found,) = of_kind(objects, kind)
    return found
