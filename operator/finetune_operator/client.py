"""The few calls to the API server that the operator makes, on the official client's connection, with JSON as it is.

Objects travel as dictionaries: a field that a newer server adds must never break an older operator. Errors are
few and named after what the caller does about them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import getproxies

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.config import ConfigException

from finetune_api import names
from finetune_operator.metrics import count_request

Manifest = dict[str, Any]
Manifests = list[Manifest]
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
APPLY_PATCH = "application/apply-patch+yaml; charset=utf-8"
"""The only form in which the API server takes an apply. With a parameter the library leaves the body as it is."""
NOT_PLAIN_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
PAGE = 500
TIMEOUT_SECONDS = 30.0
NO_ANSWER = 0
IN_CLUSTER = "/var/run/secrets/kubernetes.io/serviceaccount/token"


class ClusterError(Exception):
    """A request that the API server did not grant."""


class NoCluster(Exception):
    """Nothing says where the API server is, or what says so cannot be read."""


class NotFound(ClusterError):
    """The object, or its namespace, is not there."""


class AlreadyExists(ClusterError):
    """An object of that name is there."""


class Conflict(ClusterError):
    """The object has changed since it was read, or is another of the same name: look again."""


class Refused(ClusterError):
    """The server will not take it as it is: forbidden, over quota, or invalid. The message is for people."""


class Unavailable(ClusterError):
    """The server cannot answer now.

    Attributes:
        retry_after: seconds that the server asks for, if it does; none or more.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Gone(Unavailable):
    """The rest of a list is not kept any more: list again from the beginning."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object and where the API server keeps it."""

    api_version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """The URL path of a collection or of one object."""
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        where = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced and namespace else ""
        return f"{root}{where}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


FINETUNE_JOBS = Resource(names.API_VERSION, names.JOB_PLURAL)
RUNTIMES = Resource(names.API_VERSION, names.RUNTIME_PLURAL, namespaced=False)
JOBS = Resource("batch/v1", "jobs")
PODS = Resource("v1", "pods")
SERVICES = Resource("v1", "services")
NETWORK_POLICIES = Resource("networking.k8s.io/v1", "networkpolicies")
CLAIMS = Resource("v1", "persistentvolumeclaims")
CONFIG_MAPS = Resource("v1", "configmaps")
SERVICE_ACCOUNTS = Resource("v1", "serviceaccounts")
EVENTS = Resource("v1", "events")
CHILDREN = {"Job": JOBS, "Service": SERVICES, "NetworkPolicy": NETWORK_POLICIES, "PersistentVolumeClaim": CLAIMS}
"""What the operator makes, by its kind."""
LEASES = Resource("coordination.k8s.io/v1", "leases")
WORKLOADS = Resource("kueue.x-k8s.io/v1beta1", "workloads")


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to reach the API server, for whoever else must."""

    server: str
    authorization: str | None
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    verify: bool


class Cluster:
    """A connection to the API server."""

    def __init__(self, api: kubernetes_client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls, kubeconfig: str | None, *, in_cluster: bool) -> Cluster:
        """Connect from inside a pod, or with a kubeconfig file (None = the usual place).

        Raises:
            NoCluster
        """
        configuration = kubernetes_client.Configuration()
        try:
            if in_cluster and kubeconfig is None:
                kubernetes_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                configuration.refresh_api_key_hook = _read_token  # type: ignore[assignment]
            else:
                await kubernetes_config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (ConfigException, OSError) as error:
            where = f"kubeconfig {kubeconfig}" if kubeconfig else "neither a pod's own account nor the usual kubeconfig"
            raise NoCluster(f"{where}: {error}") from error
        # With trust_env the library looks for proxies in the environment, on a thread of its own, before each request.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        return cls(kubernetes_client.ApiClient(configuration))

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    async def credentials(self) -> Credentials:
        """The credentials as they are now; a token in a file may have been renewed."""
        configuration = self._api.configuration
        return Credentials(
            server=configuration.host,
            authorization=await configuration.get_api_key_with_prefix("BearerToken", alias="authorization"),
            ca_file=configuration.ssl_ca_cert,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            verify=configuration.verify_ssl,
        )

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """One object, as it is now.

        Raises:
            NotFound
        """
        return await self._call("GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", metadata_only: bool = False
    ) -> list[Manifest]:
        """All objects of a collection, as they are now, page by page.

        A list that takes longer than the server keeps its rest is read again, then in one piece.
        """
        path = resource.path(namespace)
        query = {"labelSelector": labels} if labels else {}
        accept = METADATA_ONLY if metadata_only else "application/json"
        try:
            return await self._pages(path, {**query, "limit": str(PAGE)}, accept)
        except Gone:
            return await self._pages(path, query, accept)

    async def _pages(self, path: str, query: dict[str, str], accept: str) -> Manifests:
        items: Manifests = []
        while True:
            page = await self._call("GET", path, query=query, accept=accept)
            if not isinstance(page.get("metadata"), dict) or "items" not in page:
                raise Unavailable(f"GET {path}: the answer is no list")
            items.extend(_lean(item) for item in page["items"] or ())  # an empty list of metadata alone is null
            token = page["metadata"].get("continue")
            if not token:
                return items
            query = {**query, "continue": token}

    async def create(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Make an object.

        Raises:
            AlreadyExists
            NotFound: the namespace is gone.
            Refused
        """
        path = resource.path(manifest["metadata"].get("namespace"))
        return await self._call("POST", path, body=manifest, query={"fieldManager": names.FIELD_MANAGER})

    async def replace(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Write a whole object over the one that was read: its resourceVersion is a precondition.

        Raises:
            Conflict: it has changed meanwhile.
            NotFound
            Refused
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"])
        return await self._call("PUT", path, body=manifest, query={"fieldManager": names.FIELD_MANAGER})

    async def apply_status(self, resource: Resource, manifest: Manifest) -> Manifest:
        """Write a whole status by server-side apply. uid and resourceVersion in the metadata are preconditions.

        Raises:
            Conflict: the object is not the one that was read.
            NotFound
            Refused
        """
        metadata = manifest["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"]) + "/status"
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        return await self._call("PATCH", path, body=as_yaml(manifest), query=query, content=APPLY_PATCH)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str, version: str) -> Manifest:
        """Delete an object, if it is still the one with that uid and resourceVersion; what it owns goes after it.

        Raises:
            Conflict: it is not.
            NotFound
        """
        preconditions = {"uid": uid, "resourceVersion": version}
        body = {"preconditions": preconditions, "propagationPolicy": "Background"}
        return await self._call("DELETE", resource.path(namespace, name), body=body)

    async def hold(
        self,
        namespace: str,
        name: str,
        uid: str,
        *,
        suspend: bool | None,
        mark: str | None,
        labels: Mapping[str, str | None] | None = None,
    ) -> Manifest:
        """Suspend a batch/v1 Job or let it go on, if it is still the one with that uid, and say why on it.

        Args:
            suspend: None = leave spec.suspend to whoever owns it.
            labels: to set; those that are None, to remove.

        Raises:
            Conflict: it is another.
            NotFound
        """
        metadata = {"annotations": {names.STOP_ANNOTATION: mark}, **({"labels": dict(labels)} if labels else {})}
        return await self._change(JOBS, namespace, name, uid, metadata, {} if suspend is None else {"suspend": suspend})

    async def activate(self, namespace: str, name: str, uid: str, *, active: bool) -> Manifest:
        """Let Kueue run a Workload or not, if it is still the one with that uid.

        Raises:
            Conflict: it is another.
            NotFound
        """
        return await self._change(WORKLOADS, namespace, name, uid, {}, {"active": active})

    async def _change(
        self, resource: Resource, namespace: str, name: str, uid: str, metadata: Manifest, spec: Manifest
    ) -> Manifest:
        body = {"metadata": {"uid": uid, **metadata}, **({"spec": spec} if spec else {})}
        query = {"fieldManager": names.FIELD_MANAGER}
        path = resource.path(namespace, name)
        return await self._call("PATCH", path, body=body, query=query, content="application/merge-patch+json")

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Manifest | bytes | None = None,
        query: dict[str, str] | None = None,
        accept: str = "application/json",
        content: str = "application/json",
    ) -> Manifest:
        configuration = self._api.configuration
        headers = {"Accept": accept, "Content-Type": content, "User-Agent": names.FIELD_MANAGER}
        url = configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            authorization = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
            if authorization:
                headers["Authorization"] = authorization
            response = await self._api.rest_client.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=TIMEOUT_SECONDS
            )
            payload = await response.read()
        except (TimeoutError, OSError, aiohttp.ClientError, ConfigException) as error:
            count_request(method, path, NO_ANSWER)
            raise Unavailable(f"{method} {path}: {type(error).__name__}: {error}") from error
        count_request(method, path, response.status)
        if 200 <= response.status < 300:
            return _object(method, path, payload)
        raise _error(method, path, response.status, response.headers, payload)


def _lean(item: Manifest) -> Manifest:
    """An item of a list without the record of who owns which field: nobody asks for it here, and of a job that is nine
    tenths of its metadata, 100 MB for five thousand."""
    item.get("metadata", {}).pop("managedFields", None)
    return item


def _read_token(configuration: kubernetes_client.Configuration) -> None:
    """Take the pod's token from its file, which the kubelet renews; to read it costs nothing beside a request."""
    configuration.api_key["BearerToken"] = f"Bearer {Path(IN_CLUSTER).read_text(encoding='ascii').strip()}"


def _object(method: str, path: str, payload: bytes) -> Manifest:
    """The object of an answer; something between us and the server may have answered in its place."""
    try:
        answer = json.loads(payload)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise Unavailable(f"{method} {path}: the answer is no object: {payload[:200].decode(errors='replace')}")
    return answer


def as_yaml(manifest: Manifest) -> bytes:
    """The manifest as JSON that is YAML too, where a surrogate pair is no character and lines end in many ways."""
    text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":"))
    return NOT_PLAIN_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def _error(method: str, path: str, status: int, headers: Mapping[str, str], payload: bytes) -> ClusterError:
    reason, message = _reason(payload)
    said = f"{method} {path}: {status} {message}"
    if status == 404:
        return NotFound(said)
    if status == 409:
        return AlreadyExists(said) if reason == "AlreadyExists" else Conflict(said)
    if status == 410:
        return Gone(said)
    if status in (400, 403, 422):
        return Refused(message or said)
    return Unavailable(said, _seconds(headers))


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Retry-After: seconds, or a date, which is read against the server's own."""
    asked = headers.get("Retry-After", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        wait = parsedate_to_datetime(asked) - parsedate_to_datetime(headers.get("Date", ""))
    except (TypeError, ValueError):  # no dates, or one without a zone
        return None
    return max(0.0, wait.total_seconds())


def _reason(payload: bytes) -> tuple[str, str]:
    """(reason, message) of a Status object; an answer that is none is quoted."""
    try:
        status = json.loads(payload)
    except ValueError:
        return "", payload[:200].decode(errors="replace")
    return (str(status.get("reason", "")), str(status.get("message", ""))) if isinstance(status, dict) else ("", "")
