"""What the proxy says about sessions: its access log, read while it grows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rpxy_l4.verdict import Transport

Session = Mapping[str, str]
"""The ``key=value`` pairs of one line of the access log."""


class Tail:
    """The lines that are added to a file from now on."""

    def __init__(self, path: Path) -> None:
        """Skip what the file has already; it need not exist yet."""
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def read(self) -> list[str]:
        """Return the lines completed since the last call. Never blocks."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0  # the file was rotated
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", "replace").splitlines()


def parse(line: str) -> Session:
    """Return the pairs of a line; values have no spaces, the log escapes them."""
    return dict(pair.split("=", 1) for pair in line.split() if "=" in pair)


def key(transport: Transport, client: tuple[str, int]) -> tuple[str, str]:
    """Return what :func:`key_of` gives for the session of an IPv4 client."""
    host, port = client
    return str(transport), f"{host}:{port}"


def key_of(session: Session) -> tuple[str, str]:
    """Return what tells one session from another while both are new: transport and client address."""
    return session.get("transport", ""), session.get("client", "")


def recognised(session: Session) -> str:
    """Return protocol, server name and ALPN names as detection saw them: ``tls site.example h2``."""
    found = (session.get("detected"), session.get("sni"), session.get("alpn"))
    return " ".join(value for value in found if value)


def summary(session: Session) -> str:
    """Return a line for a person."""
    what = recognised(session) or session.get("transport", "?")
    if session.get("event") != "session":
        return f"{what}: refused, {session.get('reason', '?')}"
    return (
        f"{what} -> {session.get('route', '?')} {session.get('target', '?')}"
        f"  {session.get('bytes_in', '?')} bytes in, {session.get('bytes_out', '?')} out,"
        f" {session.get('duration_ms', '?')} ms, {session.get('reason', '?')}"
    )
