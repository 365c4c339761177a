"""An object store on this machine: moto's S3 over HTTP, asked by the real clients; and processes that die in it.

with serving() as buckets:
    uri = buckets.new()        # s3://..., empty
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fsspec
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Died(Exception):
    """The process has ended. No BaseException: the client asks in a thread of its own, which would lose that."""


@dataclass
class Buckets:
    """What is served."""

    url: str
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new(self) -> str:
        """The URI of a new bucket."""
        uri = f"s3://bucket-{next(self.numbers)}"
        self.files.mkdir(uri)
        return uri

    @cached_property
    def files(self) -> S3FileSystem:
        """A client of its own."""
        found: S3FileSystem = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        return found

    def below(self, uri: str) -> dict[str, bytes]:
        """Every object below `uri` by its path there."""
        prefix = uri.removeprefix("s3://") + "/"
        return {path.removeprefix(prefix): self.files.cat_file(path) for path in self.files.find(uri)}

    def unfinished(self, uri: str) -> list[str]:
        """Keys of the uploads that were begun and neither completed nor aborted."""
        bucket = uri.removeprefix("s3://").split("/")[0]
        return [upload["Key"] for upload in self.files.list_multipart_uploads(bucket)]


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[Buckets]:
    """Serve a store at a free port of that address of this machine; the environment names it."""
    server = ThreadedMotoServer(address, 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    before = dict(os.environ)
    os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL_S3=url, AWS_EC2_METADATA_DISABLED="true")
    try:
        yield Buckets(url)
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


@dataclass
class Death:
    """When a process dies: before its n-th request to the store, which is also after the one before; 0 = never."""

    at: int = 0
    requests: list[str] = field(default_factory=list)
    dead: bool = False

    @contextmanager
    def threatens(self) -> Iterator[Death]:
        """Every client in the block; what is asked after the death never leaves the process."""
        real = S3FileSystem._call_s3

        async def call(files: S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
            if not self.dead:
                self.requests.append(f"{method} {kwargs.get('Key', kwargs.get('Prefix', ''))}")
                self.dead = len(self.requests) == self.at
            if self.dead:
                raise Died
            return await real(files, method, *args, **kwargs)

        S3FileSystem._call_s3 = call
        try:
            yield self
        finally:
            S3FileSystem._call_s3 = real
