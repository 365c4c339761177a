"""From nothing to a running operator: cluster, images, chart. The demo and the end-to-end tests begin so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SYSTEM_NAMESPACE, RELEASE = "finetune-system", "finetune-operator"


def cluster() -> None:
    """Build and start the cluster; nothing to do on one that runs. KUBECONFIG and PATH are set for what follows."""
    run("hack/cluster.sh", "up")
    for line in output("bash", "-c", 'eval "$(hack/cluster.sh env)"; env').splitlines():
        name, _, value = line.partition("=")
        if name in ("KUBECONFIG", "PATH"):
            os.environ[name] = value


def images() -> None:
    """Build what this content has no image of yet. The pods that copy files use that image from then on."""
    run("hack/images.sh", "build")
    os.environ["VOLUME_IMAGE"] = output("hack/images.sh", "tag", "operator")


def operator(*values: str) -> None:
    """Install or upgrade the chart (`values` as for --set), and wait for the operator."""
    settings = list(values)
    for part, prefix in (("operator", "image"), ("trainer", "trainerImage")):
        repository, _, tag = output("hack/images.sh", "tag", part).rpartition(":")
        settings += [f"{prefix}.repository={repository}", f"{prefix}.tag={tag}"]
    # A run that was ended in the middle leaves helm's lock behind, which nobody else takes away.
    locks = f"owner=helm,name={RELEASE},status in (pending-install,pending-upgrade,pending-rollback)"
    run("kubectl", "-n", SYSTEM_NAMESPACE, "delete", "secret", "-l", locks, quiet=True)
    chart = ["helm", "upgrade", "--install", RELEASE, "charts/finetune-operator"]
    where = ["--namespace", SYSTEM_NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"]
    run(*chart, *where, *(word for value in settings for word in ("--set", value)), quiet=True)
    run("kubectl", "-n", SYSTEM_NAMESPACE, "get", "pods")


def empty_namespace(name: str, claims: tuple[str, ...]) -> None:
    """A namespace that enforces the restricted pod security standard, with nothing in it but empty claims."""
    run("kubectl", "delete", "namespace", name, "--ignore-not-found", "--timeout=180s", quiet=True)
    run("kubectl", "create", "namespace", name, quiet=True)
    run("kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted", quiet=True)
    for claim in claims:
        run("hack/volume.sh", "delete", claim, name, quiet=True)
        run("hack/volume.sh", "create", claim, name, quiet=True)


def run(*command: str, quiet: bool = False) -> None:
    """Run a command from the repository's root; its output is shown, or kept until it fails."""
    result = subprocess.run(command, cwd=ROOT, capture_output=quiet, text=True, check=False)
    if result.returncode:
        if quiet:
            print(result.stdout, result.stderr, sep="\n", file=sys.stderr)
        sys.exit(f"failed: {' '.join(command)}")


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
