"""Loading the program of the kernel path and attaching it to interfaces: the supervisor's part."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import re
import resource
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rpxy_l4.balance import BUCKETS
from rpxy_l4.control import SETTINGS, KernelPiece
from rpxy_l4.kernel import bpf
from rpxy_l4.kernel.layout import MAPS, TARGETS, Why, counter_of
from rpxy_l4.kernel.netlink import Filter, Link, Netlink, Watch
from rpxy_l4.kernel.program import Program, read_object

_LOG: Final = logging.getLogger(__name__)

_OF_CONNECTIONS: Final = frozenset({"settings", "connections", "targets", "totals", "told", "ends"})

_OBJECT: Final = Path(__file__).with_name("path.bpf.o")

# linux/if_arp.h: what packets begin with at ingress.
_ETHERNET: Final = "ethernet"
_PROGRAMS: Final = {
    1: _ETHERNET,  # ARPHRD_ETHER
    772: _ETHERNET,  # ARPHRD_LOOPBACK
    0xFFFE: "plain",  # ARPHRD_NONE: tun, WireGuard
}
_FIRST_PRIORITY: Final = 49_152
_MOST_PRIORITIES: Final = 64
_FILTER_NAME: Final = "rpxy-l4"

# Of TCP.
_ENTRIES: Final = {
    "clients": 1 << 14,
    "targets": TARGETS,
    "answers": TARGETS,
    "choices": BUCKETS,
    "remembered": 1 << 16,
    "totals": TARGETS,
    "told": TARGETS,
}
_ENDS_BYTES: Final = 1 << 21
"""Room for twenty thousand."""


class KernelPathError(Exception):
    """The kernel path cannot be had; the text says why."""


class KernelPath:
    """The program, its maps, and where it is attached. Owns their descriptors.

    All of it is gone from the kernel when they are closed and no worker has any of them open any more; after
    :meth:`attach` with filters, the way of kernels before 6.6, :meth:`close` has to be called.
    """

    def __init__(self, capacity: int, connections: int = 0) -> None:
        """Load the program for so many flows, and TCP connections. Raises KernelPathError."""
        self.capacity = capacity
        self.connections = connections
        self.token = _new_token()
        """Tells this one from others, before and after."""
        self._watch: Watch | None = None
        self._netlink: Netlink | None = None
        self._maps: dict[str, int] = {}
        self._object: dict[str, Program] = {}
        self._programs: dict[str, int] = {}
        self._attached: dict[int, int | Filter] = {}
        """By interface: the descriptor of a link, or a filter."""
        self._has_links = True
        """Whether the kernel knows links at the ingress of an interface."""
        self._names: dict[int, str] = {}
        self._refused: set[int] = set()
        """Interfaces that did not take it."""
        try:
            self._load()
        except OSError as error:
            self.close()
            raise KernelPathError(_why(error)) from None
        except ValueError as error:
            self.close()
            raise KernelPathError(f"{_OBJECT.name}: {error}") from None
        except bpf.VerifierError as error:
            self.close()
            _LOG.debug("the verifier's log of %s:\n%s", error.name, error.log)
            hint = "; before Linux 6.12 it needs CAP_PERFMON, too" if _is_before(6, 12) and not _may_trace() else ""
            raise KernelPathError(f"the kernel refuses the program ({error}): {_last_words(error.log)}{hint}") from None

    def _load(self) -> None:
        if _counts_as_locked():
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for name, definition in MAPS.items():
            self._maps[name] = bpf.create_map(name, definition, self._entries(name))
        self._object = read_object(_OBJECT.read_bytes())
        # The other one is loaded when there is an interface for it: the verifier takes its time.
        self.program(_ETHERNET)
        self._netlink = Netlink()

    def _entries(self, name: str) -> int:
        """Return how many a map may have; those of TCP, where there is to be none of it, are as small as can be."""
        match name:
            case "flows" | "counters":
                return 2 * self.capacity
            case "left":
                return len(Why)
            case "settings" | "scratches":
                return 1
            case "ends":
                return _ENDS_BYTES if self.connections else mmap.PAGESIZE
            case "connections":
                return max(1, 2 * self.connections)
        return _ENTRIES[name] if self.connections else 1

    @property
    def maps(self) -> Mapping[str, int]:
        """The descriptors of the maps, which stay this object's."""
        return self._maps

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of the maps that workers need: flows, counters, clients and settings. They stay this object's."""
        return tuple(self._maps[name] for name in ("flows", "counters", "clients", "settings"))

    @property
    def interfaces(self) -> list[str]:
        """The names of the interfaces where it is attached."""
        return sorted(self._names[number] for number in self._attached)

    @property
    def mode(self) -> str:
        """How it is attached: ``tcx`` or ``clsact``."""
        return "tcx" if self._has_links else "clsact"

    def attach(self) -> None:
        """Attach to every interface whose packets are understood, and keep doing so.

        Raises KernelPathError when that is impossible at all of them.
        """
        try:
            self._watch = Watch(routes=False)
            self._attach_to_new()
        except OSError as error:
            raise KernelPathError(_why(error)) from None
        if not self._attached:
            raise KernelPathError("no interface takes it")

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`on_news` has to be called."""
        assert self._watch is not None  # noqa: S101  attached before
        return self._watch.fileno()

    def on_news(self) -> None:
        """Attach to interfaces that have come, and let go of those that are gone."""
        assert self._watch is not None  # noqa: S101  attached before
        self._watch.drain()
        try:
            self._attach_to_new()
        except OSError as error:
            _LOG.warning("kernel path: cannot look for new interfaces: %s", error.strerror)

    def _attach_to_new(self) -> None:
        assert self._netlink is not None  # noqa: S101  loaded
        links = {link.number: link for link in self._netlink.links()}
        for number in self._attached.keys() - links.keys():
            self._detach(number)
        for number, link in links.items():
            if number not in self._attached and number not in self._refused and link.kind in _PROGRAMS:
                self._try_to_attach(link)
        self._refused &= links.keys()

    def _try_to_attach(self, link: Link) -> None:
        """Attach to an interface, if it takes one more program. Raises OSError when none would."""
        try:
            self._attached[link.number] = self._attach_to(link)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise
            if error.errno != errno.ENODEV:  # not gone meanwhile
                self._refused.add(link.number)
                _LOG.warning("kernel path: cannot be attached to %s: %s", link.name, error.strerror)
        except bpf.VerifierError as error:
            self._refused.add(link.number)
            _LOG.warning("kernel path: the kernel refuses the program for %s: %s", link.name, _last_words(error.log))
        else:
            self._names[link.number] = link.name

    def _attach_to(self, link: Link) -> int | Filter:
        program = self.program(_PROGRAMS[link.kind])
        if self._has_links:
            try:
                return bpf.link_to_ingress(program, link.number)
            except OSError as error:
                if error.errno != errno.EINVAL or self._attached:
                    raise
            self._has_links = False
        return self._filter_at(link.number, program)

    def _filter_at(self, interface: int, program: int) -> Filter:
        """Attach as kernels before 6.6 can."""
        assert self._netlink is not None  # noqa: S101  loaded
        name = f"{_FILTER_NAME}:{os.getpid()}:{_birth(os.getpid())}"
        for priority in range(_FIRST_PRIORITY, _FIRST_PRIORITY + _MOST_PRIORITIES):
            with contextlib.suppress(FileExistsError):
                self._netlink.add_filter(interface, program, name, priority)
                return Filter(interface, priority, 1, name)
        raise OSError(errno.EBUSY, "too many programs are attached")

    def _detach(self, number: int) -> None:
        attached = self._attached.pop(number)
        if isinstance(attached, int):
            _end(attached)
        elif self._netlink is not None:
            with contextlib.suppress(OSError):
                self._netlink.remove_filter(attached)

    def left(self) -> Mapping[Why, int]:
        """Return how many packets of flows were left to the sockets since it was loaded, by why."""
        return {why: bpf.read_per_cpu(self._maps["left"], why)[0] for why in Why}

    def program(self, name: str) -> int:
        """Return the descriptor of a program, which stays this object's. Raises as :func:`bpf.load_program` does."""
        if name not in self._programs:
            self._programs[name] = bpf.load_program(name, self._object[name].linked(self._maps))
        return self._programs[name]

    def clear(self, slots: frozenset[int], of_slot: int) -> None:
        """Take the flows of slots out that have no worker, each slot with so many pairs of counters. Raises OSError."""
        flows = bpf.Map(self._maps["flows"], MAPS["flows"])
        for key, value in flows.items():
            if counter_of(value) // 2 // of_slot in slots:
                flows.remove(key)

    @property
    def pieces(self) -> dict[KernelPiece, int]:
        """What connections, where there may be any, need to outlive this process; descriptors stay this object's."""
        return _pieces(self.token, self._attached, self._maps) if self.connections else {}

    def retire(self) -> Remains:
        """Leave attached what serves the TCP connections that there are, and close the rest. Call nothing else then."""
        for name in self._maps.keys() - _OF_CONNECTIONS:
            os.close(self._maps.pop(name))
        remains = Remains(dict(self._attached), dict(self._maps), self.token)
        self._attached.clear()
        self._maps.clear()
        self.close()
        return remains

    def leave_to_parent(self) -> None:
        """In a forked child: close the sockets, which would otherwise be closed a second time, and nothing else."""
        for each in (self._netlink, self._watch):
            if each is not None:
                each.close()

    def close(self) -> None:
        """Detach, and close everything."""
        for number in [*self._attached]:
            self._detach(number)
        for descriptor in (*self._programs.values(), *self._maps.values()):
            os.close(descriptor)
        self._programs.clear()
        self._maps.clear()
        for each in (self._netlink, self._watch):
            if each is not None:
                each.close()
        self._netlink = self._watch = None


class Remains:
    """What is left of a kernel path that has TCP connections only. Owns descriptors."""

    def __init__(
        self, attached: Mapping[int, int | Filter], maps: Mapping[str, int], token: bytes | None = None
    ) -> None:
        """Take ownership: of links, or filters, by interface, and of maps by name."""
        self.attached = attached
        self.maps = maps
        self._token = token or _new_token()

    @property
    def pieces(self) -> dict[KernelPiece, int]:
        """What connections need to outlive this process; the descriptors stay this object's."""
        return _pieces(self._token, self.attached, self.maps)

    def close(self) -> None:
        """Detach: what connections there are is no more."""
        for each in self.attached.values():
            if isinstance(each, int):
                _end(each)
        for descriptor in self.maps.values():
            os.close(descriptor)
        filters = [each for each in self.attached.values() if not isinstance(each, int)]
        if filters:
            with contextlib.suppress(OSError), contextlib.closing(Netlink()) as netlink:
                for each in filters:
                    with contextlib.suppress(OSError):
                        netlink.remove_filter(each)


def _new_token() -> bytes:
    return secrets.token_bytes(8)


def _pieces(token: bytes, attached: Mapping[int, int | Filter], maps: Mapping[str, int]) -> dict[KernelPiece, int]:
    links = {number: each for number, each in attached.items() if isinstance(each, int)}
    return {KernelPiece(token, number): each for number, each in {SETTINGS: maps["settings"], **links}.items()}


def _end(link: int) -> None:
    """Detach what a link has attached, and close it. Workers may have copies, which mean nothing then."""
    with contextlib.suppress(OSError):  # the interface is gone
        bpf.detach(link)
    os.close(link)


def remove_stale_filters() -> None:
    """Remove what processes of ours that are gone have left at interfaces, on kernels before 6.6."""
    with contextlib.suppress(OSError), contextlib.closing(Netlink()) as netlink:
        for link in netlink.links():
            _remove_stale(netlink, link.number)


def _remove_stale(netlink: Netlink, interface: int) -> None:
    for found in netlink.filters(interface):
        if _is_stale(found.name):
            netlink.remove_filter(found)


def why_not() -> str | None:
    """Return why the kernel path cannot be had here; None: it can. Loads and attaches it for a moment."""
    try:
        path = KernelPath(1)
    except KernelPathError as error:
        return str(error)
    try:
        path.attach()
    except KernelPathError as error:
        return str(error)
    finally:
        path.close()
    return None


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EPERM if _counts_as_locked():
            return "it needs the capabilities CAP_BPF and CAP_NET_ADMIN and, before Linux 5.11, LimitMEMLOCK=infinity"
        case errno.EPERM:
            return "it needs the capabilities CAP_BPF and CAP_NET_ADMIN"
        case errno.ENOSYS:
            return "this kernel, or a sandbox, has no bpf(2)"
        case errno.ENOENT:
            return f"{_OBJECT.name} is missing from the installation"
        case _:
            return f"{error.strerror}"


def _is_before(major: int, minor: int) -> bool:
    """Whether the kernel is older than this release."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return version is not None and (int(version[1]), int(version[2])) < (major, minor)


def _may_trace() -> bool:
    """Whether this process has CAP_PERFMON in effect (capability.h: number 38; proc_pid_status(5))."""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> 38 & 1)


def _counts_as_locked() -> bool:
    """Whether the memory of maps counts as locked (before Linux 5.11), and that is limited."""
    return _is_before(5, 11) and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY


def _last_words(log: str) -> str:
    """Return the line of a verifier's log that says what is wrong: the last before its statistics."""
    lines = [line for line in log.splitlines() if line and not line.startswith(("processed ", "verification time"))]
    return lines[-1] if lines else "no reason given"


def _is_stale(name: str) -> bool:
    """Whether a filter of this name was left by a process of ours that is gone."""
    kind, _, process = name.partition(":")
    pid, _, birth = process.partition(":")
    return kind == _FILTER_NAME and pid.isdigit() and _birth(int(pid)) != birth


def _birth(pid: int) -> str:
    """Return when a process was started, in a unit of the kernel's; empty when there is none (proc_pid_stat(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
