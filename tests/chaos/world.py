"""The proxy's surroundings: clients, proxy and the far end of a tunnel in network namespaces of their own.

Targets stand on the loopback of the proxy's namespace, in pairs where a reload is to change them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rpxy_l4.kernel.path import why_not
from tests.support.http3 import Http3Target
from tests.support.netns import Namespaces, inside
from tests.support.openssh import sshd
from tests.support.peers import Program
from tests.support.ports import free_port
from tests.support.program import change
from tests.support.proxy import ROOT, Proxy, process_state, process_title
from tests.support.resources import Resources
from tests.support.service_manager import ServiceManager
from tests.support.sockets_of import sockets_of
from tests.support.targets import TcpTarget
from tests.support.tls_files import make_tls_files
from tests.support.traffic.download import Endless
from tests.support.traffic.source import Address
from tests.support.traffic.tcp import answer_http, answer_line, answer_line_over_tls
from tests.support.traffic.udp import dnsmasq
from tests.support.waiting import PATIENCE, eventually
from tests.support.wireguard import tunnel

PROXY: Final = "10.77.1.2"
OTHER: Final = "10.77.1.3"
"""A second address of the proxy's machine, which the proxy listens on if told to."""
CLIENTS: Final = "10.77.1.1"
CROWD: Final = "10.99.0.0/16"
"""Where the clients are who are made up."""
FAR: Final = "10.88.0.1"
"""The far end of the tunnel, from inside."""
WEB: Final = "web.test"
TUNNEL_PORT: Final = 51_820
IPERF_PORT: Final = 5201
"""Where iperf3 listens unless it is told otherwise."""


class World:
    """Namespaces and targets, for any number of proxies one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tls = make_tls_files(folder, WEB)
        self._folder = folder

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._nets = nets = stack.enter_context(Namespaces("clients", "proxy", "far"))
            nets.join("clients", f"{CLIENTS}/24", "proxy", f"{PROXY}/24", f"{OTHER}/24")
            nets.own("clients", CROWD)
            nets.lead("proxy", CROWD, via=CLIENTS)
            nets.join("proxy", "10.77.2.2/24", "far", "10.77.2.1/24")
            with self.at_the_proxy():
                self._start_targets(stack)
            self._dig(stack)
            self._stack = stack.pop_all()
        return self

    def _start_targets(self, stack: contextlib.ExitStack) -> None:
        enter = stack.enter_context
        self.http = [enter(TcpTarget(answer_http)) for _ in range(2)]
        self.lines = [enter(TcpTarget(answer_line)) for _ in range(2)]
        self.web = [enter(TcpTarget(answer_line_over_tls(self.tls))) for _ in range(2)]
        self.quic = enter(Http3Target("download", self.tls, protocol=Endless))
        self.ssh = enter(sshd(self._folder))
        self.dns_port = free_port()
        enter(Program(*dnsmasq(self.dns_port, "127.0.0.1", "127.0.0.2"), udp=self.dns_port))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _dig(self, stack: contextlib.ExitStack) -> None:
        """Set up both ends of the tunnel."""
        mark = os.getpid() % 100_000
        ends = ((self._nets["far"], f"wgf{mark}", FAR), (self._nets["clients"], f"wgc{mark}", "10.88.0.2"))
        self._far, self._near = (
            stack.enter_context(tunnel(netns, name, f"{address}/24", self._folder)) for netns, name, address in ends
        )
        stack.enter_context(Program("iperf3", "--server", "--bind", FAR, tcp=IPERF_PORT, netns=self._nets["far"]))
        self._far.set("listen-port", str(TUNNEL_PORT), "peer", self._near.public_key, "allowed-ips", "10.88.0.2/32")

    def lead_tunnel_through(self, port: int) -> None:
        """Let the tunnel begin anew, through a proxy on this port."""
        key = self._far.public_key
        self._near.set("peer", key, "remove")
        self._near.set("peer", key, "allowed-ips", f"{FAR}/32", "endpoint", f"{PROXY}:{port}")

    @contextlib.contextmanager
    def among_clients(self) -> Iterator[None]:
        """Sockets, threads and programs that are begun meanwhile live where the clients do."""
        with inside(self._nets["clients"]):
            yield

    @contextlib.contextmanager
    def at_the_proxy(self) -> Iterator[None]:
        """The same where the proxy lives."""
        with inside(self._nets["proxy"]):
            yield

    def proxy(self, folder: Path, config: str, **options: Any) -> Proxy:
        """A proxy in its namespace, not started yet."""
        return Proxy(folder, config, netns=self._nets["proxy"], **options)

    def config(self, variant: int, extra: str, idle_lifetime: int, *, tcp_by_kernel: bool) -> str:
        """A configuration; variants lead new sessions to other targets, and differ in a route that nobody uses.

        The first, the third and so on are for new downloads and tunnels, too; the others lead them nowhere. For TCP in
        the kernel path, all connections go to the targets that speak HTTP.
        """
        one, other = variant % 2, (variant + 1) % 2
        plain = self.http if tcp_by_kernel else self.lines
        return f"""
tcp_target = ["{plain[one].text}", "{plain[other].text}"]
udp_target = ["127.0.0.{1 + one}:{self.dns_port}"]
udp_idle_lifetime = 2
{extra}
{"" if tcp_by_kernel else self._recognised_on_tcp(one)}
[protocols.download]
protocol = "quic"
server_names = ["{WEB}"]
target = ["{"127.0.0.1:1" if one else self.quic.text}"]
idle_lifetime = {idle_lifetime}
[protocols.vpn]
protocol = "wireguard"
target = ["{"127.0.0.1:1" if one else f"10.77.2.1:{TUNNEL_PORT}"}"]
idle_lifetime = {idle_lifetime}
[protocols.unused-{variant}]
protocol = "quic"
server_names = ["unused.test"]
target = ["127.0.0.1:1"]
"""

    def _recognised_on_tcp(self, one: int) -> str:
        return f"""
[protocols.web]
protocol = "tls"
server_names = ["{WEB}"]
target = ["{self.web[one].text}"]
[protocols.http]
protocol = "http"
target = ["{self.http[one].text}"]
[protocols.shell]
protocol = "ssh"
target = ["127.0.0.1:{self.ssh.port}"]
"""


class Scene:
    """A proxy that runs in the world, and what can be done to it."""

    def __init__(
        self,
        world: World,
        folder: Path,
        keys: str = "",
        *,
        idle_lifetime: int = 30,
        environment: Mapping[str, str] | None = None,
        program: Path = ROOT,
        manager: ServiceManager | None = None,
        tcp_by_kernel: bool = False,
    ) -> None:
        """``keys`` of the configuration's top level. ``idle_lifetime`` is that of downloads and tunnels.

        ``program`` is the folder of the package to run; one that a fault changes has to be a copy. ``manager`` is told
        by the proxy how it is, and keeps what it is given. With ``tcp_by_kernel`` TCP is in the kernel path.
        """
        self.world = world
        self.program = program
        self.orphans: frozenset[int] = frozenset()
        """Workers whose supervisor was killed, and who are not ended by another; the scene's end is theirs."""
        self._folder = folder
        self._manager = manager
        self._former: list[Proxy] = []
        """Proxies whose supervisor was killed."""
        self.variant = 0
        self.generation = 1
        self._keys = keys
        self._idle_lifetime = idle_lifetime
        self._environment = environment or {}
        self.tcp_by_kernel = tcp_by_kernel
        self.proxy = self._make_proxy(folder)
        self.port = self.proxy.port

    def _make_proxy(self, folder: Path, **options: Any) -> Proxy:
        options |= {
            "environment": self._environment,
            "program": self.program,
            "tcp_by_kernel": self.tcp_by_kernel,
        }
        if self._manager is not None:
            options["environment"] = {**self._environment, **self._manager.environment()}
            options |= {"launcher": self._manager.launcher(), "pass_fds": self._manager.descriptors()}
        return self.world.proxy(folder, self._config(), **options)

    def __enter__(self) -> Self:
        self._start()
        return self

    def _start(self) -> None:
        self.proxy.start()
        if self._manager is not None:
            # Who does not listen at once misses most: few messages wait.
            self._manager.hear_until("READY=1")
        self.proxy.wait_for("generation 1 applied on")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._assert_is_in_order()
        finally:
            # The clients have ended; UDP flows would be waited for.
            self.proxy.signal(signal.SIGQUIT)
            for pid in self.orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            eventually(lambda: not any(map(process_title, self.orphans)), "the orphans have ended")
            for proxy in (self.proxy, *self._former):
                proxy.__exit__(kind, error, trace)

    def _assert_is_in_order(self) -> None:
        """What holds whatever has happened: the supervisor never began a thread, and nobody was surprised."""
        if self.proxy.has_not_ended():
            assert Resources.of(self.proxy.pid).threads == 1
        assert [line for line in self.proxy.log() if line.startswith("Traceback")] == []
        if why_not() is None and self.proxy.has_not_ended():
            eventually(lambda: self.metric("kernel_datagrams_total"), "flows have been in the kernel")
            assert not self.tcp_by_kernel or self.metric("kernel_connections_total") > 0

    def _config(self) -> str:
        address = "" if "listen_address_v4" in self._keys else f'listen_address_v4 = "{PROXY}"\n'
        keys = address + self._keys
        return self.world.config(self.variant, keys, self._idle_lifetime, tcp_by_kernel=self.tcp_by_kernel)

    def reload(self, keys: str | None = None, *, step: int = 1) -> None:
        """Put another variant of the configuration in force, with other keys if any are given."""
        if keys is not None:
            self._keys = keys
        self.variant += step
        self.generation += 1
        self.proxy.reload(self._config(), self.generation)

    def worker_towards(self, port: int, kind: str) -> int:
        """The worker with a session ("tcp") or a flow ("udp") to a target on this port."""
        workers = self.proxy.worker_pids()
        return next(
            number for number, pid in workers.items() if any(pair.remote[1] == port for pair in sockets_of(pid, kind))
        )

    def admin_pid(self) -> int:
        """The admin process; 0 while there is none."""
        return next((pid for pid, title in self.proxy.children().items() if title.startswith("rpxy-l4: admin")), 0)

    def wait_for_workers(self, count: int, apart_from: frozenset[int] = frozenset()) -> None:
        """Wait until so many workers that are not leaving, and none of those, have the configuration in force."""
        ready = re.compile(rf"^rpxy-l4: worker \d+ gen {self.generation}$")

        def are_there() -> bool:
            workers = {pid for pid, title in self.proxy.children().items() if ready.match(title)}
            return len(workers) == count and workers.isdisjoint(apart_from)

        eventually(are_there, f"{count} workers")

    def staying(self) -> dict[int, int]:
        """The workers that are not leaving, with their processes."""
        ready = re.compile(rf"^rpxy-l4: worker \d+ gen {self.generation}$")
        return {number: pid for number, pid in self.proxy.worker_pids().items() if ready.match(process_title(pid))}

    def upgrade(self, workers: int) -> None:
        """Have the program replaced in place, and wait until all its workers are new."""
        before = frozenset(self.proxy.worker_pids().values())
        self.proxy.signal(signal.SIGUSR2)
        self.generation += 1
        self.wait_for_workers(workers, apart_from=before)

    def metric(self, name: str, **labels: str) -> float:
        """The same as of the proxy, asked from where it lives."""
        with self.world.at_the_proxy():
            return self.proxy.metric(name, **labels)

    def reload_wrongly(self) -> None:
        """Have a configuration with a typo refused, and see that the one of before is in force."""
        self.proxy.write(f"listen_prot = 1\n{self._config()}")
        refusals = self._said("the configuration was not reloaded")
        self.proxy.signal(signal.SIGHUP)
        self.proxy.wait_for("the configuration was not reloaded", count=refusals + 1)
        self.wait_for_workers(len(self.staying()))

    def upgrade_wrongly(self) -> None:
        """Have programs refused that cannot take over, and see that those of before serve."""
        before = self.staying()
        for module, old, new in (
            ("cli.py", "from __future__ import annotations", 'raise SystemExit("broken")'),
            ("supervisor/upgrade.py", "FORMAT: Final = ", "FORMAT: Final = 9"),
        ):
            change(self.program, module, old, new)
            refusals = self._said("no upgrade, nothing has changed")
            self.proxy.signal(signal.SIGUSR2)
            self.proxy.wait_for("no upgrade, nothing has changed", count=refusals + 1)
            change(self.program, module, new, old)
        assert self.staying() == before

    def _said(self, text: str) -> int:
        """How many lines of the log have it."""
        return sum(text in line for line in self.proxy.log())

    def lose_supervisor(self) -> None:
        """Kill it."""
        self.orphans = frozenset(self.proxy.worker_pids().values())
        self.proxy.signal(signal.SIGKILL)
        self.proxy.wait_for("the supervisor is gone", count=len(self.orphans))

    def start_again(self) -> None:
        """Have another supervisor go on with what the service manager has kept of one that is gone."""
        self._former.append(self.proxy)
        folder = self._folder / f"life {len(self._former)}"
        folder.mkdir()
        self.generation = 1
        self.proxy = self._make_proxy(folder, port=self.port)
        self._start()

    def kill_worker(self, number: int) -> frozenset[Address]:
        """Kill it, wait for its replacement, and return the clients of the TCP connections that it had.

        It is stopped before it is looked at, so that it accepts nothing between the look and its end.
        """
        pid, held = self._stop_worker(number)
        os.kill(pid, signal.SIGKILL)
        self._wait_for_another(number, pid)
        return held

    def hang_worker(self, number: int) -> frozenset[Address]:
        """Let it stand still until the supervisor has killed and replaced it; the same as for one that is killed."""
        before = self._said(f"worker {number} hangs")
        pid, held = self._stop_worker(number)
        self.proxy.wait_for(f"worker {number} hangs", timeout=2 * PATIENCE, count=before + 1)
        self._wait_for_another(number, pid)
        return held

    def _stop_worker(self, number: int) -> tuple[int, frozenset[Address]]:
        pid = self.proxy.worker_pids()[number]
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: process_state(pid) == "T", "the worker stands still")
        held = (pair.remote for pair in sockets_of(pid, "tcp") if pair.local[1] == self.port and pair.remote[1])
        return pid, frozenset(held)

    def _wait_for_another(self, number: int, pid: int) -> None:
        eventually(lambda: self.proxy.worker_pids().get(number, pid) != pid and self._serves(number), "it is replaced")

    def _serves(self, number: int) -> bool:
        pid = self.proxy.worker_pids()[number]
        return process_title(pid).endswith(f"gen {self.generation}")
