"""What lies in the maps of the kernel path, as ``path.bpf.c`` and the files it includes have it. Pure."""

from __future__ import annotations

import enum
import socket
import struct
import sys
from ipaddress import ip_address
from typing import Final, NamedTuple

from rpxy_l4.endings import Reason
from rpxy_l4.metrics.layout import CONNECT_BUCKETS, SESSION_BUCKETS

_ADDRESSES: Final = struct.Struct("!16s16sHH")
"""Source and destination, and their ports."""
_KIND: Final = struct.Struct("=BBxx")
"""Protocol and family."""
_WAY: Final = struct.Struct("=IIHHII")
"""Interface, counter, MTU, flags, and what the addresses and the ports add to a checksum."""
_PORT_BYTES: Final = 4
_MOST_SUM: Final = 0xFFFF
_LINK_LOCAL: Final = b"\xfe\x80"

KEY_BYTES: Final = _ADDRESSES.size + _KIND.size
FLOW_BYTES: Final = _ADDRESSES.size + _WAY.size

_TO_LOCAL: Final = 1
_FROM_CLIENT: Final = 2
_MOST_MTU: Final = 0xFFFF

COUNTER_WORDS: Final = 8
COUNTER_BYTES: Final = 8 * COUNTER_WORDS
PASSED: Final = 0
"""Packets and bytes that have passed; see :func:`amount_of`."""
LAST: Final = 1
"""CLOCK_MONOTONIC at its last tick, in nanoseconds."""
PROOF: Final = 2
"""0: no packet of this direction has been seen; 1: one has; 2: one of each has, and this direction is forwarded."""
SERIES: Final = 3
"""User space's: that of the flow's target in the counters of the program, plus 1; 0 is a counter that is free."""
TOLD: Final = 4
"""User space's: how much of it is in the counters of the program already."""
_PACKET_BITS: Final = 38
_WORD: Final = 1 << 64
_HALF: Final = (1 << 32) - 1


class Setting(enum.IntEnum):
    """Words of the settings."""

    EPOCH = 0
    """What was learned of clients in another one counts no more."""
    CHOOSING = 1
    CHOICES = 2
    PORTS = 3
    """Four words: two ranges of ports that connections towards targets may have, first and number."""
    FLAGS = 7
    MOST = 8
    """Connections at a time."""
    ENDED = 9
    """Connections that user space has ended."""
    TARGETS = 10
    """How many numbers of targets are in use."""
    COUNTED = 11
    """How many connections that were established, and how many that have ended, are in the counters of this program."""
    CLOSED_BY_USER_SPACE = 13
    """Of those that it has ended, how many were established."""
    ELSEWHERE = 14
    """How many there are in kernel paths of before."""
    BEGUN = 16
    OVER = 17
    """How many connections have begun by a SYN, and how many of them have ended; the program writes these."""
    OPENED = 18
    CLOSED = 19
    """How many were established, and how many of these have ended; these, too."""


SETTINGS_WORDS: Final = 24
TELL: Final = 1
NO_UDP: Final = 2
TCP: Final = 4
"""Flags: tell each connection's end; leave flows to the sockets; look for connections, as there may be some."""


TARGETS: Final = 256
"""How many the program can tell apart."""


def live_in(settings: memoryview) -> int:
    """Return how many connections are established, from the words of the settings."""
    # What ends is read first: never more of it than has begun.
    closed = closed_in(settings)
    return max(0, settings[Setting.OPENED] - closed)


def pending_in(settings: memoryview) -> int:
    """Return how many connections there are, with those not established as yet, from the words of the settings."""
    over = settings[Setting.OVER] + settings[Setting.ENDED]
    return max(0, settings[Setting.BEGUN] - over)


def begin_no_more(settings: memoryview) -> None:
    """Leave what is new to the sockets, datagrams too; what there is of connections goes on."""
    settings[Setting.CHOOSING] = Choosing.NONE
    settings[Setting.FLAGS] |= NO_UDP


def closed_in(settings: memoryview) -> int:
    """Return how many connections that were established have ended, from the words of the settings."""
    closed: int = settings[Setting.CLOSED] + settings[Setting.CLOSED_BY_USER_SPACE]
    return closed


class Choosing(enum.IntEnum):
    """How a new connection's target is chosen."""

    NONE = 0
    """New connections are left to the sockets."""
    BY_ADDRESS = 1
    BY_SOCKET = 2
    ANY = 3
    """One of the first so many choices."""


class State(enum.IntFlag):
    """Of one direction of a connection."""

    ESTABLISHED = 1
    FINISHED = 2
    """A FIN has passed,"""
    SECOND = 4
    """as the second of two."""
    RESENT = 8
    DOUBTFUL = 16
    """An RST has come to it that it may have ignored, and nothing from it since."""
    ANSWERED = 32
    """The target's SYN has passed. Of its direction."""


_MEMORY: Final = struct.Struct("=QQII")
_CLIENT: Final = struct.Struct("=QQIIII")
_TARGET: Final = struct.Struct("!16s16sHBB")
_TARGETS_WAY: Final = struct.Struct("=III")
_TARGETS_PROOF: Final = struct.Struct("=QQQQ")
TARGET_BYTES: Final = _TARGET.size + _TARGETS_WAY.size + _TARGETS_PROOF.size
_NUMBER: Final = struct.Struct("=I")
_PLACE: Final = struct.Struct("=II")
_PROGRESS: Final = struct.Struct("=6I3Q24x")
_LONGEST: Final = 5
"""The word of it that says how long packets may be for both ways."""
DIRECTION_BYTES: Final = FLOW_BYTES + _PROGRESS.size
WAY_PARTS: Final = (
    slice(_ADDRESSES.size, _ADDRESSES.size + 4),
    slice(_ADDRESSES.size + 8, _ADDRESSES.size + 12),
    slice(FLOW_BYTES + 4 * _LONGEST, FLOW_BYTES + 4 * _LONGEST + 4),
)
"""Where in a direction stands which way its packets take. The program writes what is beside it."""
BEGUN_PART: Final = slice(FLOW_BYTES + 24, FLOW_BYTES + 32)
"""Where in a client's direction stands when it began; 0: the connection has ended, or is not there as yet."""
_END: Final = struct.Struct(f"={KEY_BYTES}sII5Q")

REASONS: Final = (Reason.CLIENT_EOF, Reason.TARGET_EOF, Reason.CLIENT_RESET, Reason.TARGET_RESET)
"""Why a connection ended, as the program numbers it."""


class Total(enum.IntEnum):
    """Words of what has passed of the connections to a target."""

    OPENED = 0
    REFUSED = 1
    UNANSWERED = 2
    UNTOLD = 3
    """Ends for which there was no room."""
    BYTES_OUT = 4
    BYTES_IN = 5
    CLOSED = 6
    """One word for each of ``REASONS``."""
    CONNECT = CLOSED + len(REASONS)
    SESSION = CONNECT + len(CONNECT_BUCKETS) + 2


TOTAL_WORDS: Final = Total.SESSION + len(SESSION_BUCKETS) + 2


class MapKind(enum.IntEnum):
    """Kinds of maps: ``enum bpf_map_type`` in linux/bpf.h."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    QUEUE = 22
    RINGBUF = 27


class Why(enum.IntEnum):
    """Why a packet that belongs to a flow in the kernel path was left to the sockets.

    Of a TCP connection there, which has no sockets, it was dropped, and its sender told where it was too long; a
    connection's first packet was left to them.
    """

    FRAGMENT = 0
    OPTIONS = 1
    """It has IP options."""
    HOP_LIMIT = 2
    """It has no hop left."""
    TOO_BIG = 3
    """For the way to its destination."""
    AFTER_PAUSE = 4
    """It comes from a client who was silent, and is to be looked at."""
    MALFORMED = 5
    UNPROVEN = 6
    """No packet of the other direction has been seen as yet."""
    FAULT = 7
    """The kernel had no memory to change it; or the connection was being taken out."""
    BROKEN = 8
    """The kernel could not go on to change it, which cannot be; dropped."""
    CLIENT = 9
    """A SYN of a client of whom user space has to see a connection again."""
    TARGET = 10
    """A SYN for a target that has not answered as yet, or not any more."""
    LIMIT = 11
    """A SYN beyond ``tcp_max_connections``."""
    NO_PORT = 12
    """A SYN for which no port towards its target was found."""
    REFUSED = 13
    """What a target answered that refuses a connection; dropped, so that the client tries again, by the sockets."""


class MapDefinition(NamedTuple):
    """How a map is made."""

    kind: MapKind
    key_bytes: int
    value_bytes: int
    flags: int


_NO_PREALLOC: Final = 1
_MMAPABLE: Final = 1 << 10

MAPS: Final = {
    "flows": MapDefinition(MapKind.HASH, KEY_BYTES, FLOW_BYTES, _NO_PREALLOC),
    "counters": MapDefinition(MapKind.ARRAY, 4, COUNTER_BYTES, _MMAPABLE),
    "left": MapDefinition(MapKind.PERCPU_ARRAY, 4, 8, 0),
    "settings": MapDefinition(MapKind.ARRAY, 4, 8 * SETTINGS_WORDS, _MMAPABLE),
    "connections": MapDefinition(MapKind.HASH, KEY_BYTES, _NUMBER.size, 0),
    "directions": MapDefinition(MapKind.ARRAY, 4, DIRECTION_BYTES, _MMAPABLE),
    "open": MapDefinition(MapKind.HASH, _PLACE.size, _NUMBER.size, 0),
    "vacant": MapDefinition(MapKind.QUEUE, 0, _NUMBER.size, 0),
    "clients": MapDefinition(MapKind.LRU_HASH, KEY_BYTES, _CLIENT.size, 0),
    "targets": MapDefinition(MapKind.ARRAY, 4, TARGET_BYTES, _MMAPABLE),
    "answers": MapDefinition(MapKind.HASH, KEY_BYTES, 4, 0),
    "choices": MapDefinition(MapKind.ARRAY, 4, 4, 0),
    "remembered": MapDefinition(MapKind.LRU_HASH, KEY_BYTES, _MEMORY.size, 0),
    "scratches": MapDefinition(MapKind.PERCPU_ARRAY, 4, KEY_BYTES + _PLACE.size + 16 + 128, 0),
    "totals": MapDefinition(MapKind.PERCPU_ARRAY, 4, 8 * TOTAL_WORDS, 0),
    "told": MapDefinition(MapKind.ARRAY, 4, 8 * TOTAL_WORDS, _MMAPABLE),
    "ends": MapDefinition(MapKind.RINGBUF, 0, 0, 0),
}
"""By name in the program; how many entries each has is decided where it is made."""


def fingerprint() -> str:
    """Return a text that is another one when the maps mean something else."""
    words = [(kind.__name__, [(each.name, each.value) for each in kind]) for kind in (Setting, Total, State)]
    structures = [
        each.format
        for each in (_ADDRESSES, _KIND, _WAY, _PLACE, _PROGRESS, _MEMORY, _CLIENT, _TARGET, _TARGETS_WAY, _END)
    ]
    return repr((sorted(MAPS.items()), words, structures, [str(reason) for reason in REASONS]))


class Address(NamedTuple):
    """An IP address and a port, ready to be put in a map."""

    packed: bytes
    port: int

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.packed) == 4 else 6  # noqa: PLR2004  bytes of an IPv4 address

    @property
    def is_link_local(self) -> bool:
        """Whether it means something else at each interface (fe80::/10, as it is given out: RFC 4291 section 2.5.6)."""
        return self.packed[:2] == _LINK_LOCAL


def address(host: str, port: int) -> Address:
    """Return an address from an IP literal; the zone of a link-local one is left out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return Address(socket.inet_pton(family, host.partition("%")[0]), port)


def flow_key(source: Address, destination: Address, protocol: int) -> bytes:
    """Return the key of the packets that arrive with these addresses, which must be of one family."""
    both = _ADDRESSES.pack(source.packed, destination.packed, source.port, destination.port)
    return both + _KIND.pack(protocol, source.family)


def flow_value(
    key: bytes,
    source: Address,
    destination: Address,
    *,
    interface: int,
    counter: int,
    mtu: int,
    is_local: bool,
    is_from_client: bool,
) -> bytes:
    """Return what the packets of a key become: their new addresses, and the way that they take."""
    flags = _TO_LOCAL * is_local + _FROM_CLIENT * is_from_client
    both = _ADDRESSES.pack(source.packed, destination.packed, source.port, destination.port)
    return both + _WAY.pack(interface, counter, _mtu(mtu), flags, *_changes(key, both))


def _changes(before: bytes, after: bytes) -> tuple[int, int]:
    """Return what addresses and ports add to a sum over them (RFC 1624).

    That is a sum of 16-bit words with the carry added at the end, which is a remainder by 65535.
    """
    ports = _ADDRESSES.size - _PORT_BYTES
    return (
        (_number(after[:ports]) - _number(before[:ports])) % _MOST_SUM,
        (_number(after[ports:]) - _number(before[ports : _ADDRESSES.size])) % _MOST_SUM,
    )


def _number(words: bytes) -> int:
    return int.from_bytes(words, sys.byteorder)


def amount_of(passed: int, told: int) -> tuple[int, int]:
    """Return how many packets, and bytes, have passed from one word of a counter to a later one.

    Exact while that is less than 256 GiB and 67 million packets.
    """
    packets, amount = divmod((passed - told) % _WORD, 1 << _PACKET_BITS)
    return packets, amount


def counter_of(value: bytes) -> int:
    """Return the index of the counter that a flow's value names."""
    counter: int = _WAY.unpack_from(value, _ADDRESSES.size)[1]
    return counter


# TCP


class Remote(NamedTuple):
    """A target as the program knows it."""

    address: Address
    source: bytes
    """The one of our addresses that it sees."""
    interface: int
    mtu: int
    is_local: bool
    series: int
    """Of the counters of this program."""

    @property
    def answers(self) -> bytes:
        """The key of what it sends, whatever our port."""
        return flow_key(self.address, Address(self.source, 0), socket.IPPROTO_TCP)


def target_value(remote: Remote) -> bytes:
    """Return a target of which nothing is proven."""
    packed, port = remote.address
    head = _TARGET.pack(packed, remote.source, port, remote.address.family, remote.is_local)
    return head + _TARGETS_WAY.pack(remote.interface, _mtu(remote.mtu), remote.series) + _TARGETS_PROOF.pack(0, 0, 0, 0)


def series_of(target: bytes) -> int:
    """Return the series in a target's value."""
    series: int = _TARGETS_WAY.unpack_from(target, _TARGET.size)[2]
    return series


def client_key(client: Address, local: Address) -> bytes:
    """Return the key of a client at a listener, whatever the client's port."""
    return flow_key(Address(client.packed, 0), local, socket.IPPROTO_TCP)


def client_value(epoch: int, until: int, interface: int, mtu: int, *, is_local: bool) -> bytes:
    """Return what is known of a client until a time, CLOCK_MONOTONIC in nanoseconds."""
    return _CLIENT.pack(epoch, until, interface, _mtu(mtu), is_local, 0)


def ends_of(key: bytes) -> tuple[bytes, bytes]:
    """Return the addresses in a key, source and destination, as they are in packets."""
    _, family = _KIND.unpack_from(key, _ADDRESSES.size)
    source, destination, _, _ = _ADDRESSES.unpack_from(key)
    bytes_ = 4 if family == 4 else 16  # noqa: PLR2004  that is IPv4
    return source[:bytes_], destination[:bytes_]


def leads_by(client: bytes, interface: int, mtu: int, is_local: bool) -> bool:
    """Return whether packets to a client are to take this way."""
    return _CLIENT.unpack(client)[2:5] == (interface, _mtu(mtu), is_local)


def memory_value(since: int) -> bytes:
    """Return what makes a target's key one that nobody has a connection with for a minute, from a time on."""
    return _MEMORY.pack(since, 0, 0, 0)


def _mtu(mtu: int) -> int:
    return mtu if mtu <= _MOST_MTU else 0


def number_value(number: int) -> bytes:
    """Return the value that stands for a direction."""
    return _NUMBER.pack(number)


def number_of(value: bytes) -> int:
    """Return the number of a direction."""
    number: int = _NUMBER.unpack(value)[0]
    return number


def place_key(number: int, begun: int) -> bytes:
    """Return what a connection is called that has not ended, by its even number, or is not established, by the odd."""
    return _PLACE.pack(number, begun & _HALF)


def other_number(number: int) -> int:
    """Return the number of the other direction of the same connection."""
    return number ^ 1


def is_from_client(number: int) -> bool:
    """Return whether a direction is that of a client."""
    return not number & 1


class Progress(NamedTuple):
    """How far one direction of a connection is."""

    state: int
    begun: int
    """CLOCK_MONOTONIC in nanoseconds; 0, of a client's: the connection has ended, or is not there as yet."""
    last: int
    """The same, but at the clock's last tick: it may be before it began."""
    bytes: int


def progress_of(value: bytes) -> Progress:
    """Return how far a direction is."""
    state, _, _, _, _, _, begun, last, amount = _PROGRESS.unpack_from(value, FLOW_BYTES)
    return Progress(state, begun, last, amount)


def other_key(key: bytes, value: bytes) -> bytes:
    """Return the key of the other direction."""
    source, destination, source_port, destination_port = _ADDRESSES.unpack_from(value)
    return _ADDRESSES.pack(destination, source, destination_port, source_port) + key[_ADDRESSES.size :]


def target_of(value: bytes) -> int:
    """Return the number of the target of a connection."""
    return counter_of(value)


def way_of(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return where packets of a direction go: destination, and our address."""
    source, destination = ends_of(value[: _ADDRESSES.size] + key[_ADDRESSES.size :])
    return destination, source


def with_way(value: bytes, interface: int, mtu: int, is_local: bool) -> bytes:
    """Return a direction whose packets take another way."""
    _, counter, _, flags, *changes = _WAY.unpack_from(value, _ADDRESSES.size)
    flags = flags & _FROM_CLIENT | _TO_LOCAL * is_local
    way = _WAY.pack(interface, counter, _mtu(mtu), flags, *changes)
    progress = [*_PROGRESS.unpack_from(value, FLOW_BYTES)]
    longest = [each for each in (progress[_LONGEST], _mtu(mtu)) if each]
    progress[_LONGEST] = min(longest, default=0)
    return value[: _ADDRESSES.size] + way + _PROGRESS.pack(*progress)


class End(NamedTuple):
    """How a connection has ended."""

    client: tuple[str, int]
    target: int
    """Number in the map of targets."""
    reason: Reason
    begun: int
    connected: int
    ended: int
    """CLOCK_MONOTONIC in nanoseconds."""
    bytes_in: int
    bytes_out: int


def read_end(record: bytes) -> End:
    """Return what the program says of an end."""
    key, target, reason, begun, connected, ended, bytes_in, bytes_out = _END.unpack_from(record)
    return End(client_of(key), target, REASONS[reason], begun, connected, ended, bytes_in, bytes_out)


def client_of(key: bytes) -> tuple[str, int]:
    """Return address and port of the client, from the key of what it sends."""
    return str(ip_address(ends_of(key)[0])), _ADDRESSES.unpack_from(key)[2]
