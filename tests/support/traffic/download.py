"""A download over HTTP/3 that goes on until it is told to end, at a limited rate, and is checked to the last byte."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import threading
from dataclasses import dataclass, field
from typing import Any, Final, cast

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent

from tests.support.exactness import Stream
from tests.support.http3 import Http3Protocol
from tests.support.traffic.source import LONGEST, Address, Source, WrongAnswerError
from tests.support.waiting import PATIENCE

_CHUNK: Final = 1000
_INTERVAL: Final = 0.02
_IDLE_SECONDS: Final = 60.0
_KEEP_ALIVE: Final = 0.5
"""Seconds without anything from the target after which the client pings (RFC 9000 10.1.2)."""


@dataclass
class _Order:
    """What a client wants from the target, and what the target has done. Both are in this process."""

    ending: threading.Event = field(default_factory=threading.Event)
    resting: threading.Event = field(default_factory=threading.Event)
    size: int = 0


_orders: dict[str, _Order] = {}


class Endless(Http3Protocol):
    """Target: sends a stream, a little at a time, for as long as the client that asked for it wants."""

    def answer(self, http: H3Connection, request: HeadersReceived) -> None:
        path = dict(request.headers)[b":path"].decode()
        http.send_headers(request.stream_id, [(b":status", b"200")])
        self._send(http, request.stream_id, path)

    def _send(self, http: H3Connection, stream: int, path: str) -> None:
        order = _orders.get(path)
        if order is None:  # the client is gone
            return
        if not order.resting.is_set():
            data = bytes(Stream(stream).piece(order.size % (1 << 22), _CHUNK))
            order.size += len(data)
            ending = order.ending.is_set()
            http.send_data(stream, data, end_stream=ending)
            self.transmit()
            if ending:
                return
        self._loop.call_later(_INTERVAL, self._send, http, stream, path)


class _Downloader(QuicConnectionProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events: asyncio.Queue[DataReceived | ConnectionTerminated] = asyncio.Queue()
        self._http = H3Connection(self._quic)

    def ask(self, authority: str, path: str) -> int:
        stream = self._quic.get_next_available_stream_id()
        headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", path.encode())]
        self._http.send_headers(stream, [*headers, (b":authority", authority.encode())], end_stream=True)
        self.transmit()
        return stream

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.events.put_nowait(event)
        for http_event in self._http.handle_event(event):
            if isinstance(http_event, DataReceived):
                self.events.put_nowait(http_event)


class Download(Source):
    """One connection and one file: it is lost as a whole or not at all."""

    def __init__(self, to: Address, server_name: str) -> None:
        """The target serves :class:`Endless` in this process."""
        super().__init__("pieces of an HTTP/3 download", things="HTTP/3 downloads", is_udp=True)
        self._to = to
        self._server_name = server_name
        self._path = f"/{id(self)}"
        self._order = _orders[self._path] = _Order()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._protocol: _Downloader | None = None

    def _live(self, number: int) -> None:
        try:
            asyncio.run(self._download(number))
        except (OSError, WrongAnswerError) as error:
            self._lose(repr(error), None)
        del _orders[self._path]

    async def _download(self, number: int) -> None:
        configuration = QuicConfiguration(
            alpn_protocols=H3_ALPN,
            server_name=self._server_name,
            verify_mode=ssl.CERT_NONE,
            idle_timeout=_IDLE_SECONDS,
        )
        host, port = self._to
        self._loop = asyncio.get_running_loop()
        async with connect(host, port, configuration=configuration, create_protocol=_Downloader) as connected:
            protocol = self._protocol = cast("_Downloader", connected)
            stream = protocol.ask(self._server_name, self._path)
            got, size = hashlib.sha256(), 0
            while True:
                event = await self._next(protocol)
                if isinstance(event, ConnectionTerminated):
                    raise WrongAnswerError(f"the connection was closed: {event.reason_phrase!r}")
                got.update(event.data)
                size += len(event.data)
                self._count(number)
                if event.stream_ended:
                    break
        whole = hashlib.sha256()
        for position in range(0, self._order.size, _CHUNK):
            whole.update(Stream(stream).piece(position % (1 << 22), _CHUNK))
        if (size, got.digest()) != (self._order.size, whole.digest()):
            raise WrongAnswerError(f"{size} bytes, not the {self._order.size} that were sent")

    async def _next(self, protocol: _Downloader) -> DataReceived | ConnectionTerminated:
        """Wait for what comes next; while nothing does, ask whether the target is still there, as browsers do."""
        async with asyncio.timeout(LONGEST):
            asked: asyncio.Task[None] | None = None
            while True:
                with contextlib.suppress(TimeoutError):
                    return await asyncio.wait_for(protocol.events.get(), _KEEP_ALIVE)
                if not self._order.resting.is_set() and (asked is None or asked.done()):
                    asked = asyncio.create_task(protocol.ping())

    def rest(self) -> None:
        """Let the target send nothing; what is under way still arrives."""
        self._order.resting.set()

    def go_on(self) -> None:
        """Say something as the client, see it acknowledged, and let the target send again."""
        assert self._loop is not None
        assert self._protocol is not None
        asyncio.run_coroutine_threadsafe(self._protocol.ping(), self._loop).result(PATIENCE)
        self._order.resting.clear()

    def _wake(self) -> None:
        self._order.ending.set()
        self._order.resting.clear()
