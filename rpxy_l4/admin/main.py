"""The admin process: one event loop for the supervisor's words and for names, threads for HTTP."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import platform
import signal
import socket
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

import uvloop
from prometheus_client import CollectorRegistry
from setproctitle import setproctitle

from rpxy_l4 import logs
from rpxy_l4.admin.collector import ProxyCollector
from rpxy_l4.admin.http import AdminServer
from rpxy_l4.admin.pages import Pages
from rpxy_l4.admin.proc import Reading, WorkerProcesses
from rpxy_l4.admin.resolver import Resolver
from rpxy_l4.control import Addresses, Message, ReopenLogs, Resolved, Status
from rpxy_l4.metrics.layout import Cell
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.channel import Channel, DescriptorsLostError
from rpxy_l4.snapshot import Snapshot
from rpxy_l4.version import VERSION

_LOG: Final = logging.getLogger("rpxy_l4.admin")

# A terminal and a service manager signal the whole group. What a signal means is the supervisor's to decide, and it
# ends this process by closing the channel.
_IGNORED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
_SEND_AGAIN: Final = 0.5
_BEAT: Final = 1.0


def run(channel: Channel, slab: Slab, workers: int, listening: socket.socket | None) -> int:
    """Be the admin process until the supervisor is gone or closes its end. Returns the exit status.

    For a freshly forked child without threads; it takes ownership of ``channel`` and ``listening``. The first
    ``workers`` rows of the slab are the workers', the next one is for this process's heartbeat. Descriptors that come
    with a ``Status`` are a listening socket to use in place of the current one; a configuration without an admin
    address closes it. Each configuration that differs from the one before is answered by at least one ``Addresses``,
    within two seconds. The logs of this process must have been set up; SIGABRT writes the stack of every thread to the
    log of events before the process dies of it.
    """
    # The supervisor's own handlers came along with the fork.
    signal.set_wakeup_fd(-1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable(logs.current().events.descriptor)
    setproctitle("rpxy-l4: admin")
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(_Admin(loop, channel, slab, workers).serve(listening))
    finally:
        loop.close()
    return 0


class _Admin:
    """What the process holds. Request threads only read ``status``, which is replaced whole."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel, slab: Slab, workers: int) -> None:
        self.status: Status | None = None
        self._loop = loop
        self._channel = channel
        self._row = slab.row(workers)
        self._ended = loop.create_future()
        self._server: AdminServer | None = None
        self._resolver = Resolver(self._send)
        self._processes = WorkerProcesses()
        self._unsent: Resolved | None = None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(
            ProxyCollector(
                rows=[slab.row(number) for number in range(workers)],
                status=lambda: self.status,
                processes=self._read_processes,
                lookups=self._resolver.lookups,
                expiries=self._resolver.expiries,
                build={
                    "version": VERSION,
                    "python": platform.python_version(),
                    "uvloop": version("uvloop"),
                    "kernel": platform.release(),
                },
            )
        )
        self._pages = Pages(registry, lambda: self.status)

    async def serve(self, listening: socket.socket | None) -> None:
        """Work until the end of the channel."""
        self._beat()
        # The supervisor has said how things are while this process was loading: who asks first hears that, too.
        self._read()
        is_wanted = self.status is None or self.status.newest.admin is not None
        if listening is not None and is_wanted and self._server is None:
            self._listen(listening)
        elif listening is not None:  # there is another one by now, or none is wanted
            listening.close()
        self._loop.add_reader(self._channel.fileno(), self._read)
        await self._ended
        # Threads need no farewell: they hold nothing, and the process ends.
        self._loop.remove_reader(self._channel.fileno())
        self._resolver.close()

    def _beat(self) -> None:
        self._row[Cell.HEARTBEAT] = time.monotonic_ns()
        self._loop.call_later(_BEAT, self._beat)

    def _read_processes(self, pids: Mapping[int, int | None]) -> Mapping[int, Reading]:
        status = self.status
        return self._processes.read(pids, {} if status is None else status.worker_cpu)

    def _read(self) -> None:
        while True:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except DescriptorsLostError:
                _LOG.error("out of descriptors: a message from the supervisor could not be taken")
                continue
            if received is None:
                if not self._ended.done():
                    self._ended.set_result(None)
                return
            self._obey(*received)

    def _obey(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Status):
            before, self.status = self.status, message
            if descriptors:
                self._listen(socket.socket(fileno=descriptors.pop(0)))
            if message.newest.admin is None:
                self._stop_listening()
            if before is None or before.newest != message.newest:
                self._set_names(message.newest)
        elif isinstance(message, ReopenLogs):
            logs.reopen()
        else:
            _LOG.error("not for the admin process: %s", type(message).__name__)
        for descriptor in descriptors:
            os.close(descriptor)

    def _set_names(self, snapshot: Snapshot) -> None:
        self._resolver.set_names(snapshot.names, snapshot.dns_min_ttl, snapshot.dns_max_ttl)

    def _listen(self, listening: socket.socket) -> None:
        server = AdminServer(listening, self._pages)
        server.start()
        self._stop_listening()
        self._server = server

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._loop.run_in_executor(None, self._server.stop)
            self._server = None

    def _send(self, addresses: Resolved) -> None:
        waiting = self._unsent is not None
        self._unsent = addresses
        if not waiting:
            self._flush()

    def _flush(self) -> None:
        if self._unsent is None or self._channel.send(Addresses(self._unsent)):
            self._unsent = None
        else:  # the supervisor is busy, or gone: then the channel ends as well
            self._loop.call_later(_SEND_AGAIN, self._flush)
