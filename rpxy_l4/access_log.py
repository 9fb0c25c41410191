"""The access log: one line for each ended session, and a limited number for those that a flood makes.

A line is ``key=value`` pairs in a fixed order; a key without a value is left out. Values that come from the network are
escaped, so a line is always one line, whatever a client sends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rpxy_l4.endings import Detected
from rpxy_l4.limits import RateLimit
from rpxy_l4.logs import Sink, timestamp
from rpxy_l4.verdict import Match, Transport

FLUSH_BYTES: Final = 65_536
# What browsers offer fits many times; a client that offers kilobytes shall not fill the log.
_ALPN_BYTES: Final = 128
_PLAIN: Final = frozenset(range(0x21, 0x7F)) - set(b'"\\,=')


def endpoint(host: str, port: int) -> str:
    """Return ``1.2.3.4:5`` or ``[::1]:5``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def alpn_text(names: tuple[bytes, ...]) -> str:
    """Return ALPN names joined by commas, every byte that is not plain in hexadecimal; a long list is cut off."""
    known, wire = [], 0
    for name in names:
        wire += len(name) + 1
        if wire > _ALPN_BYTES:
            known.append("...")
            break
        known.append("".join(chr(b) if b in _PLAIN else f"\\x{b:02x}" for b in name))
    return ",".join(known)


def describe(
    client: str, listener: str, transport: Transport, detected: Detected, match: Match | None, route: str | None
) -> str:
    """Return the fields that the line of every session begins with; ``route`` is the name of one."""
    sni = f" sni={match.server_name}" if match is not None and match.server_name else ""
    alpn = f" alpn={alpn_text(match.alpn)}" if match is not None and match.alpn else ""
    taken = f" route={route}" if route is not None else ""
    return f"client={client} listener={listener} transport={transport} detected={detected}{sni}{alpn}{taken}"


class AccessLog:
    """Collects lines and writes them in batches; its owner flushes it soon after the first line and at the end."""

    def __init__(self, sink: Sink, worker: str, on_pending: Callable[[], object]) -> None:
        """Write lines to ``sink``, which stays the caller's; ``worker`` is the value of that field.

        ``on_pending`` is called when there is something to flush.
        """
        self._sink = sink
        self._on_pending = on_pending
        self._tail = f" worker={worker}\n"
        self._lines: list[str] = []
        self._second = -1
        self._stamp = ""
        self._size = 0
        # Scanners and floods come by the thousand: of each reason, ten lines a second tell the story.
        self._many = RateLimit(burst=10, window=1.0)

    @property
    def dropped(self) -> int:
        """Lines that found no room, since the process started."""
        return self._sink.dropped

    def session(self, fields: str, age: float = 0.0) -> None:
        """Add the line of a session that ended ``age`` seconds ago; ``fields`` are its ``key=value`` pairs."""
        self._add(f"ts={self._at(time.time() - age)} event=session {fields}")

    def refused(self, fields: str, kind: str, now: float) -> None:
        """Add the line of a refused session, unless lines of its kind are too many just now. ``now`` is monotonic."""
        self._add_of_many("refused", fields, kind, now)

    def session_of_many(self, fields: str, kind: str, now: float) -> None:
        """Add the line of a session that ended in a way in which a flood ends, limited as those of refused ones."""
        self._add_of_many("session", fields, kind, now)

    def _add_of_many(self, event: str, fields: str, kind: str, now: float) -> None:
        repeated = self._many.allow((event, kind), now)
        if repeated is None:
            return
        more = f" repeated={repeated}" if repeated else ""
        self._add(f"ts={self._at(time.time())} event={event} {fields}{more}")

    def _at(self, now: float) -> str:
        """Return what ``timestamp`` does, for a tenth of its price: the part that stays for a second is kept."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = timestamp(second).removesuffix(".000Z")
        return f"{self._stamp}.{int(now * 1000) % 1000:03d}Z"

    def _add(self, line: str) -> None:
        if not self._lines:
            self._on_pending()
        self._lines.append(line + self._tail)
        self._size += len(line)
        if self._size >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        if self._lines:
            self._sink.write("".join(self._lines).encode("utf-8", "backslashreplace"))
            self._lines.clear()
            self._size = 0
