"""Noticing that the configuration file has changed, by whatever way it was replaced.

What is watched are directories, not the file: a watch on a file follows the old one when a new one takes its name.
Where the path leads over symbolic links, the directory of each link is watched too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from inotify_simple import INotify, flags

_EVENTS: Final = flags.CLOSE_WRITE | flags.MOVED_TO | flags.CREATE | flags.ONLYDIR
# As many as the kernel follows, path_resolution(7).
_MAX_LINKS: Final = 40


def hops(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the directory and name of each symbolic link on the way to the file, and of the file at the end.

    Ends early where the path leads nowhere.
    """
    rest = list(reversed(path.absolute().parts))
    here = Path(rest.pop())
    links = 0
    while rest:
        name = rest.pop()
        if name == "..":
            here = here.parent
            continue
        step = here / name
        if step.is_symlink() and links < _MAX_LINKS:
            links += 1
            yield here, name
            target = step.readlink()
            if target.is_absolute():
                here = Path(target.anchor)
            rest += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        elif rest:
            here = step
        else:
            yield here, name


class FileWatch:
    """Tells when a file may have changed. It looks at names, not at content."""

    def __init__(self, path: Path) -> None:
        """Begin to watch. Raises OSError when the system has no watches left, or the directory cannot be read."""
        self._path = path
        self._inotify = INotify(nonblocking=True)
        self._watched: dict[int, Path] = {}
        self._names: dict[Path, set[str]] = {}
        try:
            self.follow()
        except OSError:
            self._inotify.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that is readable when something happened in a watched directory."""
        number: int = self._inotify.fileno()
        return number

    def changed(self) -> bool:
        """Empty the queue of events; return whether one was about the file or a link on the way to it.

        The way is followed anew then. Raises OSError as the constructor does.
        """
        found = False
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                found = True
            elif event.mask & flags.IGNORED:
                # The directory has gone, unless it was us who stopped to watch it.
                found |= self._watched.pop(event.wd, None) is not None
            elif event.wd in self._watched:
                # Another program's files may live beside ours, and change often.
                found |= event.name in self._names[self._watched[event.wd]]
        if found:
            self.follow()
        return found

    def follow(self) -> None:
        """Find the way to the file anew: a directory that was replaced as a whole gives no event."""
        self._names = {}
        for directory, name in hops(self._path):
            self._names.setdefault(directory, set()).add(name)
        for number, directory in list(self._watched.items()):
            if directory not in self._names:
                self._forget(number)
        for directory in self._names:
            # For a directory that is watched already the kernel returns the same number.
            self._watched[self._inotify.add_watch(os.fspath(directory), _EVENTS)] = directory

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()

    def _forget(self, number: int) -> None:
        del self._watched[number]
        try:
            self._inotify.rm_watch(number)
        except OSError:  # it went away together with its directory
            return
