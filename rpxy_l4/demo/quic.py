"""HTTP/3 over QUIC for the demo, target and client. Importing it needs ``aioquic``, the extra ``demo``."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated, QuicEvent

from rpxy_l4.demo.scene import SITE

_TIMEOUT: Final = 5.0


class _Page(QuicConnectionProtocol):
    """Answers every request with the same page."""

    text = b""
    _http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        if self._http is None:
            return
        for http_event in self._http.handle_event(event):
            if isinstance(http_event, HeadersReceived):
                headers = [(b":status", b"200"), (b"content-type", b"text/plain")]
                self._http.send_headers(http_event.stream_id, headers)
                self._http.send_data(http_event.stream_id, self.text, end_stream=True)
                self.transmit()


async def serve(sock: socket.socket, certificate: Path, key: Path, text: bytes) -> None:
    """Serve a page on a bound UDP socket, which is the loop's then, until the loop ends."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificate, key)

    def create_protocol(connection: QuicConnection, **_: object) -> _Page:
        page = _Page(connection)
        page.text = text
        return page

    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(
        lambda: QuicServer(configuration=configuration, create_protocol=create_protocol), sock=sock
    )


class _Get(QuicConnectionProtocol):
    """One GET request."""

    def __init__(self, connection: QuicConnection) -> None:
        super().__init__(connection)
        self._http = H3Connection(connection)
        self._status = b""
        self._body = b""
        self.answer: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

    def get(self, authority: str, path: str) -> None:
        stream = self._quic.get_next_available_stream_id()
        headers = {b":method": b"GET", b":scheme": b"https", b":authority": authority.encode(), b":path": path.encode()}
        self._http.send_headers(stream, list(headers.items()), end_stream=True)
        self.transmit()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated) and not self.answer.done():
            self.answer.set_exception(ConnectionError(event.reason_phrase))
        for http_event in self._http.handle_event(event):
            if isinstance(http_event, HeadersReceived):
                self._status = dict(http_event.headers)[b":status"]
            if isinstance(http_event, DataReceived):
                self._body += http_event.data
                if http_event.stream_ended and not self.answer.done():
                    self.answer.set_result((self._status.decode(), self._body.decode()))


def get(sock: socket.socket, certificate: Path) -> tuple[str, str]:
    """Ask whom a UDP socket is connected to for the page of ``SITE``; return status and body.

    The socket stays the caller's. Raises TimeoutError when there is no answer, ConnectionError when the connection
    fails, for example because the certificate does not verify.
    """
    with socket.socket(fileno=socket.dup(sock.fileno())) as copy:
        return asyncio.run(_get(copy, certificate))


async def _get(sock: socket.socket, certificate: Path) -> tuple[str, str]:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=SITE)
    configuration.load_verify_locations(str(certificate))
    sock.setblocking(False)
    address = sock.getpeername()
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(
        lambda: _Get(QuicConnection(configuration=configuration)), sock=sock
    )
    try:
        async with asyncio.timeout(_TIMEOUT):
            client.connect(address)
            await client.wait_connected()
            client.get(SITE, "/")
            return await client.answer
    finally:
        client.close()  # sends at once; the closing period is not waited for
        transport.close()
