"""What a supervisor leaves to the program that replaces it in the same process (execve(2)), and how that is started.

Descriptors stay open over the exec; everything else is in a :class:`State`, whose bytes are in a memfd. Workers of the
old program go on meanwhile. They understand three messages of the new one, ``Addresses``, ``Release`` and ``Drain``,
and hand their flows to its workers; whoever changes these, or what a flow takes along, counts ``FORMAT`` up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NoReturn, TypeVar

from rpxy_l4.endings import ConnectResult, Detected, Drop, Reason, Rejection
from rpxy_l4.kernel import layout as kernel
from rpxy_l4.kernel.path import PlainRemains
from rpxy_l4.metrics import layout
from rpxy_l4.metrics.layout import Cell, Directory, PlainListener, PlainTarget
from rpxy_l4.snapshot import Bind
from rpxy_l4.supervisor import policy, systemd
from rpxy_l4.supervisor.children import STANDARD_STREAMS
from rpxy_l4.supervisor.signals import name_of
from rpxy_l4.verdict import Transport

_LOG: Final = logging.getLogger(__name__)

Made = TypeVar("Made")

FORMAT: Final = 4
VARIABLE: Final = "RPXY_L4_UPGRADE"
"""In the environment of the new program: its process, and the descriptor of the state."""

CHECK: Final = "--check-upgrade"
"""The argument that makes the new program judge the state on its standard input, and nothing else."""


class UpgradeError(Exception):
    """The state cannot be used. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class ChildState:
    """One living child. Descriptors are numbers that stay open."""

    number: int
    pid: int
    descriptor: int
    channel: int | None
    """None: it was told to end."""
    born: float
    leaving: bool
    draining: bool
    kill_at: float | None


@dataclass(frozen=True, slots=True)
class State:
    """A supervisor between two programs. Nothing but plain values, so that any version can read it."""

    content: bytes
    """The configuration file in force."""
    generation: int
    slots: int
    workers: int
    owners: Mapping[int, int]
    counters: int
    """Descriptor of the counters' memory."""
    flows: int
    """Descriptor of the flow memory."""
    flow_bytes: int
    secret: bytes
    sockets: Sequence[tuple[str, str, int, Sequence[int]]]
    """Transport, host, port, and the descriptor of each slot."""
    admin_sockets: Sequence[tuple[str, str, int, Sequence[int]]]
    retired: Sequence[tuple[str, str, int, float]]
    """Transport, host, port, and until when a worker may have a socket for that."""
    children: Sequence[ChildState]
    listener_series: Sequence[PlainListener]
    target_series: Sequence[PlainTarget]
    addresses: Mapping[str, tuple[str, ...]]
    cpu_of_the_dead: Mapping[int, tuple[float, float]]
    restarts: Mapping[str, int]
    reloads: Mapping[str, int]
    last_reload_ok: bool
    last_reload_success: float
    seen: str | None
    """Digest of the file that was last tried; None: it could not be read."""
    control: int | None
    """Descriptor of the control socket."""
    askers: Sequence[int]
    """Those of operators who wait for the upgrade."""
    kernel_paths: Sequence[PlainRemains]
    """Those with TCP connections."""

    def directory(self) -> Directory:
        """Return the directory of series."""
        return Directory.of_plain(self.listener_series, self.target_series)

    def descriptors(self) -> list[int]:
        """Return every descriptor that must stay open."""
        found = [self.counters, self.flows]
        found += [number for *_, numbers in (*self.sockets, *self.admin_sockets) for number in numbers]
        found += [*self.askers] if self.control is None else [self.control, *self.askers]
        for attached, programs, maps in self.kernel_paths:
            links = (each for each in attached.values() if isinstance(each, int))
            found += [*links, *programs.values(), *maps.values()]
        for child in self.children:
            found += [child.descriptor] if child.channel is None else [child.descriptor, child.channel]
        return found


def as_binds(sockets: Sequence[tuple[str, str, int, Sequence[int]]]) -> dict[Bind, list[int]]:
    """Return the descriptors of each address, by slot."""
    return {Bind(Transport(transport), host, port): list(fds) for transport, host, port, fds in sockets}


def as_plain(sockets: Mapping[Bind, Sequence[int]]) -> list[tuple[str, str, int, Sequence[int]]]:
    """Return what :func:`as_binds` is given."""
    return [(str(bind.transport), bind.host, bind.port, tuple(numbers)) for bind, numbers in sockets.items()]


def pack(state: State) -> bytes:
    """Return the state as bytes."""
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    values["children"] = [dataclasses.astuple(child) for child in state.children]
    return pickle.dumps({"format": FORMAT, "layout": fingerprint(), "state": values}, protocol=4)


def unpack(data: bytes) -> State:
    """Return what :func:`pack` was given. For bytes of our own program only. Raises UpgradeError."""
    try:
        packed = pickle.loads(data)  # noqa: S301  the writer is this process, before the exec
        if packed["format"] != FORMAT:
            raise UpgradeError("the two versions cannot work together; restart the program instead")
        if packed["layout"] != fingerprint():
            raise UpgradeError("the two versions count different things; restart the program instead")
        values = packed["state"]
        return State(**{**values, "children": [ChildState(*child) for child in values["children"]]})
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise UpgradeError(f"what the old program left cannot be read: {error}") from error


def fingerprint() -> str:
    """Return a digest of where each counter stands: old and new workers write to the same memory.

    And of the maps of the kernel path, whose connections the new program goes on with.
    """
    places = {name: value for name, value in vars(layout).items() if name.isupper() and isinstance(value, int | tuple)}
    names = [list(kind) for kind in (Rejection, Drop, Detected, Reason, ConnectResult)]
    cells = [(cell.name, cell.value) for cell in Cell]
    return hashlib.sha256(repr((sorted(places.items()), names, cells, kernel.fingerprint())).encode()).hexdigest()


def command() -> list[str]:
    """Return the command line that this process was started with, to be executed anew.

    A script is executed by its name, so that what its name leads to now decides which interpreter runs it.
    """
    given = sys.orig_argv
    if len(given) > 1 and os.access(given[1], os.X_OK) and Path(given[1]).is_file():
        with Path(given[1]).open("rb") as script:
            if script.read(2) == b"#!":
                return given[1:]
    return [sys.executable, *given[1:]]


def _scratch() -> IO[bytes]:
    """Return a file without a name, in memory: there may be no folder to write to. Raises OSError."""
    return open(os.memfd_create("rpxy-l4-check"), "w+b")  # noqa: PTH123  a descriptor


class Check:
    """The new program, judging in a process of its own what it would take over."""

    def __init__(self, state: State) -> None:
        """Start it. Raises OSError when it cannot be run."""
        with _scratch() as given, contextlib.ExitStack() as stack:
            given.write(pack(state))
            given.seek(0)
            self._said = stack.enter_context(_scratch())
            self._process = subprocess.Popen(  # noqa: S603  it is this program's own command line
                [*command(), CHECK], stdin=given, stdout=self._said, stderr=self._said
            )
            try:
                self._descriptor = os.pidfd_open(self._process.pid)
            except OSError:
                self._process.kill()
                self._process.wait()
                raise
            stack.pop_all()

    def fileno(self) -> int:
        """Return a descriptor that is readable when it has ended."""
        return self._descriptor

    def kill(self) -> None:
        """End it, because it takes too long."""
        self._process.kill()

    def end(self) -> str | None:
        """Return why the new program cannot take over, None if it can. It must have ended; this closes all."""
        os.close(self._descriptor)
        status = self._process.wait()
        with self._said as file:
            file.seek(0)
            said = file.read().decode("utf-8", "backslashreplace").strip()
        if not status:
            return None
        return f"{said or 'nothing'} (exit status {status})" if status > 0 else f"nothing ({name_of(-status)})"


def execute(state: State, more: Mapping[str, str]) -> NoReturn:
    """Execute the new program in this process, with what the state names and ``more`` in its environment.

    Raises OSError; then nothing has changed.
    """
    given = command()
    carrier = os.memfd_create("rpxy-l4-state", 0)
    try:
        with open(carrier, "wb", closefd=False) as file:
            file.write(pack(state))
        for descriptor in state.descriptors():
            os.set_inheritable(descriptor, True)
        os.execve(given[0], given, {**os.environ, **more, VARIABLE: f"{os.getpid()}:{carrier}"})  # noqa: S606  see above
    except OSError:
        for descriptor in state.descriptors():
            os.set_inheritable(descriptor, False)
        os.close(carrier)
        raise


def take_over(make: Callable[[State], Made], state: State, manager: systemd.Manager) -> Made:
    """Return what is made of a state. When that fails, execute this program once more with nothing but the sockets.

    What waits in them is kept then; the workers of before see the ends of their channels close, and finish their
    sessions. Raises OSError when nothing can be executed.
    """
    try:
        return make(state)
    except Exception:  # noqa: BLE001  whatever it is: there is no program any more that could go on
        _LOG.critical("a fault in taking over; beginning anew with the listening sockets", exc_info=True)
        # Half-made objects may own what the state names, and close it once they are forgotten: not before the exec.
        _begin_anew(state, systemd.successor(manager.told))


def _begin_anew(state: State, more: Mapping[str, str]) -> NoReturn:
    named = {
        systemd.socket_name(bind, slot, len(numbers)): number
        for bind, numbers in as_binds(state.sockets).items()
        for slot, number in enumerate(numbers)
    }
    for child in state.children:
        if child.number == policy.ADMIN:
            # Its address is wanted at once.
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
    # First out of the way of the numbers that they are to have: those that systemd would give them.
    beyond = len(STANDARD_STREAMS) + len(named)
    copies = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, beyond) for number in named.values()]
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  names are what is wanted
        if int(name) not in STANDARD_STREAMS:
            with contextlib.suppress(OSError):  # the one that listed the directory
                os.set_inheritable(int(name), False)
    for place, copy in enumerate(copies, len(STANDARD_STREAMS)):
        os.dup2(copy, place)
    given = command()
    passed = {"LISTEN_FDS": str(len(copies)), "LISTEN_FDNAMES": ":".join(named), "LISTEN_PID": str(os.getpid())}
    os.execve(given[0], given, {**os.environ, **more, **passed})  # noqa: S606  it is this program's own command line


def inherited(environ: MutableMapping[str, str]) -> State | None:
    """Return the state that the program before has left to this process, if there is one; that is taken away.

    Raises UpgradeError when it cannot be read.
    """
    pid, _, descriptor = environ.pop(VARIABLE, "").partition(":")
    if pid != str(os.getpid()) or not descriptor.isdecimal():
        return None
    try:
        with open(int(descriptor), "rb") as file:  # noqa: PTH123  a descriptor
            file.seek(0)
            data = file.read()
    except (OSError, OverflowError) as error:
        raise UpgradeError(f"what the old program left cannot be read: {error}") from error
    return unpack(data)
