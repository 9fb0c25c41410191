"""Every kind of traffic at once, through one proxy, and what it adds up to."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from tests.chaos.world import FAR, PROXY, WEB, Scene
from tests.support.traffic.download import Download
from tests.support.traffic.programs import Iperf, Ping, SshSession
from tests.support.traffic.source import Losses, Repeating, Source
from tests.support.traffic.tcp import KeptHttp, NewHttp, NewTcp, NewTls
from tests.support.traffic.udp import Dns

PATIENCE_OF_DNS: Final = 2.0


class Traffic:
    """All sources; entering starts them, and returns when each has begun."""

    def __init__(self, scene: Scene, *, patience: float = PATIENCE_OF_DNS, kept_by: str = PROXY) -> None:
        """``patience``: how long a query over UDP may take. ``kept_by``: the address for TCP sessions that last."""
        self._world = scene.world
        self._port = scene.port
        to, kept = (PROXY, scene.port), (kept_by, scene.port)
        self.download = Download(to, WEB)
        self.ping = Ping(FAR, 0.05)
        self.iperf = Iperf(FAR)
        self.http = [KeptHttp(kept, number) for number in range(8)]
        self.tcp: list[NewTcp | NewHttp]
        self.tcp = [(NewHttp if scene.tcp_by_kernel else NewTcp)(to, 1000 * number) for number in range(2)]
        tls = [NewTls(to, 1000 * number, scene.world.tls) for number in range(2)]
        old = [Dns(to, patience, kept=True) for _ in range(4)]
        new = [Dns(to, patience, kept=False) for _ in range(2)]
        # Those that last have to begin first: a port that one of the others used a moment ago has a flow already.
        self._lasting: list[Source] = [self.download, self.ping, self.iperf]
        kept_short: list[Source] = [
            Repeating("requests on kept connections", self.http, 0.2, things="kept connections"),
            Repeating("DNS queries on kept flows", old, 0.1, is_udp=True),
        ]
        # Who needs something new for each thing that they do.
        self._newcomers: list[Source] = [
            Repeating("new TCP connections", self.tcp, 0.05),
            Repeating("DNS queries on new flows", new, 0.05, is_udp=True),
        ]
        if scene.tcp_by_kernel:
            # Before the others: the kernel path takes connections of clients that user space has seen.
            self._known = [NewHttp(each, 0) for each in {to, kept}]
        else:
            self._known = []
            self._lasting.insert(0, SshSession(kept, scene.world.ssh))
            self._newcomers.insert(1, Repeating("new TLS connections", tls, 0.1))
        self._short = kept_short + self._newcomers
        self._open = self._lasting + kept_short

    def __enter__(self) -> Self:
        self._world.lead_tunnel_through(self._port)
        with self._world.among_clients():
            for client in self._known:
                client.act()
            for sources in (self._lasting, self._short):
                for source in sources:
                    source.start()
                for source in sources:
                    source.wait_for_first()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.stop()

    def go_on(self, more: int = 3) -> None:
        """Wait until each client has done a few things more."""
        _go_on((*self._lasting, *self._short), more)

    def go_on_with_what_is_open(self, more: int = 3) -> None:
        """The same, only for those who need nothing new."""
        _go_on(self._open, more)

    def lost_by_newcomers(self) -> dict[str, int]:
        """How much those have lost so far who need something new each time, by the names of the sources."""
        return {source.name: source.lost for source in self._newcomers}

    def stop(self) -> list[Losses]:
        """End all clients in order, and return what each source did and lost."""
        return [source.stop() for source in (*self._lasting, *self._short)]


def _go_on(sources: Iterable[Source], more: int) -> None:
    for wait in [source.mark() for source in sources]:
        wait(more)
