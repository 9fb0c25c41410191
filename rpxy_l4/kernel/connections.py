"""TCP connections in the kernel path: the supervisor's part.

The program begins and ends connections by itself, and counts. Here it is told where they may go, what it has counted is
read, and those that nobody ends are taken out.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from rpxy_l4.endings import Reason
from rpxy_l4.kernel import bpf
from rpxy_l4.kernel.bpf import Map, Queue
from rpxy_l4.kernel.layout import (
    BEGUN_PART,
    DIRECTION_BYTES,
    MAPS,
    SETTINGS_WORDS,
    TARGET_BYTES,
    TARGETS,
    TCP,
    TELL,
    TOTAL_WORDS,
    WAY_PARTS,
    Choosing,
    End,
    Progress,
    Remote,
    Setting,
    State,
    begin_no_more,
    client_of,
    closed_in,
    ends_of,
    is_from_client,
    leads_by,
    live_in,
    memory_value,
    number_of,
    number_value,
    other_key,
    other_number,
    pending_in,
    place_key,
    progress_of,
    read_end,
    series_of,
    target_of,
    target_value,
    way_of,
    with_way,
)
from rpxy_l4.kernel.routes import Routes

_NANOSECONDS: Final = 1_000_000_000
_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT: Final = 1024
_LAST_PORT: Final = 65_535
_LEAST_PORTS: Final = 64

UNANSWERED_SECONDS: Final = 10
"""After which a connection that has not come about is forgotten."""
CLOSING_SECONDS: Final = 60
"""After which one is forgotten that has ended, or seems to have."""
SILENT_SECONDS: Final = 7440
"""After which one is forgotten in which nothing happens: two hours and four minutes (RFC 5382 section 5)."""

# The header of a record (Documentation/bpf/ringbuf.rst): its length with two flags, and what is the kernel's.
_RECORD: Final = struct.Struct("=II")
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_LENGTH: Final = _DISCARDED - 1


class Plan(NamedTuple):
    """Where connections go."""

    choosing: Choosing
    remotes: Sequence[Remote | None]
    """Targets; None: only user space can reach it."""
    choices: Sequence[int]
    """Places in ``remotes``."""
    tells: bool
    """Whether each end is to be told."""


class Lost(NamedTuple):
    """A connection that was taken out."""

    series: int
    end: End | None
    """None: it has not come about."""


class Connections:
    """The connections of one kernel path. Owns mappings of its maps."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        """Look after these maps, whose descriptors stay the caller's. Raises OSError."""
        self._maps = dict(maps)
        self._settings = _mapped(maps["settings"], 8 * SETTINGS_WORDS).cast("Q")
        self._targets = _mapped(maps["targets"], TARGETS * TARGET_BYTES)
        self._told = _mapped(maps["told"], TARGETS * 8 * TOTAL_WORDS).cast("Q")
        self._connections = Map(maps["connections"], MAPS["connections"])
        self._directions = _mapped(maps["directions"], bpf.entries_of(maps["directions"]) * DIRECTION_BYTES)
        self._open = Map(maps["open"], MAPS["open"])
        self._vacant = Queue(maps["vacant"])
        self._ends = _Ends(maps["ends"])
        self._slots: dict[tuple[int, bytes, int], int] = {}
        """By series and address: the number of a target in the maps. It is never another's."""
        self._remotes: dict[int, Remote] = {}
        self._sweep: Iterator[Lost | None] = iter(())

    @property
    def live(self) -> int:
        """How many there are, without those that are not established."""
        return live_in(self._settings)

    @property
    def pending(self) -> int:
        """How many there are, with those that are not established as yet."""
        return pending_in(self._settings)

    def uncounted(self) -> tuple[int, int]:
        """Return how many were established, and how many of these have ended, since this was last asked."""
        settings = self._settings
        # In this order: never more that have ended than were opened.
        closed = closed_in(settings)
        opened = settings[Setting.OPENED]
        found = opened - settings[Setting.COUNTED], closed - settings[Setting.COUNTED + 1]
        settings[Setting.COUNTED], settings[Setting.COUNTED + 1] = opened, closed
        return found

    # Where they go

    def follow(self, plan: Plan) -> str | None:
        """Have new connections go where the plan says; or say why they cannot."""
        settings = self._settings
        self.pause()
        try:
            ports = _ports()
        except OSError:
            return "net.ipv4.ip_local_port_range cannot be read"
        if ports[1] + ports[3] < _LEAST_PORTS:
            return "net.ipv4.ip_local_port_range leaves no ports"
        numbers = []
        for remote in plan.remotes:
            number = 0 if remote is None else self._number(remote)
            if number is None:
                return f"more than {TARGETS - 1} different targets since the start"
            numbers.append(number)
        choices = Map(self._maps["choices"], MAPS["choices"])
        for bucket, place in enumerate(plan.choices):
            choices.replace(bucket.to_bytes(4, "little"), numbers[place].to_bytes(4, "little"))
        settings[Setting.CHOICES] = len(plan.choices)
        for number, word in enumerate(ports):
            settings[Setting.PORTS + number] = word
        settings[Setting.FLAGS] = TCP | TELL * plan.tells
        settings[Setting.CHOOSING] = plan.choosing
        return None

    def _number(self, remote: Remote) -> int | None:
        """Return the number of a target, which the program knows then; None when there are too many. 0 is nobody's."""
        key = (remote.series, *remote.address)
        number = self._slots.setdefault(key, len(self._slots) + 1)
        if number >= TARGETS:
            del self._slots[key]
            return None
        answers, before = Map(self._maps["answers"], MAPS["answers"]), self._remotes.get(number)
        if before != remote:
            if before is not None:
                answers.remove(before.answers)
            self._targets[number * TARGET_BYTES : (number + 1) * TARGET_BYTES] = target_value(remote)
            self._remotes[number] = remote
            self._settings[Setting.TARGETS] = max(self._settings[Setting.TARGETS], number + 1)
        # Two targets of one address, in two routes: the later one has the answers, and is the one in use.
        answers.replace(remote.answers, number.to_bytes(4, "little"))
        return number

    def avoid(self, other: Connections, seconds: float) -> None:
        """Give no port to new connections that another kernel path has in use, for so long and a minute more."""
        remembered = Map(self._maps["remembered"], MAPS["remembered"])
        until = time.monotonic_ns() + int(seconds * _NANOSECONDS)
        for key, value in other._connections.items():
            if not is_from_client(number_of(value)):
                remembered.replace(key, memory_value(until))

    def begin_epoch(self, epoch: int) -> None:
        """Believe only what is learned of clients in this epoch: user space is to see a connection of each first."""
        self._settings[Setting.EPOCH] = epoch

    def check_clients(self, routes: Routes) -> None:
        """Forget the clients to whom packets take another way by now."""
        clients = Map(self._maps["clients"], MAPS["clients"])
        for key, value in [*clients.items()]:
            client, local = ends_of(key)
            passage = routes.find(client, local)
            if passage is None or not leads_by(value, *passage):
                clients.remove(key)

    def allow(self, most: int, elsewhere: int = 0) -> None:
        """Let no more than so many be open; ``elsewhere`` is how many there are in kernel paths of before."""
        self._settings[Setting.MOST] = max(0, most)
        self._settings[Setting.ELSEWHERE] = elsewhere

    def begin_no_more(self) -> None:
        """Leave what is new to the sockets, datagrams too; what there is goes on."""
        begin_no_more(self._settings)

    def go_on(self, plan: Plan) -> None:
        """Follow this plan, as before."""
        self._settings[Setting.CHOOSING] = plan.choosing

    def pause(self) -> None:
        """Leave what is new to the sockets until the next :meth:`follow`, or :meth:`go_on`."""
        self._settings[Setting.CHOOSING] = Choosing.NONE

    # What has passed

    def news(self) -> Iterator[tuple[int, list[int]]]:
        """Yield what has been counted since this was last told: the series of a target, and words of ``Total``."""
        for number in range(1, self._settings[Setting.TARGETS]):
            totals = bpf.read_per_cpu(self._maps["totals"], number, TOTAL_WORDS)
            told = self._told[number * TOTAL_WORDS : (number + 1) * TOTAL_WORDS]
            if told.tolist() != totals:
                change = [now - before for now, before in zip(totals, told, strict=True)]
                for word, value in enumerate(totals):
                    told[word] = value
                yield self._series(number), change

    def ends(self, most: int) -> Iterator[tuple[int, End]]:
        """Yield up to ``most`` ends that were told, with the series of the target."""
        for record in self._ends.take(most):
            end = read_end(record)
            yield self._series(end.target), end

    def _series(self, number: int) -> int:
        return series_of(bytes(self._targets[number * TARGET_BYTES : (number + 1) * TARGET_BYTES]))

    # Those that nobody ends

    def sweep(self, most: int) -> Iterator[Lost]:
        """Look at the next ``most`` entries, or at those that are left of a round; yield what is taken out."""
        for _ in range(most):
            try:
                found = next(self._sweep)
            except StopIteration:
                self._sweep = self._look_at_all()
                return
            if found is not None:
                yield found

    def _look_at_all(self) -> Iterator[Lost | None]:
        for key, value in self._connections.items():
            yield self._look_at(key, number_of(value), time.monotonic_ns())

    def _look_at(self, key: bytes, number: int, now: int) -> Lost | None:
        pair = self._pair(number)
        if _is_left_over(key, number, pair, now):
            if self._is(key, number) and _is_left_over(key, number, self._pair(number), now):
                self._connections.remove(key)
            return None
        if not is_from_client(number):
            return None
        this, other = map(progress_of, pair)
        patience, reason = _patience(this, other)
        if now - max(this.last, other.last) < patience * _NANOSECONDS:
            return None
        return self._take_out(key, number, pair, reason)

    def end_all(self, series: frozenset[int] | None, reason: Reason) -> Iterator[Lost]:
        """Take out all with targets of these series, None: of any; yield them."""
        for key, value in [*self._connections.items()]:
            number = number_of(value)
            pair = self._pair(number)
            if is_from_client(number) and (series is None or self._series(target_of(pair[0])) in series):
                found = self._take_out(key, number, pair, reason)
                if found is not None:
                    yield found

    def _take_out(self, key: bytes, number: int, pair: tuple[bytes, bytes], reason: Reason) -> Lost | None:
        """End a connection whose client has this key and number, unless it is another one by now than the pair says."""
        begun = progress_of(pair[0]).begun
        if not _belongs(key, pair) or not self._open.remove(place_key(number, begun)):
            return None  # it has ended
        # From here on nobody else ends it. Its packets are dropped.
        value, other_value = self._pair(number)
        self._write(number, BEGUN_PART, bytes(8))
        was_established = not self._open.remove(place_key(other_number(number), begun))
        self._connections.remove(key)
        self._connections.remove(other_key(key, value))
        with contextlib.suppress(OSError):  # then nobody has its place any more
            self._vacant.push(number_value(number))
        this, other, series = progress_of(value), progress_of(other_value), self._series(target_of(value))
        self._settings[Setting.ENDED] += 1
        if not was_established:
            return Lost(series, None)
        self._settings[Setting.CLOSED_BY_USER_SPACE] += 1
        ended = time.monotonic_ns()
        end = End(client_of(key), target_of(value), reason, this.begun, other.begun, ended, this.bytes, other.bytes)
        return Lost(series, end)

    def _direction(self, number: int) -> bytes:
        return bytes(self._directions[number * DIRECTION_BYTES : (number + 1) * DIRECTION_BYTES])

    def _pair(self, number: int) -> tuple[bytes, bytes]:
        """Return a direction, and the other one of the same connection."""
        return self._direction(number), self._direction(other_number(number))

    def _write(self, number: int, part: slice, data: bytes) -> None:
        start = number * DIRECTION_BYTES
        self._directions[start + part.start : start + part.stop] = data

    def _is(self, key: bytes, number: int) -> bool:
        """Whether the packets of this key are, still, of this direction."""
        return self._connections.find(key) == number_value(number)

    def lead_anew(self, routes: Routes) -> None:
        """Have the packets of all connections take the ways that the kernel knows now."""
        for key, number in [(key, number_of(value)) for key, value in self._connections.items()]:
            value = self._direction(number)
            passage = routes.find(*way_of(key, value))
            if passage is None or with_way(value, *passage) == value or not _belongs(key, self._pair(number)):
                continue
            for part in WAY_PARTS:
                self._write(number, part, with_way(value, *passage)[part])

    def close(self) -> None:
        """Let go of the mappings."""
        for each in (self._settings, self._targets, self._told, self._directions):
            each.release()
        self._ends.close()


def _belongs(key: bytes, pair: tuple[bytes, bytes]) -> bool:
    """Whether the first of two directions has this key, or had it last."""
    return other_key(key, pair[1]) == key


def _is_left_over(key: bytes, number: int, pair: tuple[bytes, bytes], now: int) -> bool:
    """Whether a key is what somebody left who was interrupted when he put a connection in, or took it out."""
    if not _belongs(key, pair):
        return True  # its place is another one's by now
    this, other = map(progress_of, pair)
    begun = this.begun if is_from_client(number) else other.begun
    return not begun and now - max(this.last, other.last) >= UNANSWERED_SECONDS * _NANOSECONDS


def _patience(this: Progress, other: Progress) -> tuple[int, Reason]:
    """Return for how many seconds there may be silence, and what it means then."""
    if not this.state & State.ESTABLISHED:
        return UNANSWERED_SECONDS, Reason.IDLE
    if this.state & other.state & State.FINISHED:  # and the last word is missing
        return CLOSING_SECONDS, Reason.TARGET_EOF if this.state & State.SECOND else Reason.CLIENT_EOF
    if (this.state | other.state) & State.DOUBTFUL:
        return CLOSING_SECONDS, Reason.CLIENT_RESET if other.state & State.DOUBTFUL else Reason.TARGET_RESET
    return SILENT_SECONDS, Reason.IDLE


def _ports() -> tuple[int, int, int, int]:
    """Return two ranges, first and number, of the ports that the kernel gives to no socket by itself."""
    low, high = map(int, _PORT_RANGE.read_text("ascii").split())
    return _FIRST_PORT, max(0, low - _FIRST_PORT), high + 1, max(0, _LAST_PORT - high)


def _mapped(descriptor: int, length: int, **how: int) -> memoryview:
    """Map memory of a map, for this process and none that it forks."""
    memory = mmap.mmap(descriptor, length, **how)
    memory.madvise(mmap.MADV_DONTFORK)
    return memoryview(memory)


class _Ends:
    """The program's records (Documentation/bpf/ringbuf.rst). Owns mappings."""

    def __init__(self, descriptor: int) -> None:
        """Read the buffer of this descriptor, which stays the caller's. Raises OSError."""
        size = bpf.entries_of(descriptor)
        self._mask = size - 1
        self._consumed = _mapped(descriptor, mmap.PAGESIZE).cast("Q")
        # The data twice, one after the other, so that no record has a break.
        self._all = _mapped(descriptor, mmap.PAGESIZE + 2 * size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._produced = self._all[: mmap.PAGESIZE].cast("Q")

    def take(self, most: int) -> Iterator[bytes]:
        at = self._consumed[0]
        end = self._produced[0]
        while at < end and most:
            start = mmap.PAGESIZE + (at & self._mask)
            length, _ = _RECORD.unpack_from(self._all, start)
            if length & _BUSY:
                return
            start += _RECORD.size
            data, is_discarded = bytes(self._all[start : start + (length & _LENGTH)]), length & _DISCARDED
            at += (_RECORD.size + (length & _LENGTH) + 7) & ~7
            self._consumed[0] = at
            if not is_discarded:
                most -= 1
                yield data

    def close(self) -> None:
        self._consumed.release()
        self._produced.release()
        self._all.release()
