"""What a control plane needs before the operator can run on it, and what everybody who runs one there shares."""

from __future__ import annotations

from pathlib import Path

from apiserver import ControlPlane
from manifests import ROOT

SYSTEM = "finetune-system"


def kinds(plane: ControlPlane) -> None:
    """Install our two kinds."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


def operator_token(plane: ControlPlane, *flags: str) -> str:
    """Install the chart, and take a token of the operator's service account: the rights of its roles, no others.

    Args:
        flags: of helm, such as `--set settings.kueue=true`.
    """
    chart = str(ROOT / "charts" / "finetune-operator")
    where = ["--namespace", SYSTEM, "--create-namespace", "--set", "crds.enabled=false"]
    installed = plane.run("helm", "upgrade", "--install", "finetune-operator", chart, *where, *flags)
    assert installed.returncode == 0, installed.stderr
    return plane.kubectl("create", "token", "finetune-operator", "--namespace", SYSTEM, "--duration", "2h").strip()


def operator_account(plane: ControlPlane, folder: Path, *flags: str) -> Path:
    """A kubeconfig of the operator's service account."""
    return plane.kubeconfig_for(operator_token(plane, *flags), folder / "kubeconfig")
