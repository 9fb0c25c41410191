"""The PROXY protocol, versions 1 and 2: who the client is, told by a proxy in front of us, or by us to a target.

Source: "The PROXY protocol, versions 1 & 2", https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from rpxy_l4.snapshot import ProxyVersion
from rpxy_l4.verdict import NO_MATCH, NeedMore, NoMatch

_V1_START: Final = b"PROXY "
_V1_FAMILIES: Final = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN")
_V1_LINE: Final = re.compile(
    rb"PROXY (?:(UNKNOWN)(?: [^\r]*)?"
    rb"|(TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))"
)
_V1_MAX: Final = 107  # section 2.1: the longest line, with its CRLF
_CRLF: Final = b"\r\n"

_V2_START: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEADER: Final = 16
_V2_COMMAND_AT: Final = 12
_V2_FAMILY_AT: Final = 13
_V2_LOCAL: Final = 0x20
_V2_PROXY: Final = 0x21
_V2_TCP4: Final = 0x11
_V2_TCP6: Final = 0x21
_V2_UNSPEC: Final = 0
_V2_INET: Final = 1
_V2_INET6: Final = 2
_V2_UNIX: Final = 3
# How many bytes of addresses follow the header. Those of unix sockets mean nothing on another machine.
_V2_ADDRESSES: Final = {_V2_UNSPEC: 0, _V2_INET: 12, _V2_INET6: 36, _V2_UNIX: 216}
_V2_MAX_TRANSPORT: Final = 2
# Addresses take 216 bytes at most. The rest is TLVs: a client's certificate is the largest one in use, a few KiB.
_V2_MAX_REST: Final = 16_384
_MAX_PORT: Final = 65_535

_IPV4_SIZE: Final = 4
_IPV6_SIZE: Final = 16
# RFC 4291 2.5.5.2
_MAPPED: Final = bytes(10) + b"\xff\xff"
_MAPPED_TEXT: Final = "::ffff:"

Endpoint = tuple[str, int]
"""IP address in canonical text (IPv4 where an IPv6 address maps one), port."""


@dataclass(frozen=True, slots=True)
class Header:
    """A whole PROXY header."""

    consumed: int
    """Its length in bytes: what the client itself sent begins there."""
    source: Endpoint | None
    """The client; None: the addresses of the connection itself stand (LOCAL, UNKNOWN, UNSPEC, unix)."""
    destination: Endpoint | None
    """Whom the client connected to; None together with ``source``."""


def parse(data: bytes | bytearray) -> Header | NeedMore | NoMatch:
    """Parse the header at the beginning of the data, of either version.

    NeedMore: what is there may become a header; asking again below ``total`` bytes gives the same answer.
    NoMatch: there is none, or it is malformed, or longer than 107 bytes (version 1) or 16 KiB (version 2).
    TLVs are passed over, and not checked.
    """
    if data.startswith(_V1_START):
        return _parse_v1(data)
    if data.startswith(_V2_START):
        return _parse_v2(data)
    if _V1_START.startswith(data) or _V2_START.startswith(data):
        return NeedMore(len(data) + 1)
    return NO_MATCH


def build(version: ProxyVersion, source: Endpoint, destination: Endpoint) -> bytes:
    """Return the header that tells a target about a TCP client.

    IPv4-mapped addresses are sent as IPv4. Where only one address is IPv6, the other is sent as IPv4-mapped.
    """
    ips = [_unmapped(_packed(host)) for host, _port in (source, destination)]
    is_ipv4 = all(len(ip) == _IPV4_SIZE for ip in ips)
    if version is ProxyVersion.V1:
        prefix = "" if is_ipv4 else _MAPPED_TEXT
        source_ip, destination_ip = (prefix + _ip_text(ip) if len(ip) == _IPV4_SIZE else _ip_text(ip) for ip in ips)
        family = "TCP4" if is_ipv4 else "TCP6"
        return f"PROXY {family} {source_ip} {destination_ip} {source[1]} {destination[1]}\r\n".encode("ascii")
    if not is_ipv4:
        ips = [_MAPPED + ip if len(ip) == _IPV4_SIZE else ip for ip in ips]
    rest = b"".join((*ips, source[1].to_bytes(2, "big"), destination[1].to_bytes(2, "big")))
    return _V2_START + bytes((_V2_PROXY, _V2_TCP4 if is_ipv4 else _V2_TCP6)) + len(rest).to_bytes(2, "big") + rest


def _parse_v1(data: bytes | bytearray) -> Header | NeedMore | NoMatch:
    end = data.find(_CRLF, 0, _V1_MAX)
    if end < 0:
        known = any(data.startswith(family) or family.startswith(data) for family in _V1_FAMILIES)
        return NeedMore(len(data) + 1) if known and len(data) < _V1_MAX else NO_MATCH
    consumed = end + len(_CRLF)
    found = _V1_LINE.fullmatch(data, 0, end)
    if found is None:
        return NO_MATCH
    unknown, family, *fields = found.groups()
    if unknown is not None:
        return Header(consumed, None, None)
    source_ip, destination_ip, source_port, destination_port = (field.decode("ascii") for field in fields)
    address = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        source = (_ip_text(address(source_ip).packed), int(source_port))
        destination = (_ip_text(address(destination_ip).packed), int(destination_port))
    except AddressValueError:
        return NO_MATCH
    if max(source[1], destination[1]) > _MAX_PORT:
        return NO_MATCH
    return Header(consumed, source, destination)


def _parse_v2(data: bytes | bytearray) -> Header | NeedMore | NoMatch:
    command = data[_V2_COMMAND_AT] if len(data) > _V2_COMMAND_AT else _V2_LOCAL
    if command not in (_V2_LOCAL, _V2_PROXY):
        return NO_MATCH
    if len(data) < _V2_HEADER:
        return NeedMore(len(data) + 1)
    rest = int.from_bytes(data[_V2_HEADER - 2 : _V2_HEADER], "big")
    # Section 2.2: with LOCAL the family does not count, and with either command what is longer than it needs is TLVs.
    family, transport = divmod(data[_V2_FAMILY_AT], 16) if command == _V2_PROXY else (_V2_UNSPEC, 0)
    least = _V2_ADDRESSES.get(family)
    if least is None or transport > _V2_MAX_TRANSPORT or not least <= rest <= _V2_MAX_REST:
        return NO_MATCH
    end = _V2_HEADER + rest
    if len(data) < end:
        return NeedMore(end)
    if family == _V2_INET:
        size = _IPV4_SIZE
    elif family == _V2_INET6:
        size = _IPV6_SIZE
    else:
        return Header(end, None, None)
    ports = _V2_HEADER + 2 * size
    return Header(
        end,
        (_ip_text(data[_V2_HEADER : _V2_HEADER + size]), int.from_bytes(data[ports : ports + 2], "big")),
        (_ip_text(data[_V2_HEADER + size : ports]), int.from_bytes(data[ports + 2 : ports + 4], "big")),
    )


def _packed(ip: str) -> bytes:
    """Return the bytes of an address; a zone (``%eth0``) is lost."""
    return IPv6Address(ip).packed if ":" in ip else IPv4Address(ip).packed


def _unmapped(ip: bytes) -> bytes:
    return ip[len(_MAPPED) :] if len(ip) == _IPV6_SIZE and ip.startswith(_MAPPED) else ip


def _ip_text(packed: bytes | bytearray) -> str:
    ip = _unmapped(bytes(packed))
    return str(IPv4Address(ip) if len(ip) == _IPV4_SIZE else IPv6Address(ip))
