"""The configuration file of a running supervisor: reading it, and noticing that it has changed."""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rpxy_l4.errors import ConfigError
from rpxy_l4.supervisor.reload import Content, printable, read_content
from rpxy_l4.supervisor.timers import Timers
from rpxy_l4.supervisor.watch import FileWatch

_LOG: Final = logging.getLogger(__name__)

# An editor writes a file in several steps; this is how long it must have been quiet.
DEBOUNCE: Final = 0.25
# Changes that inotify does not see: NFS, overlays, a directory replaced as a whole.
POLL_INTERVAL: Final = 10.0


class ConfigFile:
    """Watches the file while told to, by events and by looking at it now and then. Owns the watch."""

    def __init__(self, path: Path, timers: Timers, on_change: Callable[[], None]) -> None:
        """Watch nothing yet. ``on_change`` is called when the content may be another than was last read."""
        self._path = path
        self._timers = timers
        self._on_change = on_change
        # One that is missing may be about to be replaced.
        self._is_regular = path.is_file() or not path.exists()
        self._selector: selectors.BaseSelector | None = None
        self._watch: FileWatch | None = None
        self.seen: str | None = None
        """Digest of the content that was last tried, None when it could not be read."""

    def start(self, selector: selectors.BaseSelector) -> None:
        """Have events noticed by this selector from now on; what is registered there is to be called."""
        self._selector = selector

    def read(self) -> Content:
        """Return the content as it is now; what happened to the file until now is no change any more.

        Raises ConfigError when it cannot be read.
        """
        self._timers.cancel(self._on_change)
        self._has_changed()
        self.seen = None
        content = read_content(self._path)
        self.seen = content.sha256
        return content

    def watch(self, *, wanted: bool) -> None:
        """Watch the file from now on, or do not. What is no regular file is never watched."""
        if not wanted or not self._is_regular:
            self.stop()
            return
        self._after(POLL_INTERVAL, self._poll)
        try:
            self._begin()
        except OSError as error:
            text = "cannot watch %s (%s); it is looked at every %.0f s"
            _LOG.warning(text, printable(self._path), error.strerror, POLL_INTERVAL)

    def stop(self) -> None:
        """Watch no more."""
        self._timers.cancel(self._poll)
        self._end()

    def leave_to_parent(self) -> None:
        """In a forked child: close its copies, without a word to the kernel about what the parent watches."""
        if self._watch is not None:
            self._watch.close()

    def _after(self, delay: float, call: Callable[[], None]) -> None:
        self._timers.set(call, time.monotonic() + delay)

    def _begin(self) -> None:
        """Watch the file, or find the way to it anew. Raises OSError when it cannot be watched now."""
        if self._watch is None:
            assert self._selector is not None  # noqa: S101  nothing is put in force before the loop begins
            self._watch = FileWatch(self._path)
            self._selector.register(self._watch, selectors.EVENT_READ, self._on_event)
        else:
            self._watch.follow()

    def _end(self) -> None:
        if self._watch is not None:
            assert self._selector is not None  # noqa: S101  it is registered there
            self._selector.unregister(self._watch)
            self._watch.close()
            self._watch = None

    def _has_changed(self) -> bool:
        """Empty the watch's queue of events; whether there was one about the file."""
        try:
            return self._watch is not None and self._watch.changed()
        except OSError as error:
            text = "cannot go on watching %s (%s); it is looked at every %.0f s"
            _LOG.warning(text, printable(self._path), error.strerror, POLL_INTERVAL)
            self._end()
            return True

    def _on_event(self) -> None:
        if self._has_changed():
            self._after(DEBOUNCE, self._on_change)

    def _poll(self) -> None:
        """Without an event: only what is really new is a change."""
        self._after(POLL_INTERVAL, self._poll)
        try:
            # Before the file is read, so that no change falls between. The directory may be another one by now.
            self._begin()
        except OSError:  # it was said when it began
            self._end()
        try:
            digest = read_content(self._path).sha256
        except ConfigError:
            digest = None
        if digest != self.seen:
            self._on_change()
