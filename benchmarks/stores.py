"""Large files from an object store and by https: how fast, in how much memory, and whole though the wire breaks.

    python benchmarks/stores.py [--gigabytes 5] [--folder DIR]

A server on this machine makes the bytes as they are asked for, another process fetches them with the trainer's own code
onto the disk. Memory is the kernel's peak of that process. A short file beside the long one shows what of it is due to
the size. Writes stores.md, and fails where a digest is wrong or memory grows with the file.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from multiprocessing import Pipe, Process, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("trainer-image", "operator", "tests")]

import cutting  # noqa: E402
import stores  # noqa: E402
import web  # noqa: E402

PAGE = ROOT / "benchmarks" / "stores.md"
BLOCK = 1 << 20
SHORT = 50_000_000
CUTS = 10
GROWTH = 32 * 2**20
"""Bytes of memory by which the long file may exceed the short one."""


def blocks(start: int, size: int) -> Iterator[bytes]:
    """The made-up file from byte `start` on: blocks that differ by their number."""
    noise = random.Random(0).randbytes(BLOCK - 8)
    for number in range(start // BLOCK, -(-size // BLOCK)):
        block = number.to_bytes(8, "big") + noise
        first = max(start - number * BLOCK, 0)
        yield block[first : min(BLOCK, size - number * BLOCK)]


class Handler(BaseHTTPRequestHandler):
    """GET /bucket/<bytes> gives a file of that size."""

    def do_GET(self) -> None:
        size = int(self.path.rsplit("/", 1)[1])
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{size}"')
        self.send_header("Last-Modified", "Mon, 05 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(size - start))
        self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        for block in blocks(start, size):
            self.wfile.write(block)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """A client whose wire was cut."""


def serve(tls: bool, told: Connection) -> None:
    """Serve until the process is ended; tells the port and, with TLS, the authority."""
    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = web.server_context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    told.send((server.server_port, web.authority()[0] if tls else ""))
    server.serve_forever()


def fetch(scheme: str, port: int, authority: str, size: int, folder: str, told: Connection) -> None:
    """Fetch a file and tell (seconds, peak bytes, digest)."""
    import os
    import ssl

    from finetune_trainer.data.https import Web
    from finetune_trainer.download import download, fetch_object
    from finetune_trainer.files import sha256_of

    path = Path(folder) / "rows"
    os.environ.update(stores.S3.environment(port))
    begun = time.monotonic()
    if scheme == "s3":
        fetch_object(f"s3://bucket/{size}", path)
    else:
        site = Web(("localhost",), lambda _address: True, ssl.create_default_context(cadata=authority))
        download(partial(site.open, f"https://localhost:{port}/bucket/{size}"), path)
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told.send((seconds, peak, sha256_of(path)))
    path.unlink()


@contextmanager
def server(tls: bool) -> Iterator[tuple[int, str]]:
    ours, theirs = Pipe()
    process = Process(target=serve, args=(tls, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def measured(scheme: str, size: int, folder: str, cuts: int = 0) -> tuple[float, int, bool]:
    """(seconds, peak bytes, whether it came as it was made)."""
    digest = hashlib.sha256()
    for block in blocks(0, size):
        digest.update(block)
    with server(scheme == "https") as (port, authority), cutting.to(port) as wire:
        wire.cuts, wire.after = cuts, size // (cuts + 2)
        ours, theirs = Pipe()
        process = Process(target=fetch, args=(scheme, wire.port if cuts else port, authority, size, folder, theirs))
        process.start()
        theirs.close()
        seconds, peak, found = ours.recv()
        process.join()
        return seconds, peak, found == digest.hexdigest() and wire.done == cuts


def main() -> None:
    parser = argparse.ArgumentParser(description="large files from an object store and by https")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, help="where the files are written; absent = a temporary folder")
    given = parser.parse_args()
    size = int(given.gigabytes * 1e9)
    rows, faults = [], []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for scheme in ("s3", "https"):
            _, least, _ = measured(scheme, SHORT, folder)
            rows.append(f"| {scheme} | {SHORT / 1e9:.2f} GB | 0 | | | {least / 2**20:.0f} MiB |")
            for cuts in (0, CUTS):
                seconds, peak, same = measured(scheme, size, folder, cuts)
                rate = f"{seconds:.1f} s | {size / seconds / 1e6:.0f} MB/s"
                rows.append(f"| {scheme} | {size / 1e9:.2f} GB | {cuts} | {rate} | {peak / 2**20:.0f} MiB |")
                faults += [] if same else [f"{scheme}: the file is not what was made"]
                faults += [] if peak - least < GROWTH else [f"{scheme}: memory grows with the file"]
                print(rows[-1], flush=True)
    PAGE.write_text(page(rows, faults))
    raise SystemExit("\n".join(faults) or None)


def page(rows: list[str], faults: list[str]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("s3fs", "aiobotocore", "httpcore2"))
    return "\n".join(
        [
            "# Large files from an object store and by https",
            "",
            f"{date.today()}; Python {platform.python_version()}, {versions}; server and client on the same"
            " two shared cores, with a proxy",
            "in between that cuts. After each cut the client waits a second. Written by `make bench-stores`.",
            "",
            "| from | file | cuts | time | rate | peak memory |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            *(faults or ["Every digest was right."]),
            "",
        ]
    )


if __name__ == "__main__":
    set_start_method("spawn")
    main()
