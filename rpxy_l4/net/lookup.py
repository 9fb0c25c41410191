"""One look at a name, by the system's own means. For a check of the configuration; it may take seconds."""

from __future__ import annotations

import socket


def why_unresolved(name: str) -> str | None:
    """Return why a host name has no address right now; None when it has one."""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:  # gaierror among them
        return error.strerror or str(error)
    except UnicodeError as error:  # a name that cannot be asked for
        return str(error)
    return None
