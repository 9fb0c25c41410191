"""Where log lines go: the event log through the standard ``logging``, the access log as raw lines.

Without a directory, events go to stderr and access lines to stdout. With one, to ``rpxy-l4.log`` and ``access.log`` in
it, opened for appending by each process and opened again on :func:`reopen`, so that a rotated file is let go.

A reader that does not read (a stopped pager, a full pipe) never stops the proxy: lines that find no room are dropped
and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import stat
import time
from pathlib import Path
from typing import Final

from rpxy_l4.limits import RateLimit

# pipe(7): a write of at most PIPE_BUF bytes comes through whole or not at all.
_ATOMIC: Final = select.PIPE_BUF
_FILE_MODE: Final = 0o640

EVENT_FILE: Final = "rpxy-l4.log"
ACCESS_FILE: Final = "access.log"

EVENTS: Final = logging.getLogger("rpxy_l4")


class Sink:
    """One destination of whole lines."""

    def __init__(self, descriptor: int, path: Path | None) -> None:
        """Write to ``path`` where one is given, else to an inherited descriptor, which is never closed.

        Raises OSError when the file cannot be opened.
        """
        self._path = path
        self.descriptor = _own_description(descriptor) if path is None else _open(path)
        """Where lines are written."""
        # A file takes any length; on a pipe or a socket, several processes write side by side.
        self._most = None if stat.S_ISREG(os.fstat(self.descriptor).st_mode) else _ATOMIC
        self._poll = select.poll()
        self._poll.register(self.descriptor, select.POLLOUT)
        self._is_terminal = os.isatty(self.descriptor)
        self._is_torn = False
        """The last write ended within a line: the next one begins a new one."""
        self.dropped = 0
        """Lines that found no room, since the process started."""

    def reopen(self) -> None:
        """Open the file by name again. When that fails, keep the old one and raise OSError."""
        if self._path is None:
            return
        fresh = _open(self._path)
        # The number stays the same, so nothing that holds it needs to know.
        os.dup2(fresh, self.descriptor, inheritable=False)
        os.close(fresh)

    def write(self, lines: bytes) -> None:
        """Write whole lines; what finds no room is dropped and counted. Never blocks on a pipe, never raises.

        A line that is longer than a pipe takes at once is dropped, too, unless it goes to a file.
        """
        start = 0
        while start < len(lines):
            end = len(lines)
            if self._most is not None and end - start > self._most:
                end = lines.rfind(b"\n", start, start + self._most) + 1
                if not end:
                    start = lines.find(b"\n", start) + 1 or len(lines)
                    self.dropped += 1
                    continue
            if not self._write(lines[start:end]):
                self.dropped += lines.count(b"\n", start)
                return
            start = end

    def _write(self, lines: bytes) -> bool:
        try:
            # Where the description is shared and blocking after all, this is what keeps us from waiting.
            if not self._poll.poll(0):
                return False
            torn, self._is_torn = self._is_torn, False
            if torn:
                lines = b"\n" + lines
            if self._put(lines) < len(lines):  # the disk is full
                self._is_torn = True
                return False
        except OSError:  # no room, a full disk, or the reader is gone: there is nobody left to tell
            return False
        return True

    def _put(self, lines: bytes) -> int:
        if not self._is_terminal:
            return os.write(self.descriptor, lines)
        # A terminal set to "tostop" sends this to a background process that writes, which to the supervisor means
        # something else; not while it is blocked. termios(3)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            return os.write(self.descriptor, lines)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _own_description(descriptor: int) -> int:
    """Return a non-blocking way to an inherited pipe or terminal, or the descriptor itself where there is none.

    The flag belongs to the open file description, which we share with whoever started us: setting it would surprise
    them. /proc gives us one of our own, unless the pipe belongs to another user.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return descriptor


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)


class _EventHandler(logging.Handler):
    """Formats events and keeps one kind of event from flooding the log: errors that traffic can cause, that is."""

    def __init__(self, sink: Sink, role: str) -> None:
        super().__init__()
        self.sink = sink
        self.role = role
        # Of each message template, 10 lines in 10 seconds: a fault that repeats stays visible and cheap.
        self._limit = RateLimit(burst=10, window=10.0)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            repeated: int | None = 0
            if record.levelno > logging.INFO:
                repeated = self._limit.allow((record.name, record.levelno, record.msg), time.monotonic())
            if repeated is None:
                return
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            if repeated:
                text += f" ({repeated} more like this were left out)"
        except Exception:  # noqa: BLE001  a fault in a log call must not end a session
            text = f"unprintable event from {record.pathname}:{record.lineno}"
        stamp = timestamp(record.created)
        head = f"{stamp} {record.levelname.lower()} {self.role}: "
        self.sink.write((head + text.rstrip("\n").replace("\n", "\n  ") + "\n").encode("utf-8", "backslashreplace"))


def timestamp(unix_time: float) -> str:
    """Return RFC 3339 in UTC with milliseconds."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_time))
    return f"{seconds}.{int(unix_time * 1000) % 1000:03d}Z"


class Logs:
    """The two logs of one process."""

    def __init__(self, role: str, log_dir: Path | None) -> None:
        """Create the directory where needed. Raises OSError when a file cannot be opened."""
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
        self.access = Sink(1, None if log_dir is None else log_dir / ACCESS_FILE)
        self.events = Sink(2, None if log_dir is None else log_dir / EVENT_FILE)
        self.handler = _EventHandler(self.events, role)

    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors in use, for whoever closes all others."""
        return self.access.descriptor, self.events.descriptor

    def rename(self, role: str) -> None:
        """Name the process otherwise from now on: a forked child that goes on with its parent's logs."""
        self.handler.role = role

    def reopen(self) -> bool:
        """Open both files again by name; what cannot be opened stays as it was, and the event log says so.

        Returns whether both were opened.
        """
        opened = True
        for sink in (self.events, self.access):
            try:
                sink.reopen()
            except OSError as error:
                opened = False
                text = "cannot open a log file again, the old one stays in use: %s: %s"
                EVENTS.error(text, error.filename, error.strerror)
        return opened


_current: list[Logs] = []
"""The logs of this process: none before ``setup``, then one."""


def setup(role: str, log_dir: Path | None) -> Logs:
    """Make this process's logs and route the ``rpxy_l4`` loggers to them.

    ``role`` names the process in each line (``supervisor``, ``worker 1``, ``admin``). A forked child calls this again,
    before its own ``run``; those it inherited stay open. Raises OSError when a file cannot be opened, and then leaves
    everything as it was.
    """
    logs = Logs(role, log_dir)
    EVENTS.handlers[:] = [logs.handler]
    EVENTS.setLevel(logging.INFO)
    EVENTS.propagate = False
    _current[:] = [logs]
    return logs


def current() -> Logs:
    """Return the logs of this process. Only after :func:`setup`."""
    return _current[0]


def reopen() -> bool:
    """Open this process's log files again by name; whether that succeeded. Does nothing before :func:`setup`."""
    return all(logs.reopen() for logs in _current)
