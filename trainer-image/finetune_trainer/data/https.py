"""Files by https://, from hosts that the runtime lists and from nowhere else: a job must not reach through its pods
what its user cannot reach.

A name is resolved once for each connection, the addresses are judged, and the connection goes to one that was: so a
name that resolves otherwise a moment later leads nowhere. The same holds for every redirect. No proxy of the
environment is used, because it would resolve the name itself.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from socket import IPPROTO_TCP, getaddrinfo
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore2
from httpx2 import create_ssl_context

from finetune_trainer.trouble import Opened, StoreFailed, Trouble

MAX_BYTES = 50 * 2**30
MAX_REDIRECTS = 3
TIMEOUTS = {"connect": 10.0, "read": 60.0, "write": 10.0, "pool": 10.0}
"""Seconds: a server that is silent for longer counts as cut off."""
NAT64, LOCAL_NAT64 = IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48")
"""What stands in its last four bytes is where such an address leads."""
REDIRECTS = (301, 302, 303, 307, 308)
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
ELSEWHERE = "put the file on a claim or into an object store"
TOO_LARGE = f"it has more than {MAX_BYTES // 2**30} GiB: {ELSEWHERE}"

Judge = Callable[[str], bool]
Headers = dict[bytes | str, bytes | str]


class NotAllowed(Exception):
    """A file that may not be read this way; the text says why and what to do, in words for the user."""


def is_public(address: str) -> bool:
    """Whether `address` belongs to the Internet: neither private, loopback, link-local, multicast nor reserved."""
    found = ip_address(address.partition("%")[0])
    inside = _embedded(found)
    local = found.is_multicast or (isinstance(found, IPv6Address) and found.is_site_local)
    if isinstance(found, IPv6Address) and (found in LOCAL_NAT64 or (found.is_reserved and inside is None)):
        return False
    return found.is_global and not local and (inside is None or is_public(str(inside)))


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The address of version 4 that one of version 6 stands for."""
    if isinstance(address, IPv4Address):
        return None
    if address in NAT64:
        return IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


@dataclass(frozen=True)
class Web:
    """Where files may come from."""

    hosts: tuple[str, ...]
    """Globs of host names."""
    may_reach: Judge = is_public
    """Judges an address. Another one is for tests alone, which have none that is public."""
    trusted: ssl.SSLContext | None = None
    """Whose certificates are believed; None = those of the system, or of SSL_CERT_FILE."""

    @contextmanager
    def open(self, url: str, start: int, tag: str | None) -> Iterator[Opened]:
        """The file at `url` from byte `start` on, or the whole of it where that cannot be or it changed.

        Raises:
            NotAllowed; StoreFailed: both also at the end of the block, for what befell its chunks.
        """
        headers: Headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if start and tag:
            headers |= {"Range": f"bytes={start}-", "If-Range": tag}
        trusted = self.trusted or create_ssl_context()
        with (
            _asking(),
            httpcore2.ConnectionPool(trusted, network_backend=_Judged(self.may_reach)) as pool,
            self._answer(pool, url, headers, MAX_REDIRECTS) as answer,
        ):
            yield _opened(answer)

    @contextmanager
    def _answer(
        self, pool: httpcore2.ConnectionPool, url: str, headers: Headers, redirects: int
    ) -> Iterator[httpcore2.Response]:
        """The answer at the end of at most that many redirects."""
        request = pool.stream("GET", self._admitted(url), headers=headers, extensions={"timeout": TIMEOUTS})
        with request as answer:
            onward = _header(answer, b"location") if answer.status in REDIRECTS else None
            if onward is None:
                yield answer
                return
        if redirects == 0:
            raise NotAllowed(f"it leads on more than {MAX_REDIRECTS} times: {ELSEWHERE}")
        with self._answer(pool, urljoin(url, onward), headers, redirects - 1) as answer:
            yield answer

    def _admitted(self, url: str) -> httpcore2.URL:
        """What to ask for, if its host is listed."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").encode("ascii").decode(), parts.port
        except ValueError:
            raise NotAllowed(f"it leads on to what is no address: {ELSEWHERE}") from None
        if parts.scheme != "https" or parts.username is not None:
            raise NotAllowed(f"it leads on to an address that is not https, or holds credentials: {ELSEWHERE}")
        if not any(fnmatchcase(host, glob.lower()) for glob in self.hosts):
            raise NotAllowed(
                f"no entry of access.httpsHosts in the FineTuneRuntime admits {host}: add it, or {ELSEWHERE}"
            )
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        return httpcore2.URL(scheme="https", host=host, port=port, target=quote(target, safe=PRINTABLE))


NOWHERE, ANYWHERE = Web(()), Web(("*",))
"""Anywhere is for a laptop, where there is nobody on whose behalf a host could be refused."""


class _Judged(httpcore2.SyncBackend):
    """Connects to the address that was judged, and to no other."""

    def __init__(self, may_reach: Judge) -> None:
        self._may_reach = may_reach

    def connect_tcp(self, host: str, port: int, *given: Any, **more: Any) -> httpcore2.NetworkStream:
        """A connection to the first address of `host` that answers; all of them must be admitted."""
        try:
            addresses = [found[4][0] for found in getaddrinfo(host, port, proto=IPPROTO_TCP)]
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} is no known name") from error
        for address in addresses:
            if not self._may_reach(str(address)):
                raise NotAllowed(f"{host} has the address {address}, which is not a public one: {ELSEWHERE}")
        for address in addresses[:-1]:
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return super().connect_tcp(str(address), port, *given, **more)
        return super().connect_tcp(str(addresses[-1]), port, *given, **more)


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
        untrusted = isinstance(error.__context__, ssl.SSLCertVerificationError)
        problem = f"its certificate is not trusted ({error})" if untrusted else type(error).__name__
        raise StoreFailed(Trouble.UNREACHABLE, problem) from error


def _opened(answer: httpcore2.Response) -> Opened:
    if answer.status not in (200, 206):
        raise StoreFailed(*_refusal(answer.status))
    start, length = _start(answer), _header(answer, b"content-length")
    size = start + int(length) if length is not None and length.isdecimal() else None
    if size is not None and size > MAX_BYTES:
        raise NotAllowed(TOO_LARGE)
    tag = _header(answer, b"etag")
    return Opened(start, size, tag if tag and tag.startswith('"') else None, _bounded(answer, start))


def _start(answer: httpcore2.Response) -> int:
    if answer.status == 200:
        return 0
    found = re.match(r"bytes (\d+)-", _header(answer, b"content-range") or "")
    if found is None:
        raise StoreFailed(Trouble.UNREACHABLE, "the server does not say which part it sent")
    return int(found[1])


def _refusal(status: int) -> tuple[Trouble, str]:
    """Who has to act on an answer without the file: the server by itself, on 408, 429 and its own errors."""
    said = f"the server answered {status}"
    if status in (401, 403):
        return Trouble.REFUSED, said
    return (Trouble.UNREACHABLE if status in (408, 429) or status >= 500 else Trouble.NOT_FOUND), said


def _bounded(answer: httpcore2.Response, start: int) -> Iterator[bytes]:
    here = start
    for chunk in answer.iter_stream():
        here += len(chunk)
        if here > MAX_BYTES:
            raise NotAllowed(TOO_LARGE)
        yield chunk


def _header(answer: httpcore2.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in answer.headers if key.lower() == name), None)
