"""Addresses and host names as people write them. Every error message is for the author of the file."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from rpxy_l4.errors import quote

MAX_PORT: Final = 65_535

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""Of IPv4 or IPv6, as the module ``socket`` writes it: literal, port, and for IPv6 flow label and scope."""

# RFC 1035 section 2.3.4, counted without the final dot.
_MAX_NAME: Final = 253
# Underscores are no part of a host name (RFC 952), but names of containers and of services have them and resolve.
_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_PORT: Final = re.compile(r"[0-9]{1,5}", re.ASCII)
_PREFIX: Final = re.compile(r"[0-9]{1,3}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port."""

    text: str
    """As written."""
    host: str
    """An IP literal in canonical text without brackets, or a host name in lower case."""
    port: int
    is_name: bool


def is_host_name(text: str) -> bool:
    """Tell whether the text can be the name of a host: 1 to 253 characters in labels, the last one not a number.

    A name that ends in a number would be read as an IPv4 address by some resolvers and as a name by others.
    """
    labels = text.split(".")
    return len(text) <= _MAX_NAME and all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()


def parse_ip(text: str, version: int | None = None) -> str:
    """Return an IP literal in canonical text; an IPv6 one may stand in brackets. ``version`` 4 or 6 asks for one.

    Raises ValueError for anything else, zone ids included.
    """
    kind = f"IPv{version}" if version else "IP"
    bare = text[1:-1] if version != 4 and text.startswith("[") and text.endswith("]") else text  # noqa: PLR2004  IPv4
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise ValueError(f"{quote(text)} is not an {kind} address") from None
    if version not in (None, address.version):
        raise ValueError(f"{quote(text)} is an IPv{address.version} address, expected IPv{version}")
    if "%" in bare:
        raise ValueError(f"{quote(text)} has a zone id, which is not supported")
    return str(address)


def parse_endpoint(text: str) -> Endpoint:
    """Return the parts of ``ip:port``, ``[v6]:port`` or ``name:port``. A name may end in a dot, which is kept.

    Raises ValueError.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon:
        raise ValueError(f"{quote(text)} has no port; write host:port")
    if ":" in host and not host.startswith("["):
        raise ValueError(f"{quote(text)} is not clear; write an IPv6 address in brackets, [address]:port")
    if not host:
        raise ValueError(f"{quote(text)} has no host; write host:port")
    if not _PORT.fullmatch(port_text) or not 0 < int(port_text) <= MAX_PORT:
        raise ValueError(f"{quote(text)} has no legal port; a port is a whole number from 1 to {MAX_PORT}")
    port = int(port_text)
    if host.startswith("["):
        return Endpoint(text, parse_ip(host, 6), port, is_name=False)
    if is_host_name(host.removesuffix(".")):
        return Endpoint(text, host.lower(), port, is_name=True)
    if host.rpartition(".")[2].isdigit():
        return Endpoint(text, parse_ip(host, 4), port, is_name=False)
    raise ValueError(f"{quote(text)} has no legal host; expected an IP address or a host name{_ascii_form(host)}")


def parse_server_name(text: str) -> str:
    """Return a name that TLS clients can ask for (SNI, RFC 6066 section 3), in lower case. Raises ValueError."""
    if is_host_name(text):
        return text.lower()
    if text.startswith("*."):
        raise ValueError(f"{quote(text)} is a wildcard, which is not supported; list the names")
    if text.endswith(".") and is_host_name(text[:-1]):
        raise ValueError(f"{quote(text)} ends in a dot, which clients do not send; did you mean {quote(text[:-1])}?")
    if _is_ip(text):
        raise ValueError(f"{quote(text)} is an IP address, which clients do not send as a server name")
    raise ValueError(f"{quote(text)} is not a legal host name{_ascii_form(text)}")


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Return the network of ``10.0.0.0/8``, ``fd00::/8`` or of a single address. Bits behind the prefix are ignored.

    Raises ValueError.
    """
    address, slash, prefix = text.partition("/")
    if "%" not in text and (_PREFIX.fullmatch(prefix) or not slash):
        try:
            return ipaddress.ip_network((address, int(prefix)) if slash else address, strict=False)
        except ValueError:
            pass
    raise ValueError(f"{quote(text)} is not a network; write 10.0.0.0/8, fd00::/8 or a single IP address")


def _is_ip(text: str) -> bool:
    try:
        parse_ip(text)
    except ValueError:
        return False
    return True


def _ascii_form(name: str) -> str:
    """Return a hint for a name of other scripts, which travels in its ``xn--`` form; else nothing."""
    try:
        ascii_name = name.encode("idna").decode()
    except UnicodeError:
        return ""
    return f"; did you mean {quote(ascii_name)}?" if ascii_name != name and is_host_name(ascii_name) else ""
