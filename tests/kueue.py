"""Kueue beside the tests' control plane: its own manager, compiled from its module, with its own kinds and webhooks.

Everything of Kueue's comes from its Go module, whose folder Go names. Its webhooks are registered too: they are not
needed for a Job that is created suspended, but they judge each change of a Job in a queue as an installed Kueue would.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from apiserver import BINARIES, Api, ControlPlane, end_with_parent, free_ports
from kubelet import wait_for

MODULE = "sigs.k8s.io/kueue"
GROUP = "/apis/kueue.x-k8s.io/v1beta1"
QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
WEBHOOKS_OF = ("-batch-v1-job", "-kueue-x-k8s-io-")
FLAVOR = "any-node"
MAKE_CERTIFICATE = (
    *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
    *("-subj", "/CN=kueue", "-addext", "subjectAltName=IP:127.0.0.1"),
)


@dataclass(frozen=True, slots=True)
class Queues:
    """Kueue's objects, as an administrator makes them."""

    api: Api

    def flavor(self) -> None:
        """The one ResourceFlavor: any node will do."""
        self._make("resourceflavors", FLAVOR, spec={})

    def one_at_a_time(self, namespace: str, cpu: str = "1", memory: str = "2Gi") -> str:
        """A queue in `namespace` with quota for one job of that size, where priority preempts. Returns its name."""
        quotas = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": memory}]
        group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": FLAVOR, "resources": quotas}]}
        spec = {
            "namespaceSelector": {},
            "resourceGroups": [group],
            "preemption": {"withinClusterQueue": "LowerPriority"},
        }
        self._make("clusterqueues", namespace, spec=spec)
        return self.queue("team", namespace)

    def queue(self, name: str, namespace: str) -> str:
        """One more way into the same quota. Returns its name."""
        self._make("localqueues", name, namespace=namespace, spec={"clusterQueue": namespace})
        path = f"{GROUP}/namespaces/{namespace}/localqueues/{name}"
        wait_for(lambda: is_active(self.api.get(path).must()), "an active LocalQueue")
        return name

    def priority(self, name: str, value: int) -> None:
        """A WorkloadPriorityClass."""
        self._make("workloadpriorityclasses", name, value=value)

    def workloads(self, namespace: str) -> list[dict[str, Any]]:
        """The Workloads of a namespace."""
        return list(self.api.get(f"{GROUP}/namespaces/{namespace}/workloads").must()["items"])

    def workload(self, namespace: str, job: str) -> dict[str, Any] | None:
        """The Workload of a batch Job; None if there is none."""
        return next((w for w in self.workloads(namespace) if w["metadata"]["ownerReferences"][0]["name"] == job), None)

    def _make(self, plural: str, name: str, namespace: str | None = None, **fields: Any) -> None:
        where = f"{GROUP}/namespaces/{namespace}/{plural}" if namespace else f"{GROUP}/{plural}"
        kind = {"localqueues": "LocalQueue", "clusterqueues": "ClusterQueue", "resourceflavors": "ResourceFlavor"}
        named = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": kind.get(plural, "WorkloadPriorityClass")}
        self.api.post(where, {**named, "metadata": {"name": name}, **fields}).must()


@contextlib.contextmanager
def kueue(plane: ControlPlane) -> Iterator[Queues]:
    """Install Kueue's kinds, run its manager, and end it."""
    folder = plane.folder / "kueue"
    folder.mkdir()
    module = _module()
    plane.kubectl("apply", "--server-side", "--filename", str(module / "config/components/crd/bases"))
    plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    port, health = free_ports(2)
    certificate = _certificate(folder)
    config = _configuration(module, folder, port, health)
    with (folder / "kueue.log").open("wb") as log:
        manager = subprocess.Popen(
            [BINARIES / "kueue", f"--config={config}", "--zap-log-level=2"],
            env={"KUBECONFIG": str(plane.kubeconfig), "HOME": str(folder)},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            preexec_fn=end_with_parent,
        )
    api = plane.api()
    try:
        wait_for(lambda: _ready(manager, health), f"Kueue; see {folder}/kueue.log", 60)
        _register_webhooks(api, module, port, certificate)
        queues = Queues(api)
        queues.flavor()
        yield queues
    finally:
        api.close()
        manager.send_signal(signal.SIGTERM)
        try:
            manager.wait(timeout=20)
        except subprocess.TimeoutExpired:
            manager.kill()
            manager.wait()


def _module() -> Path:
    """The folder of Kueue's module: Go fetches and checks it, if it has been cleaned away."""
    source = BINARIES.parent / "src" / "kueue"
    if not (BINARIES / "kueue").exists() or not source.exists():
        raise FileNotFoundError(f"{BINARIES / 'kueue'} is not there: run `hack/cluster.sh build-kueue`")
    told = subprocess.run(
        ["go", "mod", "download", "-json", MODULE], cwd=source, check=True, capture_output=True, text=True
    )
    return Path(json.loads(told.stdout)["Dir"])


def _configuration(module: Path, folder: Path, port: int, health: int) -> Path:
    """The module's default configuration, for one process on loopback that looks after Jobs alone."""
    given = YAML(typ="safe").load((module / "config/components/manager/controller_manager_config.yaml").read_text())
    config = {
        **given,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(folder)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "integrations": {"frameworks": ["batch/job"]},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def _certificate(folder: Path) -> bytes:
    """A certificate for the webhooks' address, signed by itself; returns it as PEM."""
    key, certificate = folder / "tls.key", folder / "tls.crt"
    subprocess.run(
        [*MAKE_CERTIFICATE, "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate.read_bytes()


def _register_webhooks(api: Api, module: Path, port: int, certificate: bytes) -> None:
    """Kueue's webhooks on batch Jobs and on its own kinds, at the process's address instead of a Service's."""
    authority = base64.b64encode(certificate).decode()
    for manifest in YAML(typ="safe").load_all((module / "config/components/webhook/manifests.yaml").read_text()):
        plural = f"{manifest['kind'].lower()}s"
        ours = []
        for hook in manifest["webhooks"]:
            path = hook["clientConfig"]["service"]["path"]
            if any(part in path for part in WEBHOOKS_OF):
                ours.append({**hook, "clientConfig": {"url": f"https://127.0.0.1:{port}{path}", "caBundle": authority}})
        api.post(f"/apis/admissionregistration.k8s.io/v1/{plural}", {**manifest, "webhooks": ours}).must()


def _ready(manager: subprocess.Popen[bytes], port: int) -> bool:
    assert manager.poll() is None, "Kueue has ended by itself"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def is_active(queue: dict[str, Any]) -> bool:
    """Whether a queue takes jobs."""
    return any(c["type"] == "Active" and c["status"] == "True" for c in queue.get("status", {}).get("conditions", ()))
