"""Object stores on this machine. S3 is moto's server; of Google's and Azure's, which have none in Python, it is the
part of the HTTP interface with which their real clients read and list.

    with s3() as store:
        store.put("bucket", "data/train.jsonl", b"...")
        ...  # s3://bucket/data/train.jsonl, with the environment of store.environment()
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from loopback import running

KEY = "bW9vbg=="


@dataclass
class S3:
    """A store that speaks S3."""

    port: int
    buckets: set[str] = field(default_factory=set)

    @staticmethod
    def environment(port: int) -> dict[str, str]:
        """What its client reads, where it is reached at `port`."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Write an object; the bucket is made if it is missing."""
        if bucket not in self.buckets:
            self._client.create_bucket(Bucket=bucket)
            self.buckets.add(bucket)
        self._client.put_object(Bucket=bucket, Key=key, Body=content)

    @cached_property
    def _client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="me",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )


@contextmanager
def s3() -> Iterator[S3]:
    """Serve S3 on a free port."""
    from moto.moto_api._internal.models import moto_api_backend
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    store = S3(server.get_host_and_port()[1])
    try:
        yield store
    finally:
        store._client.close()
        server.stop()
        moto_api_backend.reset()


@dataclass
class Blobs:
    """What Google's and Azure's stand-ins serve: (bucket, key) to (content, which writing of it)."""

    port: int = 0
    objects: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict)
    writes: int = 0
    denied: bool = False

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self.writes += 1
        self.objects[bucket, key] = (content, self.writes)

    def listed(self, bucket: str, prefix: str) -> list[tuple[str, bytes, int]]:
        found = sorted((key, *value) for (owner, key), value in self.objects.items() if owner == bucket)
        return [item for item in found if item[0].startswith(prefix)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    blobs: Blobs

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.blobs.denied:
            self._send(403, b"", {})
        else:
            self._answer(url.path, query)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, path: str, query: dict[str, str]) -> None:
        self._send(404, b"", {})

    def _range(self, content: bytes, header: str) -> tuple[int, bytes, dict[str, str]]:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get(header, ""))
        if not wanted or not content:
            return (416 if wanted else 200), (b"" if wanted else content), {}
        start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        return 206, content[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(content)}"}

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """A client whose wire was cut is no error here."""


class _Google(_Handler):
    def _answer(self, path: str, query: dict[str, str]) -> None:
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/?", path):
            self._list(match[1], query)
        elif match := re.fullmatch(r"(/download)?/storage/v1/b/([^/]+)/o/(.+)", path):
            self._object(match[2], unquote(match[3]), query, described=match[1] is None)
        else:
            self._send(404, b"", {})

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        items = [self._description(bucket, *found) for found in self.blobs.listed(bucket, query.get("prefix", ""))]
        self._send(200, json.dumps({"items": items}).encode(), {"Content-Type": "application/json"})

    @staticmethod
    def _description(bucket: str, key: str, content: bytes, generation: int) -> dict[str, Any]:
        return {"name": key, "bucket": bucket, "size": str(len(content)), "generation": str(generation)}

    def _object(self, bucket: str, key: str, query: dict[str, str], *, described: bool) -> None:
        content, generation = self.blobs.objects.get((bucket, key), (b"", 0))
        if not generation or query.get("generation", str(generation)) != str(generation):
            self._send(404, b"", {})
        elif described:
            body = json.dumps(self._description(bucket, key, content, generation)).encode()
            self._send(200, body, {"Content-Type": "application/json"})
        else:
            status, part, headers = self._range(content, "Range")
            self._send(status, part, {**headers, "X-Goog-Generation": str(generation)})


class _Azure(_Handler):
    def _answer(self, path: str, query: dict[str, str]) -> None:
        _, _, container, *rest = unquote(path).split("/")
        key = "/".join(rest)
        if query.get("comp") == "list":
            self._list(container, query)
        elif (container, key) not in self.blobs.objects:
            self._send(404, b"", {"x-ms-error-code": "BlobNotFound"})
        else:
            self._blob(*self.blobs.objects[container, key])

    def _list(self, container: str, query: dict[str, str]) -> None:
        blobs = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Content-Length>{len(content)}</Content-Length>"
            f"<Etag>0x{written:X}</Etag><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for key, content, written in self.blobs.listed(container, query.get("prefix", ""))
        )
        results = f'<EnumerationResults ContainerName="{container}"><Blobs>{blobs}</Blobs></EnumerationResults>'
        body = f'<?xml version="1.0" encoding="utf-8"?>{results}'
        self._send(200, body.encode(), {"Content-Type": "application/xml"})

    def _blob(self, content: bytes, written: int) -> None:
        tag = f'"0x{written:X}"'
        if self.headers.get("If-Match", tag) != tag:
            self._send(412, b"", {"x-ms-error-code": "ConditionNotMet"})
            return
        status, part, headers = self._range(content, "x-ms-range")
        code = {"x-ms-error-code": "InvalidRange"} if status == 416 else {}
        kind = {"ETag": tag, "x-ms-blob-type": "BlockBlob", "Last-Modified": "Mon, 05 Jan 2026 00:00:00 GMT"}
        kind["Content-MD5" if status == 200 else "x-ms-blob-content-md5"] = md5(content).hexdigest()
        self._send(status, part, {**headers, **code, **kind})


@contextmanager
def _serving(handler: type[_Handler]) -> Iterator[Blobs]:
    blobs = Blobs()
    server = _Server(("127.0.0.1", 0), type("Handler", (handler,), {"blobs": blobs}))
    blobs.port = server.server_port
    with running(server):
        yield blobs


@contextmanager
def google() -> Iterator[Blobs]:
    """Serve gs:// on a free port."""
    with _serving(_Google) as blobs:
        yield blobs


@contextmanager
def azure() -> Iterator[Blobs]:
    """Serve az:// on a free port."""
    with _serving(_Azure) as blobs:
        yield blobs


def google_environment(port: int) -> dict[str, str]:
    """What Google's client reads."""
    return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}


def azure_environment(port: int) -> dict[str, str]:
    """What Azure's client reads."""
    where = f"BlobEndpoint=http://127.0.0.1:{port}/me"
    return {
        "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;AccountName=me;AccountKey={KEY};{where};"
    }
