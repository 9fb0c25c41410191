"""Where programs are attached: at the ingress of every interface whose packets they understand."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rpxy_l4.kernel import bpf
from rpxy_l4.kernel.netlink import Filter, Link, Netlink, Watch

_LOG: Final = logging.getLogger(__name__)

# linux/if_arp.h: what packets begin with at ingress.
ETHERNET: Final = "ethernet"
_PROGRAMS: Final = {
    1: ETHERNET,  # ARPHRD_ETHER
    772: ETHERNET,  # ARPHRD_LOOPBACK
    0xFFFE: "plain",  # ARPHRD_NONE: tun, WireGuard
}
_FIRST_PRIORITY: Final = 49_152
_MOST_PRIORITIES: Final = 64
_FILTER_NAME: Final = "rpxy-l4"


class Attachment:
    """Programs at interfaces. Owns links or, before Linux 6.6, filters, and sockets."""

    def __init__(
        self, program: Callable[[str], int | None], attached: Mapping[int, int | Filter] | None = None
    ) -> None:
        """``program`` says which one to attach, by name; None: none. Own what is attached, by interface, already.

        It may raise as :func:`bpf.load_program` does.
        """
        self.program = program
        self.attached: dict[int, int | Filter] = dict(attached or {})
        """By interface: the descriptor of a link, or a filter."""
        self._has_links = not any(isinstance(each, Filter) for each in self.attached.values())
        """Whether the kernel knows links at the ingress of an interface."""
        self._names: dict[int, str] = {}
        self._refused: set[int] = set()
        """Interfaces that did not take it."""
        self._netlink: Netlink | None = None
        self._watch: Watch | None = None

    @property
    def links(self) -> dict[int, int]:
        """The descriptors of links by interface; they stay this object's."""
        return {number: each for number, each in self.attached.items() if isinstance(each, int)}

    @property
    def interfaces(self) -> list[str]:
        """The names of the interfaces where something is attached."""
        return sorted(self._names[number] for number in self.attached)

    @property
    def mode(self) -> str:
        """How it is attached: ``tcx`` or ``clsact``."""
        return "tcx" if self._has_links else "clsact"

    def begin(self) -> None:
        """Attach to all interfaces that there are, and watch for others. Raises OSError."""
        self._netlink = Netlink()
        self._watch = Watch(routes=False)
        self._attach_to_new()

    @property
    def has_begun(self) -> bool:
        """Whether it watches for interfaces."""
        return self._watch is not None

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`on_news` has to be called."""
        assert self._watch is not None  # noqa: S101  begun before
        return self._watch.fileno()

    def on_news(self) -> None:
        """Attach to interfaces that have come, and let go of those that are gone."""
        assert self._watch is not None  # noqa: S101  begun before
        self._watch.drain()
        try:
            self._attach_to_new()
        except OSError as error:
            _LOG.warning("kernel path: cannot look for new interfaces: %s", error.strerror)

    def _attach_to_new(self) -> None:
        assert self._netlink is not None  # noqa: S101  begun before
        links = {link.number: link for link in self._netlink.links()}
        for number in self.attached.keys() - links.keys():
            self._detach(number)
        self._names = {number: link.name for number, link in links.items()}
        for number, link in links.items():
            if number not in self.attached and number not in self._refused and link.kind in _PROGRAMS:
                self._try_to_attach(link)
        self._refused &= links.keys()

    def _try_to_attach(self, link: Link) -> None:
        """Attach to an interface, if it takes one more program. Raises OSError when none would."""
        try:
            program = self.program(_PROGRAMS[link.kind])
            if program is not None:
                self.attached[link.number] = self._attach_to(link.number, program)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise
            if error.errno != errno.ENODEV:  # not gone meanwhile
                self._refused.add(link.number)
                _LOG.warning("kernel path: cannot be attached to %s: %s", link.name, error.strerror)
        except bpf.VerifierError as error:
            self._refused.add(link.number)
            _LOG.warning("kernel path: the kernel refuses the program for %s: %s", link.name, error.last_words)

    def _attach_to(self, interface: int, program: int) -> int | Filter:
        if self._has_links:
            try:
                return bpf.link_to_ingress(program, interface)
            except OSError as error:
                if error.errno != errno.EINVAL or self.attached:
                    raise
            self._has_links = False
        return self._filter_at(interface, program)

    def _filter_at(self, interface: int, program: int) -> Filter:
        """Attach as kernels before 6.6 can."""
        assert self._netlink is not None  # noqa: S101  begun before
        name = f"{_FILTER_NAME}:{os.getpid()}:{_birth(os.getpid())}"
        for priority in range(_FIRST_PRIORITY, _FIRST_PRIORITY + _MOST_PRIORITIES):
            with contextlib.suppress(FileExistsError):
                self._netlink.add_filter(interface, program, name, priority)
                return Filter(interface, priority, 1, name)
        raise OSError(errno.EBUSY, "too many programs are attached")

    def _detach(self, number: int) -> None:
        attached = self.attached.pop(number)
        if isinstance(attached, int):
            # Workers may have copies of the link, which mean nothing then.
            with contextlib.suppress(OSError):  # the interface is gone
                bpf.detach(attached)
            os.close(attached)
        else:
            with contextlib.suppress(OSError):
                self._remove_filter(attached)

    def _remove_filter(self, found: Filter) -> None:
        if self._netlink is None:
            self._netlink = Netlink()
        self._netlink.remove_filter(found)

    def close_sockets(self) -> None:
        """Watch no more. What is attached stays so, and whose it is has to be settled by the caller."""
        for each in (self._netlink, self._watch):
            if each is not None:
                each.close()
        self._netlink = self._watch = None

    def close(self) -> None:
        """Detach all, and watch no more."""
        for number in [*self.attached]:
            self._detach(number)
        self.close_sockets()


def remove_stale_filters() -> None:
    """Remove what processes of ours that are gone have left at interfaces, on kernels before 6.6."""
    with contextlib.suppress(OSError), contextlib.closing(Netlink()) as netlink:
        for link in netlink.links():
            _remove_stale(netlink, link.number)


def _remove_stale(netlink: Netlink, interface: int) -> None:
    for found in netlink.filters(interface):
        if _is_stale(found.name):
            netlink.remove_filter(found)


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
