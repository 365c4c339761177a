"""URIs of the contract: which schemes a field takes, and what a URI's parts are.

Segments may not begin with two dots, so that no path leaves its volume; the pattern says it, in the API server too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from finetune_api.base import Matching

SEGMENT = r"\.?[A-Za-z0-9_-][A-Za-z0-9._-]*"
DNS_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
REVISION_NAME = r"[A-Za-z0-9._-]{1,128}"
REVISION = rf"(@{REVISION_NAME})?"
PVC = rf"pvc://{DNS_NAME}(/{SEGMENT})*"
CONFIG_MAP = rf"configmap://{DNS_NAME}/{SEGMENT}"
HF_REPO = rf"{SEGMENT}/{SEGMENT}"
HF_MODEL = rf"hf://{HF_REPO}{REVISION}"
HF_DATA = rf"hf://(datasets/)?{HF_REPO}{REVISION}(/{SEGMENT})+"
OBJECT_STORES = ("s3", "gs", "az")
"""Schemes of object stores: a bucket, or for az a container, and a path in it."""
BUCKET = r"[a-z0-9]([-a-z0-9._]{0,220}[a-z0-9])?"
STORE = rf"(s3|gs|az)://{BUCKET}"
OBJECT_SEGMENT = r"\.?[A-Za-z0-9_=+~-][A-Za-z0-9._=+~-]*"
"""Also what partitioned data is called (day=1), and nothing that a client or a URI gives a meaning of its own."""
STORED = rf"{STORE}(/{OBJECT_SEGMENT})+"
HTTPS_FILE = rf"https://{DNS_NAME}(:[0-9]{{1,5}})?(/{OBJECT_SEGMENT})+"
MODEL_NAME = rf"{SEGMENT}(/{SEGMENT})?{REVISION}"
LOCAL_FILE = "file://"
MAX_URI = 1024
MAX_REVISION = 128
MAX_HUB_REPO = 193
"""Two names of at most 96 characters."""

PVC_FILE = rf"pvc://{DNS_NAME}(/{SEGMENT})+"
MODEL_PATTERN = rf"^({MODEL_NAME}|{HF_MODEL}|{PVC}|{STORED})$"
DATA_PATTERN = rf"^({PVC_FILE}|{CONFIG_MAP}|{HF_DATA}|{STORED}|{HTTPS_FILE})$"
DATA_SET_ALONE = rf"^hf://datasets/{SEGMENT}{REVISION}/{SEGMENT}{REVISION}$"
"""A data set without a file of it, which reads like a file of the repository datasets/org."""
HUB_MODEL_PATTERN = rf"^(hf://)?{HF_REPO}{REVISION}$"
OUTPUT_PATTERN = rf"^({PVC}|{STORE}(/{SEGMENT})+)$"
TEMPLATE_SEGMENT = rf"({SEGMENT}|\{{namespace\}}|\{{name\}})"
OUTPUT_TEMPLATE_PATTERN = rf"^(pvc://{DNS_NAME}(/{TEMPLATE_SEGMENT})*|{STORE}(/{TEMPLATE_SEGMENT})+)$"


def _uri(pattern: str, takes: str, never: str | None = None) -> Any:
    """A string field that matches `pattern`; on a single machine (validation context `local`) also `file://`."""
    return Annotated[str, Matching(f"must be {takes}", pattern, MAX_URI, local_prefix=LOCAL_FILE, never=never)]


ModelUri = _uri(
    MODEL_PATTERN,
    "a model of the runtime, org/name[@revision], hf://org/name[@revision], pvc://claim/path, or a folder"
    " s3://bucket/path, gs://bucket/path or az://container/path",
)
HubModel = Annotated[str, Matching("must be org/name[@revision] of the Hugging Face Hub", HUB_MODEL_PATTERN, MAX_URI)]
HubRevision = Annotated[
    str, Matching("must be a branch, tag or commit without slashes", rf"^{REVISION_NAME}$", MAX_REVISION)
]
DataUri = _uri(
    DATA_PATTERN,
    "pvc://claim/path, configmap://name/key, hf://datasets/org/name[@revision]/path, s3://bucket/path,"
    " gs://bucket/path, az://container/path, or https://host/path without query or credentials, of a file",
    never=DATA_SET_ALONE,
)
OUTPUT_FORMS = "pvc://claim/path, s3://bucket/path, gs://bucket/path or az://container/path of a folder"
HubRepo = Annotated[str, Matching("must be org/name of the Hugging Face Hub", rf"^{HF_REPO}$", MAX_HUB_REPO)]
OutputUri = _uri(OUTPUT_PATTERN, OUTPUT_FORMS)
OutputTemplate = _uri(OUTPUT_TEMPLATE_PATTERN, f"{OUTPUT_FORMS}, with {{namespace}} and {{name}} as segments")
ClaimFolder = Annotated[str, Matching("must be pvc://claim/path of a folder", rf"^{PVC}$", MAX_URI)]


@dataclass(frozen=True, slots=True)
class UriParts:
    """A URI taken apart: scheme, what holds the data (claim, config map, Hub repository, bucket) and the path there."""

    scheme: str
    root: str
    path: str = ""
    revision: str | None = None

    @property
    def volume(self) -> str:
        """`scheme://root`: the volume that a pod mounts for this URI."""
        return f"{self.scheme}://{self.root}"


def parse_uri(uri: str) -> UriParts:
    """Take apart a URI of the contract (already validated)."""
    scheme, rest = uri.split("://", 1)
    if scheme == "file":
        return UriParts(scheme=scheme, root="", path=rest)
    if scheme == "hf":
        return _parse_hub(rest)
    root, _, path = rest.partition("/")
    return UriParts(scheme=scheme, root=root, path=path)


def _parse_hub(rest: str) -> UriParts:
    """`[datasets/]org/name[@revision][/path]`."""
    dataset = rest.startswith("datasets/")
    segments = rest.split("/")
    size = 3 if dataset else 2
    repo, path = segments[:size], segments[size:]
    name, _, revision = repo[-1].partition("@")
    return UriParts(scheme="hf", root="/".join([*repo[:-1], name]), path="/".join(path), revision=revision or None)
