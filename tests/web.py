"""Files by https on this machine: a real TLS server, its own certificate authority, and what servers do in practice."""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loopback import running

HOSTS = ("localhost", "files.example", "other.example")


@dataclass
class Site:
    """What is served, and what was asked."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    """Status codes with which the next requests of a path are answered."""
    ranges: bool = True
    """Whether it goes on in the middle."""
    tags: bool = True
    """Whether it tells one content from another."""
    lengths: bool = True
    """Whether it says how much will come."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range) of each."""

    def url(self, path: str, host: str = "localhost") -> str:
        return f"https://{host}:{self.port}{path}"

    @property
    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=authority()[0])


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.site.requests.append((self.path, wanted))
        if self.site.answers.get(self.path):
            self._head(self.site.answers[self.path].pop(0), {"Content-Length": "0"})
        elif self.path in self.site.redirects:
            self._head(302, {"Location": self.site.redirects[self.path], "Content-Length": "0"})
        elif self.path in self.site.files:
            self._send(self.site.files[self.path], wanted)
        else:
            self._head(404, {"Content-Length": "0"})

    def _send(self, content: bytes, wanted: str | None) -> None:
        tag = f'"{sha256(content).hexdigest()}"'
        headers = {"ETag": tag} if self.site.tags else {}
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if wanted and self.site.ranges and self.headers.get("If-Range") in (tag, None):
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        else:
            start = 0
        if self.site.lengths:
            headers["Content-Length"] = str(len(content) - start)
        self._head(206 if start else 200, headers)
        self.wfile.write(content[start:])

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """A client that does not trust the certificate, or whose wire was cut, is no error here."""


@contextmanager
def serving() -> Iterator[Site]:
    """Serve a site on a free port of this machine."""
    site = Site()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    server.socket = server_context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    site.port = server.server_port
    with running(server):
        yield site


def server_context() -> ssl.SSLContext:
    """A server's side of TLS, with a certificate for HOSTS and 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _, pem = authority()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "server.pem"
        path.write_bytes(pem)
        context.load_cert_chain(path)
    return context


@cache
def authority() -> tuple[str, bytes]:
    """(certificate of the authority, key and certificate of the server), PEM."""
    signer, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    names = [*(x509.DNSName(host) for host in HOSTS), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    root = _certificate("authority", signer, signer, x509.BasicConstraints(ca=True, path_length=None))
    leaf = _certificate("server", own, signer, x509.SubjectAlternativeName(names))
    key = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return root.decode(), key + leaf


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
) -> bytes:
    subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, "authority"))
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(extension, critical=True)
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
