"""``rpxy-l4 demo``: the real proxy on loopback, between small targets and small clients of its own.

What the table says about recognition, route and target comes from the proxy's access log, where each client is found
by its address. What it says about answers was checked by the client.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from rpxy_l4.config.model import MAX_WORKERS
from rpxy_l4.demo import clients, scene, sessions
from rpxy_l4.demo.clients import Client
from rpxy_l4.demo.processes import Child, DemoError, choose_port, is_free, pause, running_proxy, running_targets, tail
from rpxy_l4.demo.sessions import Session, Tail
from rpxy_l4.demo.table import Row, State, Style, render
from rpxy_l4.demo.targets import CERTIFICATE_FILE, Served
from rpxy_l4.endings import Detected
from rpxy_l4.logs import ACCESS_FILE, EVENT_FILE
from rpxy_l4.snapshot import DEFAULT_ROUTE
from rpxy_l4.supervisor.status import ExitStatus
from rpxy_l4.verdict import Transport

_PORT: Final = 8448
_ADMIN_PORT: Final = 9448
_LAST_PORT: Final = 65_535
_BOTH: Final = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_KINDS: Final = {Transport.TCP: socket.SOCK_STREAM, Transport.UDP: socket.SOCK_DGRAM}
_DEFAULT_TARGETS: Final = {Transport.TCP: scene.TCP_ECHO, Transport.UDP: scene.UDP_ECHO}
_ANSWER_WITHIN: Final = 10.0
_LOGGED_WITHIN: Final = 15.0
_TICK: Final = 0.1
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class _Step:
    """One exchange, and what should come of it."""

    sent: str
    transport: Transport
    client: Client | None
    """None: aioquic, which it needs, is not installed."""
    detected: Detected
    route: str


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a client saw."""

    session: tuple[str, str]
    """How to find it in the access log."""
    seconds: float
    answer: str
    ok: bool


class _StoppedError(BaseException):
    """A signal asked us to stop. Not an Exception: nothing on the way is to take it for one of its own."""


_say: Final = functools.partial(print, flush=True)
"""A pipe is to get each line when it is said."""


def run_demo(argv: Sequence[str]) -> int:
    """Run the demo until a signal, or with ``--exit`` until its table is printed. For the main thread.

    Returns 0 when every client was answered as it should be, and 1 when not, or when the demo could not go on.
    Leaves no process and no file behind, but for logs in a directory that was asked for.
    """
    options = _options(argv)
    with _signals_stop_us():
        try:
            with contextlib.ExitStack() as stack:
                try:
                    return _run(options, stack)
                finally:
                    # Stopping takes seconds at most, and half of it would leave something behind.
                    _ignore_signals()
        except _StoppedError:
            return 1 if options.exit else 0
        except (DemoError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                # Nobody reads on. The interpreter would complain at its end about what it cannot flush.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"rpxy-l4 demo: {error}", file=sys.stderr)
            return 1


class _Parser(argparse.ArgumentParser):
    """Says what is wrong on one line, with the program's exit status for that."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitStatus.USAGE, f"{self.prog}: {message}; see --help\n")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="rpxy-l4 demo",
        allow_abbrev=False,
        description="Run the proxy on loopback with targets of its own, drive each protocol once through its one port, "
        "show what became of each, then stay for you to try by hand.",
    )
    add = parser.add_argument
    add("--port", metavar="N", type=int, help=f"port of the proxy, TCP and UDP (default {_PORT}, or a free one)")
    add("--workers", metavar="N", type=int, default=2, help="worker processes (default 2)")
    add("--log-dir", metavar="DIR", type=Path, help="keep the proxy's logs here (default: a temporary directory)")
    add("--exit", action="store_true", help="stop after the table; status 1 if a row failed")
    options = parser.parse_args(argv)
    if options.port is not None and not 0 < options.port <= _LAST_PORT:
        parser.error(f"--port must be 1 to {_LAST_PORT}")
    if not 0 < options.workers <= MAX_WORKERS:
        parser.error(f"--workers must be 1 to {MAX_WORKERS}")
    return options


@contextlib.contextmanager
def _signals_stop_us() -> Iterator[None]:
    """While inside, the signals raise; afterwards they do what they did before."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _StoppedError

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _run(options: argparse.Namespace, stack: contextlib.ExitStack) -> int:
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    style = Style(colours)
    port, admin_port = _ports(options.port)
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rpxy-l4-demo-")))
    log_dir: Path = options.log_dir or directory / "log"

    _say("Starting a few small targets, and the proxy in front of them ...")
    targets, served = stack.enter_context(running_targets(directory))
    config = directory / "config.toml"
    config.write_text(
        scene.configuration(port=port, admin_port=admin_port, workers=options.workers, targets=served.ports)
    )
    access = Tail(log_dir / ACCESS_FILE)
    proxy = stack.enter_context(running_proxy(config, log_dir, admin_port, targets))

    _say(f"The proxy serves {style.bold(f'{scene.HOST}:{port}')}, TCP and UDP, as process {proxy.process.pid}.")
    _say(f"Its configuration is {config}")
    _say("Now one client of each kind, all to that one port ...\n")
    rows = _drive(_steps(served, directory / CERTIFICATE_FILE), port, served, access, (targets, proxy))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in render(rows, style, width):
        _say(line)
    failed = sum(row.state is State.FAILED for row in rows)
    answered = sum(row.state is State.OK for row in rows)
    _say(f"\n{answered} of {len(rows)} took the right route and were answered by its target.")
    if failed:
        _say(f"{style.state(State.FAILED, f'{failed} failed.')} The proxy's log:\n{tail(log_dir / EVENT_FILE)}")
    if not options.exit:
        for line in _invitation(port, admin_port, config, proxy.process.pid, served, style):
            _say(line)
        try:
            _stay(access, Tail(log_dir / EVENT_FILE), (targets, proxy), style)
        except _StoppedError:
            _say("\nStopping.")
    return 1 if failed else 0


def _ports(wanted: int | None) -> tuple[int, int]:
    if wanted is not None and not is_free(wanted, _BOTH):
        raise DemoError(f"port {wanted} of {scene.HOST} is taken")
    port = choose_port(_PORT, _BOTH) if wanted is None else wanted
    admin_port = choose_port(_ADMIN_PORT if port != _ADMIN_PORT else _ADMIN_PORT + 1, (socket.SOCK_STREAM,))
    return port, admin_port


def _steps(served: Served, certificate: Path) -> list[_Step]:
    tcp, udp = Transport.TCP, Transport.UDP
    tls_get = functools.partial(clients.tls_get, certificate=certificate)
    tls_echo = functools.partial(clients.tls_echo, certificate=certificate)
    quic_get = functools.partial(clients.quic_get, certificate=certificate)
    wireguard = functools.partial(clients.wireguard_handshake, public_key=bytes.fromhex(served.wireguard_public_key))
    has_quic = scene.QUIC in served.ports
    return [
        _Step("HTTP: GET /", tcp, clients.http_get, Detected.HTTP, scene.WEB),
        _Step("TLS: GET /", tcp, tls_get, Detected.TLS, scene.TLS_NAME),
        _Step("TLS: a line", tcp, tls_echo, Detected.TLS, scene.TLS_ALPN),
        _Step("SSH: greeting", tcp, clients.ssh_identify, Detected.SSH, scene.SSH),
        _Step("SOCKS5: GET /", tcp, clients.socks5_get, Detected.SOCKS5, scene.SOCKS5),
        _Step("TCP: a line", tcp, clients.tcp_echo, Detected.UNKNOWN, DEFAULT_ROUTE),
        _Step("QUIC: GET /", udp, quic_get if has_quic else None, Detected.QUIC, scene.QUIC),
        _Step("WireGuard: handshake", udp, wireguard, Detected.WIREGUARD, scene.WIREGUARD),
        _Step("UDP: a datagram", udp, clients.udp_echo, Detected.UNKNOWN, DEFAULT_ROUTE),
    ]


def _drive(steps: Sequence[_Step], port: int, served: Served, access: Tail, children: Sequence[Child]) -> list[Row]:
    """Play every step, and return a row for each, in their order."""
    outcomes: dict[str, _Outcome] = {}
    # UDP first: a flow ends, and is logged, only after its idle lifetime.
    for step in sorted(steps, key=lambda step: step.transport is Transport.TCP):
        if step.client is not None:
            outcomes[step.sent] = _play(step, step.client, port)
    wanted = {outcome.session for outcome in outcomes.values()}
    found: dict[tuple[str, str], Session] = {}
    deadline = time.monotonic() + _LOGGED_WITHIN
    while not wanted <= found.keys() and time.monotonic() < deadline:
        pause(children, _TICK)
        for line in access.read():
            session = sessions.parse(line)
            found.setdefault(sessions.key_of(session), session)
    return [_row(step, outcomes.get(step.sent), found, served) for step in steps]


def _play(step: _Step, client: Client, port: int) -> _Outcome:
    with socket.socket(socket.AF_INET, _KINDS[step.transport]) as sock:
        sock.settimeout(_ANSWER_WITHIN)
        sock.bind((scene.HOST, 0))
        session = sessions.key(step.transport, sock.getsockname())
        started = time.perf_counter()
        ok = True
        try:
            sock.connect((scene.HOST, port))
            answer = client(sock)
        except (OSError, clients.UnexpectedAnswerError) as error:
            ok, answer = False, f"{type(error).__name__} {error}"
        return _Outcome(session, time.perf_counter() - started, answer, ok)


def _row(step: _Step, outcome: _Outcome | None, found: Mapping[tuple[str, str], Session], served: Served) -> Row:
    if outcome is None:
        return Row(sent=step.sent, answer="pip install 'rpxy-l4[demo]' brings aioquic", state=State.SKIPPED)
    session = found.get(outcome.session, {})
    name = _DEFAULT_TARGETS[step.transport] if step.route == DEFAULT_ROUTE else step.route
    expected = (str(step.detected), step.route, f"{scene.HOST}:{served.ports[name]}")
    ok, answer = outcome.ok, outcome.answer
    if ok and not session:
        ok, answer = False, "the access log has no such session"
    elif ok and (session.get("detected"), session.get("route"), session.get("target")) != expected:
        ok, answer = False, f"expected {' '.join(expected)}"
    return Row(
        sent=step.sent,
        recognised=sessions.recognised(session),
        route=session.get("route", ""),
        target=session.get("target", ""),
        ms=f"{outcome.seconds * 1e3:.1f}",
        answer=answer,
        state=State.OK if ok else State.FAILED,
    )


def _invitation(port: int, admin_port: int, config: Path, pid: int, served: Served, style: Style) -> Iterator[str]:
    at, admin = f"{scene.HOST}:{port}", f"http://{scene.HOST}:{admin_port}"
    commands = {
        "HTTP": f"curl http://{at}/",
        "TLS, by name": f"curl -k --connect-to {scene.SITE}:443:{at} https://{scene.SITE}/",
        "TLS, by ALPN": f"openssl s_client -quiet -connect {at} -alpn {scene.ECHO_ALPN}",
        "SSH": f"ssh -p {port} {scene.HOST}",
        "SOCKS5": f"curl --socks5-hostname {at} http://anything.example/",
        "plain TCP": f"nc {scene.HOST} {port}",
        "plain UDP": f"nc -u {scene.HOST} {port}",
        "metrics": f"curl -s {admin}/metrics | grep sessions_total",
        "health": f"curl {admin}/readyz",
        "processes": f"ps -o pid,args --pid {pid} --ppid {pid}",
        "reload": f"kill -HUP {pid}",
    }
    key = base64.b64encode(bytes.fromhex(served.wireguard_public_key)).decode()
    yield f"\n{style.bold('Your turn.')} In another terminal:\n"
    for what, command in commands.items():
        missing = "" if shutil.which(command.split()[0]) else style.dim("   (not installed here)")
        yield f"  {what:<14}{command}{missing}"
    yield f"  {'WireGuard':<14}endpoint {at}, public key {key}"
    yield f"\nChange {config} and save it: the proxy takes it at once."
    yield f"Sessions are listed below when they end. {style.bold('Ctrl-C')} stops everything.\n"


def _stay(access: Tail, events: Tail, children: Sequence[Child], style: Style) -> NoReturn:
    """Show what happens. Ends by _StoppedError, or by DemoError when a child ends."""
    while True:
        for line in events.read():
            _say(style.dim(line))
        for line in access.read():
            _say(f"{time.strftime('%H:%M:%S')}  {sessions.summary(sessions.parse(line))}")
        pause(children, _TICK)
