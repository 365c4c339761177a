"""A wire that breaks: a TCP proxy on this machine that closes connections in the middle of what a server sends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PIECE = 1 << 14


READ_SECONDS = 0.1
"""What came is to be read before the cut is seen: aiohttp gives nothing of what it holds once a wire is broken."""


@dataclass
class Wire:
    """Cuts the next `cuts` connections over which more than `after` bytes come back, exactly there."""

    port: int = 0
    cuts: int = 0
    after: int = 0
    done: int = 0
    """Connections that were cut."""
    meanwhile: Callable[[], None] = lambda: None
    """Called at each cut, before anybody can notice it."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_cut(self, sent: int) -> bool:
        with self.lock:
            if self.cuts and sent > self.after:
                self.cuts -= 1
                self.done += 1
                return True
            return False


@contextmanager
def to(port: int) -> Iterator[Wire]:
    """A wire to the server at `port`."""
    wire, listener = Wire(), socket.create_server(("127.0.0.1", 0))
    wire.port = listener.getsockname()[1]

    def serve() -> None:
        with suppress(OSError):  # the listener is closed at the end
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                threading.Thread(target=_pass, args=(client, server, None), daemon=True).start()
                threading.Thread(target=_pass, args=(server, client, wire), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield wire
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _pass(source: socket.socket, target: socket.socket, wire: Wire | None) -> None:
    sent = 0
    with suppress(OSError):  # the other direction has closed both
        while piece := source.recv(PIECE):
            sent += len(piece)
            if wire is not None and wire.is_cut(sent):
                wire.meanwhile()
                target.sendall(piece[: len(piece) - (sent - wire.after)])
                time.sleep(READ_SECONDS)
                break
            target.sendall(piece)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    if wire is not None:
        source.close()
        target.close()
