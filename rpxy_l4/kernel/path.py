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
from rpxy_l4.kernel.attachment import ETHERNET, Attachment
from rpxy_l4.kernel.layout import MAPS, TARGETS, Why, counter_of, number_value
from rpxy_l4.kernel.netlink import Filter
from rpxy_l4.kernel.program import Program, read_object

_LOG: Final = logging.getLogger(__name__)

_OF_CONNECTIONS: Final = frozenset(
    {"settings", "connections", "directions", "open", "vacant", "targets", "totals", "told", "ends"}
)

_OBJECT: Final = Path(__file__).with_name("path.bpf.o")

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
# In capability.h.
_SYS_ADMIN: Final = 1 << 21
_PERFMON: Final = 1 << 38

# BPF_FUNC_ktime_get_ns and, since Linux 5.11, BPF_FUNC_ktime_get_coarse_ns.
_EXACT_CLOCK: Final = 5
_COARSE_CLOCK: Final = 160

_SPARE: Final = 1024
"""Places for connections beyond those that there may be: so long a place is not used again."""
_ENDS_BYTES: Final = 1 << 21
"""Room for twenty thousand."""


PlainRemains = tuple[Mapping[int, int | tuple[int, int, int, str]], Mapping[str, int], Mapping[str, int]]
"""What is attached, by interface: descriptors of links, or filters. Descriptors of programs and of maps, by name."""


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
        self.is_guarded = not _may_trace()
        """Whether the kernel guards it against speculation, without CAP_PERFMON: a packet costs three times as much."""
        self._maps: dict[str, int] = {}
        self._object: dict[str, Program] = {}
        self._programs: dict[str, int] = {}
        self._attachment = Attachment(self.program)
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
            raise KernelPathError(f"the kernel refuses the program ({error}): {error.last_words}{hint}") from None

    def _load(self) -> None:
        if _counts_as_locked():
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for name, definition in MAPS.items():
            self._maps[name] = bpf.create_map(name, definition, self._entries(name))
        vacant = bpf.Queue(self._maps["vacant"])
        for number in range(self._entries("vacant") if self.connections else 0):
            vacant.push(number_value(2 * number))
        self._object = read_object(_OBJECT.read_bytes())
        # The other one is loaded when there is an interface for it: the verifier takes its time.
        self.program(ETHERNET)

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
            case "connections" | "open":
                return max(1, 2 * self.connections)
            case "directions" | "vacant" if self.connections == 0:
                return 1
            case "directions":
                return 2 * (self.connections + _SPARE)
            case "vacant":
                return self.connections + _SPARE
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
        return self._attachment.interfaces

    @property
    def mode(self) -> str:
        """How it is attached: ``tcx`` or ``clsact``."""
        return self._attachment.mode

    def attach(self) -> None:
        """Attach to every interface whose packets are understood, and keep doing so.

        Raises KernelPathError when that is impossible at all of them.
        """
        try:
            self._attachment.begin()
        except OSError as error:
            raise KernelPathError(_why(error)) from None
        if not self._attachment.attached:
            raise KernelPathError("no interface takes it")

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`on_news` has to be called."""
        return self._attachment.fileno()

    def on_news(self) -> None:
        """Attach to interfaces that have come, and let go of those that are gone."""
        self._attachment.on_news()

    def left(self) -> Mapping[Why, int]:
        """Return how many packets of flows were left to the sockets since it was loaded, by why."""
        return {why: bpf.read_per_cpu(self._maps["left"], why)[0] for why in Why}

    def program(self, name: str) -> int:
        """Return the descriptor of a program, which stays this object's. Raises as :func:`bpf.load_program` does."""
        if name not in self._programs:
            program = self._object[name]
            if _is_before(5, 11):
                program = program.calling(_EXACT_CLOCK, instead_of=_COARSE_CLOCK)
            self._programs[name] = bpf.load_program(name, program.linked(self._maps))
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
        return _pieces(self.token, self._attachment, self._maps) if self.connections else {}

    def retire(self) -> Remains:
        """Leave attached what serves the TCP connections that there are, and close the rest. Call nothing else then."""
        for name in self._maps.keys() - _OF_CONNECTIONS:
            os.close(self._maps.pop(name))
        return Remains(self._attachment, self._programs, self._maps, self.token)

    def leave_to_parent(self) -> None:
        """In a forked child: close the sockets, which would otherwise be closed a second time, and nothing else."""
        self._attachment.close_sockets()

    def close(self) -> None:
        """Detach, and close everything."""
        self._attachment.close()
        for descriptor in (*self._programs.values(), *self._maps.values()):
            os.close(descriptor)
        self._programs.clear()
        self._maps.clear()


class Remains:
    """What is left of a kernel path that has TCP connections only. Owns descriptors."""

    def __init__(
        self,
        attachment: Attachment,
        programs: Mapping[str, int],
        maps: Mapping[str, int],
        token: bytes | None = None,
    ) -> None:
        """Take ownership, of programs and of maps by name, too. Where it watches for interfaces, it goes on to."""
        self._attachment = attachment
        self._programs = programs
        self.maps = maps
        self._token = token or _new_token()
        # One for packets of another kind is not loaded any more.
        attachment.program = programs.get

    @classmethod
    def of_plain(cls, plain: PlainRemains) -> Remains:
        """Return what :meth:`hand_on` was called on. It watches for interfaces, if that is possible."""
        attached, programs, maps = plain
        ours = {number: each if isinstance(each, int) else Filter(*each) for number, each in attached.items()}
        remains = cls(Attachment(programs.get, ours), programs, maps)
        try:
            remains._attachment.begin()
        except OSError as error:
            _LOG.warning("kernel path: connections of before do not follow to new interfaces: %s", error.strerror)
        return remains

    @property
    def pieces(self) -> dict[KernelPiece, int]:
        """What connections need to outlive this process; the descriptors stay this object's."""
        return _pieces(self._token, self._attachment, self.maps)

    @property
    def attachment(self) -> Attachment | None:
        """What has news of interfaces; None where it does not watch."""
        return self._attachment if self._attachment.has_begun else None

    def leave_to_parent(self) -> None:
        """In a forked child: as that of :class:`KernelPath`."""
        self._attachment.close_sockets()

    def hand_on(self) -> PlainRemains:
        """Return it for another program in this process, whose the descriptors are then; call nothing else."""
        self._attachment.close_sockets()
        attached = {
            number: each if isinstance(each, int) else (*each,) for number, each in self._attachment.attached.items()
        }
        return attached, dict(self._programs), dict(self.maps)

    def close(self) -> None:
        """Detach: what connections there are is no more."""
        self._attachment.close()
        for descriptor in (*self._programs.values(), *self.maps.values()):
            os.close(descriptor)


def _new_token() -> bytes:
    return secrets.token_bytes(8)


def _pieces(token: bytes, attachment: Attachment, maps: Mapping[str, int]) -> dict[KernelPiece, int]:
    found = {SETTINGS: maps["settings"], **attachment.links}
    return {KernelPiece(token, number): each for number, each in found.items()}


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
    """Whether this process has CAP_PERFMON in effect, or CAP_SYS_ADMIN, which includes it (capabilities(7))."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return True  # nobody knows
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) & (_PERFMON | _SYS_ADMIN))


def _counts_as_locked() -> bool:
    """Whether the memory of maps counts as locked (before Linux 5.11), and that is limited."""
    return _is_before(5, 11) and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY
