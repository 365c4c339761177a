"""A Hugging Face Hub on this machine: the part of its HTTP interface that the real client uses for repositories.

    with serving() as hub:
        hub.add("me/model", {"config.json": b"..."})
        ...  # HF_ENDPOINT=hub.url

It answers as the Hub does: commits in X-Repo-Commit, ETags, ranges, X-Error-Code on errors, bearer tokens. Whoever has
one of `hub.writers` as token may make repositories and commit to them: small files within the commit, weights by LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
AUTH = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/auth-check/write")
CHANGE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit)/main")
BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
LARGE = re.compile(r"/large/(?P<oid>[0-9a-f]{64})")
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repository:
    """Files at one commit, known by the branch `main`, perhaps by tags, perhaps only to bearers of `token`."""

    files: dict[str, bytes]
    tags: set[str] = field(default_factory=set)
    token: str | None = None
    gated: bool = False
    private: bool = False
    commits: list[str] = field(default_factory=list)
    """Their messages."""

    @property
    def commit(self) -> str:
        listing = "".join(f"{path} {_oid(content)}\n" for path, content in sorted(self.files.items()))
        return hashlib.sha1(listing.encode()).hexdigest()

    def knows(self, revision: str) -> bool:
        return revision in {"main", self.commit, *self.tags}


@dataclass
class Hub:
    """What is served, and what was asked: `requests` holds (method, path)."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    """Status codes with which the next requests are answered."""
    writers: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded by LFS, by SHA-256."""

    def add(self, name: str, files: dict[str, bytes], **options: object) -> Repository:
        """Serve `org/name`, or `datasets/org/name`."""
        self.repositories[name] = Repository(files, **options)
        return self.repositories[name]

    def downloads(self) -> set[str]:
        """Names of the files whose content was asked for."""
        found = (RESOLVE.fullmatch(path) for method, path in self.requests if method == "GET")
        return {match["path"] for match in found if match}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _mode(file: dict, repository: Repository) -> dict:
    """How a file is to be sent, and what the repository has under its name: the SHA-256 of what came by LFS."""
    large, there = file["path"].endswith(".safetensors"), repository.files.get(file["path"])
    known = None if there is None else hashlib.sha256(there).hexdigest() if large else _oid(there)
    return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": known}


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", body: bytes = b"") -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.body = body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        self._take(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_PUT(self) -> None:
        self.do_POST()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        try:
            if self.hub.failures:
                raise _Refused(self.hub.failures.pop(0))
            if match := AUTH.fullmatch(path):
                self._repository(match["repo"], None)
                self._may_write()
                self._send(200, b"{}", {"Content-Type": "application/json"}, body)
            elif match := API.fullmatch(path):
                self._send(200, self._describe(match), {"Content-Type": "application/json"}, body)
            elif match := RESOLVE.fullmatch(path):
                self._send_file(match, body)
            else:
                raise _Refused(404)
        except _Refused as refused:
            self._send(refused.status, b"", {"X-Error-Code": refused.code, "X-Error-Message": refused.code}, body)

    def _take(self, given: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        try:
            if self.hub.failures:
                raise _Refused(self.hub.failures.pop(0))
            answer = self._write(path, given)
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.code}
            self._send(refused.status, refused.body, headers, True)

    def _write(self, path: str, given: bytes) -> dict:
        if match := LARGE.fullmatch(path):
            assert hashlib.sha256(given).hexdigest() == match["oid"]
            self.hub.large[match["oid"]] = given
            return {}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        self._may_write()
        if path == "/api/repos/create":
            return self._create(json.loads(given))
        if match := BATCH.fullmatch(path):
            return {"objects": [self._action(wanted) for wanted in json.loads(given)["objects"]]}
        if (match := CHANGE.fullmatch(path)) is None:
            raise _Refused(404)
        repository = self._repository(match["repo"], "main")
        if match["what"] == "preupload":
            return {"files": [_mode(file, repository) for file in json.loads(given)["files"]]}
        return self._commit(repository, match["repo"], [json.loads(line) for line in given.splitlines()])

    def _may_write(self) -> None:
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.writers:
            raise _Refused(403)

    def _create(self, wanted: dict) -> dict:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repositories:
            raise _Refused(409, body=json.dumps({"url": f"{self.hub.url}/{name}"}).encode())
        self.hub.add(name, {}, private=wanted.get("visibility") == "private")
        return {"url": f"{self.hub.url}/{name}"}

    def _action(self, wanted: dict) -> dict:
        if wanted["oid"] in self.hub.large:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/large/{wanted['oid']}"}}}

    def _commit(self, repository: Repository, name: str, lines: list[dict]) -> dict:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repository.files[value["path"]] = self.hub.large[value["oid"]]
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{repository.commit}", "commitOid": repository.commit}

    def _repository(self, name: str, revision: str | None) -> Repository:
        repository = self.hub.repositories.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None:
            raise _Refused(404 if token else 401, "RepoNotFound")
        if repository.token not in (None, token):
            raise _Refused(403, "GatedRepo") if repository.gated else _Refused(401, "RepoNotFound")
        if revision is not None and not repository.knows(revision):
            raise _Refused(404, "RevisionNotFound")
        return repository

    def _describe(self, match: re.Match[str]) -> bytes:
        name = match["repo"] if match["kind"] == "models" else f"datasets/{match['repo']}"
        repository = self._repository(name, match["revision"])
        if match["what"] == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                for path, content in repository.files.items()
            ]
            return json.dumps(entries).encode()
        siblings = [{"rfilename": path} for path in repository.files]
        return json.dumps({"id": match["repo"], "sha": repository.commit, "siblings": siblings}).encode()

    def _send_file(self, match: re.Match[str], body: bool) -> None:
        repository = self._repository((match["kind"] or "") + match["repo"], match["revision"])
        commit = {"X-Repo-Commit": repository.commit}
        if match["path"] not in repository.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit}, body)
            return
        content = repository.files[match["path"]]
        headers = {"ETag": f'"{_oid(content)}"', **commit, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], headers, body)
        else:
            self._send(200, content, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def on_this_machine(cache: Path) -> Iterator[Hub]:
    """Serve a hub that the real client in this process believes to be the only one, with nothing in its `cache` yet."""
    from huggingface_hub import close_session, constants

    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its part in Rust knows of no other Hub
        patch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its tries, as we do
        patch.delenv("HF_TOKEN", raising=False)
        try:
            yield hub
        finally:
            close_session()
