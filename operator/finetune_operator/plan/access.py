"""What a job may touch: every Secret, claim, config map, URI and host that it names must match the runtime's `access`.

Users create jobs, the operator creates pods; without this check anyone could read any volume or Secret of the
namespace through us. A field that names something outside the job is a `Use`, and every Use passes `use_refused`.
Each refusal names the field, its value, and the entry that would allow it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from finetune_api.job import FineTuneJob
from finetune_api.runtime import Access
from finetune_api.status import Reason
from finetune_api.tracking import ADDRESS_FIELDS, host_of
from finetune_api.uris import UriParts, parse_uri
from finetune_operator.plan.secrets import secrets_of
from finetune_operator.plan.state import Refusal

SECRET = "secret://"
TRACKER = "tracker+"
"""Before the address of a tracker, which is no source of data."""


@dataclass(frozen=True, slots=True)
class Use:
    """One field of a job that names something outside it."""

    field: str
    uri: str
    """With a scheme."""
    write: bool = False

    @property
    def parts(self) -> UriParts:
        """The URI taken apart."""
        return parse_uri(self.uri)

    @property
    def given(self) -> str:
        """What the user wrote."""
        return self.uri.removeprefix(SECRET).removeprefix(TRACKER)


def uses_of(job: FineTuneJob, target: str) -> tuple[Use, ...]:
    """Everything outside `job` that it names, but for its weights (see `weights_of`); `target` is its output's URI."""
    spec = job.spec
    secrets = (Use(f"{secret.field}.name", f"{SECRET}{secret.ref.name}") for secret in secrets_of(job))
    validation = (Use("validationFile", spec.validation_file),) if spec.validation_file else ()
    pushed = (Use("output.hfRepo", f"hf://{spec.hf_repo}", write=True),) if spec.hf_repo else ()
    addresses = ((field, spec.tracking.place(tracker)) for tracker, field in ADDRESS_FIELDS.items())
    trackers = (Use(field, f"{TRACKER}{address}", write=True) for field, address in addresses if address)
    files = (Use("trainingFile", spec.training_file), *validation, Use("output.uri", target, write=True))
    return (*secrets, *trackers, *files, *pushed)


def namespace_refused(job: FineTuneJob, runtime: str, access: Access) -> Refusal | None:
    """The refusal of a job whose namespace may not use the runtime."""
    namespace = job.metadata.namespace or ""
    if _matches(namespace, access.namespaces, namespace):
        return None
    return _refusal("metadata.namespace", namespace, f"namespace {namespace}", runtime, "namespaces", namespace)


def use_refused(use: Use, namespace: str, runtime: str, access: Access) -> Refusal | None:
    """The refusal of one use; None = allowed."""
    parts, word = use.parts, "write" if use.write else "read"
    if parts.scheme == "secret":
        if _matches(parts.root, access.secrets, namespace):
            return None
        return _refusal(use.field, use.given, f"Secret {parts.root}", runtime, "secrets", parts.root)
    if parts.scheme == "pvc":
        globs = access.claims.write if use.write else access.claims.read
        if _matches(parts.root, globs, namespace):
            return None
        return _refusal(use.field, use.uri, f"claim {parts.root}", runtime, f"claims.{word}", parts.root)
    if parts.scheme == "configmap":
        if _matches(parts.root, access.config_maps, namespace):
            return None
        return _refusal(use.field, use.uri, f"config map {parts.root}", runtime, "configMaps", parts.root)
    if parts.scheme == "https":
        host = parts.root.partition(":")[0]
        if _matches(host, access.https_hosts, namespace):
            return None
        return _refusal(use.field, use.uri, f"the host {host}", runtime, "httpsHosts", host)
    if parts.scheme.startswith(TRACKER):
        host = host_of(use.given)
        if _matches(host, access.tracking_hosts, namespace):
            return None
        return _refusal(use.field, use.given, f"host {host}", runtime, "trackingHosts", host)
    prefixes = access.uri_prefixes.write if use.write else access.uri_prefixes.read
    if _matches(use.uri, [glob for prefix in prefixes for glob in _at_and_below(prefix)], namespace):
        return None
    entry = f"{parts.scheme}://{parts.root.rsplit('/', 1)[0]}/" if parts.scheme == "hf" else _folder(use)
    return _refusal(use.field, use.uri, "this URI", runtime, f"uriPrefixes.{word}", entry)


def _at_and_below(prefix: str) -> tuple[str, ...]:
    """Globs for what a prefix admits: a name that only begins like it is another's."""
    if prefix.endswith(("/", "*")):
        return (f"{prefix}*",)
    return prefix, f"{prefix}/*", f"{prefix}@*"


def expanded(globs: Iterable[str], namespace: str) -> tuple[str, ...]:
    """The entries of a list in `access` as they are for jobs of `namespace`."""
    return tuple(glob.replace("{namespace}", namespace) for glob in globs)


def _folder(use: Use) -> str:
    """What has to be admitted for an object and those beside it; for what is written, the folder itself."""
    return use.uri if use.write else f"{use.uri.rsplit('/', 1)[0]}/"


def _matches(value: str, globs: Iterable[str], namespace: str) -> bool:
    return any(fnmatchcase(value, glob) for glob in expanded(globs, namespace))


def _refusal(field: str, value: str, what: str, runtime: str, where: str, entry: str) -> Refusal:
    return Refusal(
        Reason.SOURCE_NOT_ALLOWED,
        f"{field} is {value}, and FineTuneRuntime {runtime} does not allow {what}:"
        f' add "{entry}" to its spec.access.{where}, or use another',
    )
