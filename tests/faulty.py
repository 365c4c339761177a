"""A proxy before a real API server that does wrong what a test asks for: answers, silence, delays, broken connections.

It speaks TLS with the API server's own certificate, so that the operator cannot tell it apart, and notes each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from apiserver import ControlPlane

HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}
HTTP_GONE, HTTP_UNAUTHORIZED = 410, 401


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    at: float
    """time.monotonic()"""
    method: str
    path: str
    query: dict[str, str]
    token: str

    @property
    def watch(self) -> bool:
        """Whether it is a watch."""
        return "watch" in self.query

    @property
    def goes_on(self) -> bool:
        """Whether it asks for a further page of a list."""
        return "continue" in self.query


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a request; all fields empty = it is passed on."""

    status: int = 0
    """Answered in the API server's place."""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before it is passed on."""
    reset: bool = False
    """The connection is broken off before an answer."""
    reset_after: bool = False
    """The same, after the API server has done what was asked."""
    event: str = ""
    """A watch gets this one line, and ends."""
    page: int = 0
    """A list gets pages of this size, whatever it asked for."""


NONE = Fault()
Rule = Callable[[Asked], Fault]


def well(_: Asked) -> Fault:
    """No fault."""
    return NONE


class FaultyProxy:
    """Listens on loopback, in a thread of its own, until `stop`."""

    def __init__(self, plane: ControlPlane) -> None:
        self.rule: Rule = well
        self.asked: list[Asked] = []
        self.token: str | None = None
        """Where set, the one that the API server's bearer must show; any other is unauthorized."""
        self._plane = plane
        self._watches: dict[int, web.Request] = {}
        self._stalled: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._started, self._over = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self.port = 0

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        """End."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        self._loop.close()

    @contextlib.contextmanager
    def doing(self, rule: Rule) -> Iterator[None]:
        """Do wrong as `rule` says, for a while."""
        self.rule = rule
        try:
            yield
        finally:
            self.rule = well

    def drop_watches(self) -> int:
        """Break every watch off; returns how many there were."""
        dropped = list(self._watches.values())
        self._loop.call_soon_threadsafe(lambda: [_abort(request) for request in dropped])
        return len(dropped)

    def stall_watches(self) -> int:
        """No further byte comes from the watches that are open now; their connections stay."""
        self._stalled |= self._watches.keys()
        return len(self._stalled)

    def since(self, moment: float) -> list[Asked]:
        """What was asked after `moment`."""
        return [asked for asked in self.asked if asked.at >= moment]

    async def _serve(self) -> None:
        pki = self._plane.folder / "pki"
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
        upstream = ssl.create_default_context(cafile=str(pki / "apiserver.crt"))
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=upstream, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        ) as self._session:
            application = web.Application(client_max_size=2**24)
            application.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server).start()
            self.port = runner.addresses[0][1]
            self._started.set()
            await self._over.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").rpartition(" ")[2]
        asked = Asked(time.monotonic(), request.method, request.path, dict(request.query), token)
        self.asked.append(asked)
        fault = self.rule(asked)
        if self.token is not None and token != self.token:
            fault = Fault(status=HTTP_UNAUTHORIZED)
        await asyncio.sleep(fault.delay)
        if fault.reset:
            _abort(request)
            return web.Response()
        if fault.status:
            return web.json_response(_status(fault.status), status=fault.status, headers=fault.headers)
        if fault.event and asked.watch:
            return web.Response(text=fault.event + "\n", content_type="application/json")
        return await self._passed_on(request, asked, fault)

    async def _passed_on(self, request: web.Request, asked: Asked, fault: Fault) -> web.StreamResponse:
        path = re.sub(r"\blimit=\d+", f"limit={fault.page}", request.raw_path) if fault.page else request.raw_path
        url = f"https://127.0.0.1:{self._plane.port}{path}"
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=await request.read() or None
            ) as answer:
                if fault.reset_after:
                    await answer.read()
                    _abort(request)
                    return web.Response()
                return await self._streamed(request, asked, answer)
        except aiohttp.ClientError:  # the API server is away: so are we
            _abort(request)
            return web.Response()

    async def _streamed(self, request: web.Request, asked: Asked, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        if asked.watch:
            self._watches[id(request)] = request
        try:
            async for chunk in answer.content.iter_any():
                if id(request) not in self._stalled:
                    await response.write(chunk)
            if id(request) in self._stalled:
                await asyncio.Event().wait()
            await response.write_eof()
        finally:
            self._watches.pop(id(request), None)
            self._stalled.discard(id(request))
        return response


@contextlib.contextmanager
def faulty_proxy(plane: ControlPlane) -> Iterator[FaultyProxy]:
    """One that runs."""
    proxy = FaultyProxy(plane)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _status(code: int) -> dict[str, object]:
    reasons = {401: "Unauthorized", 403: "Forbidden", 409: "Conflict", 410: "Expired", 429: "TooManyRequests"}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reasons.get(code, "InternalError"),
        "message": f"injected {code}",
    }
