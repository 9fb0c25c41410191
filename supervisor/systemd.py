"""Living under systemd: what it is told, what it hands over, and what it keeps while no supervisor lives.

Its file descriptor store holds copies of the listening sockets. A supervisor that is started again, after a crash or by
``systemctl restart``, finds them by their names, with what waits in their queues.

The protocol: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), systemd.service(5).
"""

from __future__ import annotations

import logging
import os
import re
import socket
from array import array
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rpxy_l4.addresses import MAX_PORT, parse_ip
from rpxy_l4.net.channel import MAX_DESCRIPTORS
from rpxy_l4.snapshot import Bind
from rpxy_l4.verdict import Transport

_LOG: Final = logging.getLogger(__name__)

# Meant for one process, and true for it as long as it lives, whatever program it executes.
_OF_THE_PROCESS: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE")
# True only at the start: afterwards other things have these numbers.
_OF_THE_START: Final = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")

_FIRST_PASSED: Final = 3
_UNNAMED: Final = "unknown"
# What fits a 64-bit number; its largest one means never.
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_NEVER: Final = 2**64 - 1
_MICROSECONDS: Final = 1_000_000
# sd_notify(3), FDNAME=: ASCII without control characters and colons.
_NAME: Final = re.compile(r"[ -9;-~]{1,255}", re.ASCII)
# systemd ignores a message of more than 4096 bytes (PIPE_BUF), and a character may take four.
_STATUS_LIMIT: Final = 500
# For the manager to make room in its queue (net.unix.max_dgram_qlen messages); it was told to hold hundreds of sockets
# one by one. Children are not looked after meanwhile.
_PATIENCE: Final = 1.0


def take(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Take what systemd says to this process alone out of its environment, and return it.

    A child program that found it there could speak in our name, or would take our descriptors for its own. For
    ``Notifier``, ``watchdog_interval`` and ``inherited``; and what ``successor`` returns of it is to be put back into
    the environment of a program that this same process executes.
    """
    return {name: environ.pop(name) for name in (*_OF_THE_PROCESS, *_OF_THE_START) if name in environ}


def successor(taken: Mapping[str, str]) -> dict[str, str]:
    """Return what stays true for a program executed in place of this one, in the same process.

    That is all but the descriptors passed at the start, whose numbers mean nothing any more.
    """
    return {name: taken[name] for name in _OF_THE_PROCESS if name in taken}


@dataclass(frozen=True, slots=True)
class Manager:
    """What systemd told this process, and passed to it, at its start."""

    told: Mapping[str, str] = field(default_factory=dict)
    """The variables that it set for this process."""
    passed: Sequence[tuple[str, int]] = ()
    """Name and number of each descriptor; they are the holder's."""

    @classmethod
    def take(cls, environ: MutableMapping[str, str], pid: int) -> Manager:
        """Return it, and take it out of the environment. To be called before the process opens anything."""
        told = take(environ)
        return cls(told, inherited(told, pid))


class Notifier:
    """Tells systemd. Where there is none, every call does nothing and returns True.

    Otherwise a call returns whether the message stands in the manager's queue; False may be tried again later. Nothing
    is ever raised. The first failure in a row is logged and may have taken a second; the others are not and take no
    time. Each call opens a socket of its own, so there is none that a child or another program could inherit, and
    a manager that was restarted is found again.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Speak to the socket that ``NOTIFY_SOCKET`` names: a path or ``@`` and an abstract name; to no other kind."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._present = address.startswith(("/", "@"))
        self._failing = False

    def ready(self, status: str) -> bool:
        """Say that every listener is served, for the first time or again after ``reloading``."""
        return self._send(f"READY=1\n{_status(status)}")

    def reloading(self, monotonic_usec: int) -> bool:
        """Say that a reload begins; ``ready`` must follow, whatever comes of it. The time is CLOCK_MONOTONIC's.

        Without the time, systemd would wait in vain where the unit has ``Type=notify-reload``.
        """
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_usec}")

    def stopping(self) -> bool:
        """Say that the program is about to end."""
        return self._send("STOPPING=1")

    def more_time(self, seconds: float) -> bool:
        """Ask not to be killed within this time, while starting or stopping takes long; before it is over, ask again.

        It counts only beyond ``TimeoutStartSec=`` and ``TimeoutStopSec=``, which it never shortens.
        """
        return self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * _MICROSECONDS)}")

    def status(self, text: str) -> bool:
        """Set the line that ``systemctl status`` shows."""
        return self._send(_status(text))

    def main_pid(self, pid: int) -> bool:
        """Say which process is the supervisor."""
        return self._send(f"MAINPID={pid}")

    def watchdog(self) -> bool:
        """Give a sign of life."""
        return self._send("WATCHDOG=1")

    def store(self, name: str, descriptors: Sequence[int]) -> bool:
        """Have copies of these kept under a name, beside those that have it already; they stay ours as well.

        What the manager keeps already is not kept twice. Its answer is silence, also where the unit's
        ``FileDescriptorStoreMax=`` does not allow it. False for a name that it would not take.
        """
        if not _NAME.fullmatch(name):
            return False
        # FDPOLL=0: else the manager would poll every socket, which costs something for each datagram, and let go of one
        # that has an error to report, however passing.
        text = f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}"
        starts = range(0, len(descriptors), MAX_DESCRIPTORS)
        return all(self._send(text, descriptors[start : start + MAX_DESCRIPTORS]) for start in starts)

    def remove(self, name: str) -> bool:
        """Have everything under this name closed. That is done some time later; ``barrier`` waits for it."""
        return bool(_NAME.fullmatch(name)) and self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def barrier(self, timeout: float) -> bool:
        """Wait until all that was sent before is done, up to ``timeout`` seconds; False when that is not known.

        Needed before binding an address again whose sockets were removed: until then it is taken.
        """
        if not self._present:
            return True
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._complain(error)
            return False
        with ours:
            with theirs:
                if not self._send("BARRIER=1", (theirs.fileno(),)):
                    return False
            ours.settimeout(timeout)
            try:
                return ours.recv(1) == b""
            except OSError:
                return False

    def _send(self, text: str, descriptors: Sequence[int] = ()) -> bool:
        if not self._present:
            return True
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(0.0 if self._failing else _PATIENCE)
                sender.connect(self._address)
                sender.sendmsg([text.encode("utf-8", "backslashreplace")], rights)
        except OSError as error:
            self._complain(error)
            return False
        self._failing = False
        return True

    def _complain(self, error: OSError) -> None:
        if not self._failing:
            _LOG.warning("cannot tell systemd how things are: %s", error.strerror or error)
        self._failing = True


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:_STATUS_LIMIT]


def watchdog_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds between two signs of life of process ``pid``, half of what systemd waits; None: it does not.

    A wrong value is None as well.
    """
    patience = _number(environ.get("WATCHDOG_USEC", ""))
    if not patience or patience >= _NEVER or _number(environ.get("WATCHDOG_PID", str(pid))) != pid:
        return None
    return patience / _MICROSECONDS / 2


def inherited(environ: Mapping[str, str], pid: int) -> list[tuple[str, int]]:
    """Return name and number of each descriptor that was passed to process ``pid``, and keep it from its children.

    They are the caller's. "unknown" is the name of all where there are none, or not as many as descriptors. Empty for
    wrong values. To be called before the process opens anything: of a count that is too high, those are returned that
    are open, up to the first that is not.
    """
    count = _number(environ.get("LISTEN_FDS", ""))
    if not count or _number(environ.get("LISTEN_PID", "")) != pid:
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    passed: list[tuple[str, int]] = []
    for index in range(count):
        try:
            os.set_inheritable(_FIRST_PASSED + index, False)
        except (OSError, OverflowError):
            break
        passed.append((names[index] if len(names) == count else _UNNAMED, _FIRST_PASSED + index))
    return passed


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


class StoredSocket(NamedTuple):
    """What the name of a stored socket says: the address, the slot, and how many slots there were."""

    bind: Bind
    slot: int
    slots: int


def socket_name(bind: Bind, slot: int, slots: int) -> str:
    """Return the name under which a slot's socket is stored, ``listen_udp_--1_8448_0_4`` for ``udp [::1]:8448``.

    How many slots there are is in each name, so that nobody takes a part of a group for the whole: a manager's store
    may be too small for all.
    """
    return f"listen_{bind.transport}_{bind.host.replace(':', '-')}_{bind.port}_{slot}_{slots}"


def parse_socket_name(name: str) -> StoredSocket | None:
    """Return what ``socket_name`` was given to make this name; None for any other."""
    parts = name.split("_")
    if len(parts) != 6 or parts[1] not in set(Transport):  # noqa: PLR2004  as many as ``socket_name`` joins
        return None
    port, slot, slots = map(_number, parts[3:])
    if not port or port > MAX_PORT or slot is None or slots is None or slot >= slots:
        return None
    try:
        bind = Bind(Transport(parts[1]), parse_ip(parts[2].replace("-", ":")), port)
    except ValueError:
        return None
    # One name for each: no leading zeros, no other way to write an address.
    return StoredSocket(bind, slot, slots) if socket_name(bind, slot, slots) == name else None
