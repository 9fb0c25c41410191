"""An HTTP/3 server and client, on aioquic."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import SessionTicket

from tests.support.ports import free_port
from tests.support.tls_files import TlsFiles
from tests.support.waiting import PATIENCE


class Http3Protocol(QuicConnectionProtocol):
    """One connection of a server."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        if self._http is not None:
            for http_event in self._http.handle_event(event):
                if isinstance(http_event, HeadersReceived) and http_event.stream_ended:
                    self.answer(self._http, http_event)

    def answer(self, http: H3Connection, request: HeadersReceived) -> None:
        path = dict(request.headers)[b":path"].decode()
        size = int(path.removeprefix("/bytes/")) if path.startswith("/bytes/") else 0
        body = b"x" * size if size else f"{self.name} {path}".encode()
        http.send_headers(request.stream_id, [(b":status", b"200")])
        http.send_data(request.stream_id, body, end_stream=True)
        self.transmit()


class _Tickets:
    """Session tickets by label: with them a client may send 0-RTT data."""

    def __init__(self) -> None:
        self._tickets: dict[bytes, SessionTicket] = {}

    def add(self, ticket: SessionTicket) -> None:
        self._tickets[ticket.ticket] = ticket

    def pop(self, label: bytes) -> SessionTicket | None:
        return self._tickets.pop(label, None)


class Http3Target:
    """Serves HTTP/3 from a thread: its name and the path, or ``/bytes/N``."""

    def __init__(
        self,
        name: str,
        files: TlsFiles,
        *,
        retry: bool = False,
        alpn: Sequence[str] = H3_ALPN,
        protocol: type[Http3Protocol] = Http3Protocol,
        host: str = "127.0.0.1",
    ) -> None:
        self.port = free_port()
        self._host = host
        self.text = f"{host}:{self.port}"
        self._configuration = QuicConfiguration(is_client=False, alpn_protocols=list(alpn))
        self._configuration.load_cert_chain(files.certificate, files.key)
        self._protocol = type("Named", (protocol,), {"name": name})
        self._retry = retry
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._server: QuicServer | None = None

    def _run(self) -> None:
        tickets = _Tickets()
        self._server = self._loop.run_until_complete(
            serve(
                self._host,
                self.port,
                configuration=self._configuration,
                create_protocol=self._protocol,
                session_ticket_fetcher=tickets.pop,
                session_ticket_handler=tickets.add,
                retry=self._retry,
            )
        )
        self._loop.call_soon(self._ready.set)
        self._loop.run_forever()
        self._loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        def end() -> None:
            if self._server is not None:
                self._server.close()
            # One more turn of the loop, in which the transports close their sockets.
            self._loop.call_soon(self._loop.call_soon, self._loop.stop)

        self._loop.call_soon_threadsafe(end)
        self._thread.join(PATIENCE)


class _Client(QuicConnectionProtocol):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self._bodies: dict[int, bytearray] = {}
        self._done: dict[int, asyncio.Future[bytes]] = {}

    async def get(self, authority: str, path: str) -> bytes:
        stream = self._quic.get_next_available_stream_id()
        self._bodies[stream] = bytearray()
        self._done[stream] = asyncio.get_running_loop().create_future()
        headers = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", path.encode())]
        self.http.send_headers(stream, [*headers, (b":authority", authority.encode())], end_stream=True)
        self.transmit()
        return await asyncio.wait_for(self._done[stream], PATIENCE)

    def quic_event_received(self, event: QuicEvent) -> None:
        for http_event in self.http.handle_event(event):
            self._http_event(http_event)

    def _http_event(self, event: H3Event) -> None:
        if isinstance(event, DataReceived):
            self._bodies[event.stream_id] += event.data
        if isinstance(event, DataReceived | HeadersReceived) and event.stream_ended:
            self._done[event.stream_id].set_result(bytes(self._bodies[event.stream_id]))


@dataclass(frozen=True)
class Http3Answer:
    """What a client got, and how."""

    bodies: tuple[str, ...]
    version: int
    early_data: bool
    ticket: SessionTicket | None
    """For the next connection to the same server."""


async def http3_get(
    port: int,
    server_name: str | None,
    paths: Sequence[str] = ("/",),
    *,
    alpn: Sequence[str] = H3_ALPN,
    version: QuicProtocolVersion = QuicProtocolVersion.VERSION_1,
    ticket: SessionTicket | None = None,
    host: str = "127.0.0.1",
) -> Http3Answer:
    """Ask for the paths one after another on one connection, without checking the certificate.

    From a port that nobody used lately: another client's flow may still be remembered by the address that it had.
    """
    kept: list[SessionTicket] = []
    configuration = QuicConfiguration(
        alpn_protocols=list(alpn),
        server_name=server_name,
        verify_mode=ssl.CERT_NONE,
        session_ticket=ticket,
        idle_timeout=PATIENCE / 2,
        original_version=version,
        supported_versions=[version],
    )
    async with connect(
        host,
        port,
        configuration=configuration,
        create_protocol=_Client,
        local_port=free_port(),
        session_ticket_handler=kept.append,
        wait_connected=ticket is None,
    ) as protocol:
        client = cast("_Client", protocol)
        bodies = [(await client.get(server_name or "none", path)).decode() for path in paths]
        quic = client._quic
        return Http3Answer(tuple(bodies), quic._version or 0, quic.tls.early_data_accepted, kept[-1] if kept else None)
