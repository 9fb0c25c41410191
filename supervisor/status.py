"""How the program ends: the numbers that a service manager and a script see."""

from __future__ import annotations

import enum


class ExitStatus(enum.IntEnum):
    """Exit statuses, after sysexits.h where it has one."""

    OK = 0
    """Stopped by TERM, INT or QUIT, or nothing was to be run and all is well."""
    FAILURE = 1
    """A fault while running."""
    USAGE = 64
    """The command line is wrong."""
    UNAVAILABLE = 69
    """An address cannot be listened on."""
    INTERNAL = 70
    """A fault of this program; the log has the details."""
    CONFIG = 78
    """The configuration file is wrong, or cannot be read."""
