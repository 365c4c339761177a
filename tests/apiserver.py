"""A real API server for tests: etcd, kube-apiserver and kube-controller-manager on loopback, in a temporary folder.

There is no kubelet and no scheduler: the job controller makes real pods and a test says what became of them. So a
lifecycle that takes minutes on a node takes seconds here, and every answer is still the API server's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BINARIES = Path(os.environ.get("CLUSTER_ROOT", "/var/lib/local-cluster")) / "bin"
ADMIN_TOKEN = "admin-of-a-throw-away-cluster"
CONTROLLERS = (
    "job-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "ttl-after-finished-controller",
    "clusterrole-aggregation-controller",
)
START_SECONDS = 60
AUDIT_LOG = "audit.log"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts:finetune-system"]}, {"level": "None"}],
}
"""What the operator asks for is written down; nothing else is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said."""

    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether it did what was asked."""
        return self.status < 400

    @property
    def message(self) -> str:
        """The reason for a refusal."""
        return str(self.body.get("message", ""))

    def must(self) -> dict[str, Any]:
        """The object, where a refusal would be a broken test."""
        assert self.ok, f"{self.status}: {self.message}"
        return self.body


@dataclass(slots=True)
class Api:
    """One kept-alive connection: thousands of dry runs take seconds. One thread at a time."""

    port: int
    token: str
    authority: Path
    _connection: http.client.HTTPSConnection | None = field(default=None, init=False)

    def request(self, method: str, path: str, body: object = None, content: str = "application/json") -> Answer:
        """Send JSON, or text that already is what `content` says."""
        payload = body if isinstance(body, str) or body is None else json.dumps(body)
        kept = self._connection is not None
        try:
            return self._asked(method, path, payload, content)
        except (OSError, http.client.HTTPException):
            self.close()
            if not kept:
                raise
        return self._asked(method, path, payload, content)  # the server had closed the kept connection

    def _asked(self, method: str, path: str, payload: str | None, content: str) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content, "Accept": "application/json"}
        connection = self._connected()
        connection.request(method, path, payload.encode() if payload is not None else None, headers)
        response = connection.getresponse()
        text = response.read()
        try:
            return Answer(response.status, json.loads(text or b"{}"))
        except json.JSONDecodeError:
            return Answer(response.status, {"message": text.decode()})

    def get(self, path: str) -> Answer:
        """Read."""
        return self.request("GET", path)

    def post(self, path: str, body: object) -> Answer:
        """Create."""
        return self.request("POST", path, body)

    def put(self, path: str, body: object) -> Answer:
        """Replace."""
        return self.request("PUT", path, body)

    def patch(self, path: str, body: object) -> Answer:
        """Merge."""
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str, **options: object) -> Answer:
        """Delete, with DeleteOptions."""
        return self.request("DELETE", path, {"propagationPolicy": "Background", **options})

    def another(self, token: str | None = None) -> Api:
        """A connection of its own, for another thread or another user."""
        return Api(self.port, token or self.token, self.authority)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> http.client.HTTPSConnection:
        if self._connection is None:
            context = ssl.create_default_context(cafile=str(self.authority))
            self._connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=context)
            self._connection.connect()
            assert self._connection.sock is not None
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A running one."""

    folder: Path
    port: int
    kubeconfig: Path
    etcd_port: int
    processes: list[subprocess.Popen[bytes]]
    """What was started, in that order."""

    def restart_apiserver(self) -> None:
        """Kill the API server, start another on the same port and data, and wait until it is ready."""
        (old,) = [process for process in self.processes if "kube-apiserver" in process.args[0]]
        old.kill()
        old.wait()
        self.processes[self.processes.index(old)] = _spawn(self.folder, "kube-apiserver", *old.args[1:])
        _wait_until(lambda: _ready(self), f"the API server; see {self.folder}/kube-apiserver.log")

    def api(self, token: str = ADMIN_TOKEN) -> Api:
        """A connection for the administrator, or for the bearer of `token`."""
        return Api(self.port, token, self.folder / "pki" / "apiserver.crt")

    def run(
        self, program: str, *arguments: str, kubeconfig: Path | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl or helm against it; the result tells how it ended."""
        environment = {
            "KUBECONFIG": str(kubeconfig or self.kubeconfig),
            "PATH": f"{BINARIES}:{os.environ['PATH']}",
            "HOME": str(self.folder),
        }
        return subprocess.run(
            [program, *arguments],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def kubectl(self, *arguments: str, kubeconfig: Path | None = None, stdin: str | None = None) -> str:
        """Standard output of a kubectl that must succeed."""
        done = self.run("kubectl", *arguments, kubeconfig=kubeconfig, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def kubeconfig_for(self, token: str, path: Path) -> Path:
        """Write a kubeconfig for the bearer of `token`."""
        path.write_text(json.dumps(_kubeconfig(self.port, self.folder / "pki" / "apiserver.crt", token)))
        return path


@contextlib.contextmanager
def control_plane(folder: Path, *flags: str) -> Iterator[ControlPlane]:
    """Start one in `folder`, with more flags for its API server, and end exactly what was started."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield _start(folder, started, flags)
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(started):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(folder: Path, started: list[subprocess.Popen[bytes]], flags: tuple[str, ...]) -> ControlPlane:
    etcd_port, peer_port, port = free_ports(3)
    pki = folder / "pki"
    pki.mkdir(parents=True)
    key = pki / "service-accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    (pki / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,1,"system:masters"\n')
    (pki / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
    started.append(_spawn(folder, "etcd", *_etcd_flags(folder, etcd_port, peer_port)))
    started.append(_spawn(folder, "kube-apiserver", *_apiserver_flags(folder, key, etcd_port, port), *flags))
    certificate = pki / "apiserver.crt"
    _wait_until(lambda: certificate.exists() and certificate.stat().st_size > 0, "the API server's certificate")
    plane = ControlPlane(folder, port, folder / "admin.kubeconfig", etcd_port, started)
    plane.kubeconfig_for(ADMIN_TOKEN, plane.kubeconfig)
    _wait_until(lambda: _ready(plane), f"the API server; see {folder}/kube-apiserver.log")
    started.append(_spawn(folder, "kube-controller-manager", *_controller_flags(plane, key)))
    _wait_until(lambda: _has_default_account(plane), f"controllers; see {folder}/kube-controller-manager.log")
    return plane


def _etcd_flags(folder: Path, port: int, peer: int) -> list[str]:
    client, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",
    ]


def _apiserver_flags(folder: Path, key: Path, etcd_port: int, port: int) -> list[str]:
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'pki'}",
        f"--token-auth-file={folder / 'pki' / 'tokens.csv'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--endpoint-reconciler-type=none",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",  # as clusters have it: what keeps pods from it must be ours
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        f"--audit-policy-file={folder / 'pki' / 'audit-policy.json'}",
        f"--audit-log-path={folder / AUDIT_LOG}",
        "--profiling=false",
    ]


def _controller_flags(plane: ControlPlane, key: Path) -> list[str]:
    return [
        f"--kubeconfig={plane.kubeconfig}",
        f"--service-account-private-key-file={key}",
        f"--root-ca-file={plane.folder / 'pki' / 'apiserver.crt'}",
        "--leader-elect=false",
        "--secure-port=0",
        f"--controllers={','.join(CONTROLLERS)}",
        "--kube-api-qps=1000",  # a test with a hundred jobs waits for the operator, not for the Job controller
        "--kube-api-burst=1000",
    ]


def _spawn(folder: Path, program: str, *flags: str) -> subprocess.Popen[bytes]:
    path = shutil.which(program, path=f"{BINARIES}:{os.environ['PATH']}")
    if path is None:
        raise FileNotFoundError(f"{program} is neither in {BINARIES} nor on PATH: run `hack/cluster.sh build`")
    with (folder / f"{program}.log").open("ab") as log:
        return subprocess.Popen(
            [path, *flags], cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent
        )


def end_with_parent() -> None:
    """A killed test run leaves no server behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _kubeconfig(port: int, authority: Path, token: str) -> dict[str, Any]:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(authority)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        "current-context": "test",
    }


def _ready(plane: ControlPlane) -> bool:
    api = plane.api()
    try:
        return api.get("/readyz").status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        api.close()


def _has_default_account(plane: ControlPlane) -> bool:
    api = plane.api()
    try:
        return api.get("/api/v1/namespaces/default/serviceaccounts/default").ok
    finally:
        api.close()


def _wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {START_SECONDS} s for {what}")
        time.sleep(0.1)
