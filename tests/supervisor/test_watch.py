"""Real files and real inotify. A test waits for an event, never for time."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpxy_l4.supervisor.watch import FileWatch, hops
from tests.support.descriptors import open_descriptors

PATIENCE = 5.0


class Folder:
    """A folder laid out as Kubernetes mounts a ConfigMap: the file is reached over two links."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "v1").mkdir(parents=True)
        (path / "v1" / "config.toml").write_text("one")
        (path / "..data").symlink_to("v1")
        self.file = path / "config.toml"
        self.file.symlink_to("..data/config.toml")

    def swap(self, version: str, text: str) -> None:
        (self.path / version).mkdir()
        (self.path / version / "config.toml").write_text(text)
        (self.path / "..data_tmp").symlink_to(version)
        (self.path / "..data_tmp").rename(self.path / "..data")


@pytest.fixture
def watch_file() -> Iterator[Callable[[Path], FileWatch]]:
    opened: list[FileWatch] = []

    def start(path: Path) -> FileWatch:
        opened.append(FileWatch(path))
        return opened[-1]

    yield start
    for watch in opened:
        watch.close()


def has_event(watch: FileWatch) -> bool:
    """Waits until there are events; whether one was about the file."""
    return bool(select.select([watch], [], [], PATIENCE)[0]) and watch.changed()


def test_the_way_to_a_plain_file_is_its_directory(tmp_path: Path) -> None:
    assert list(hops(tmp_path / "config.toml")) == [(tmp_path, "config.toml")]


def test_the_way_over_links_names_each_of_them(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "mount")
    (tmp_path / "etc").symlink_to(tmp_path / "mount")

    assert list(hops(tmp_path / "etc" / "config.toml")) == [
        (tmp_path, "etc"),
        (folder.path, "config.toml"),
        (folder.path, "..data"),
        (folder.path / "v1", "config.toml"),
    ]


def test_a_link_upwards_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("../b/file")

    assert list(hops(tmp_path / "a" / "link")) == [(tmp_path / "a", "link"), (tmp_path / "b", "file")]


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    assert set(hops(tmp_path / "a")) == {(tmp_path, "a"), (tmp_path, "b")}


def test_a_file_written_in_place_is_noticed(tmp_path: Path, watch_file: Callable[[Path], FileWatch]) -> None:
    file = tmp_path / "config.toml"
    file.write_text("one")
    watch = watch_file(file)
    file.write_text("two")

    assert has_event(watch)
    assert not watch.changed()


def test_every_replacement_by_rename_is_noticed(tmp_path: Path, watch_file: Callable[[Path], FileWatch]) -> None:
    file = tmp_path / "config.toml"
    file.write_text("one")
    watch = watch_file(file)
    for text in ("two", "three"):
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").rename(file)

        assert has_event(watch)


def test_every_swap_of_a_link_on_the_way_is_noticed(tmp_path: Path, watch_file: Callable[[Path], FileWatch]) -> None:
    folder = Folder(tmp_path / "mount")
    watch = watch_file(folder.file)
    for version in ("v2", "v3"):
        folder.swap(version, version)

        assert has_event(watch)


def test_after_a_swap_the_new_directory_is_watched(tmp_path: Path, watch_file: Callable[[Path], FileWatch]) -> None:
    folder = Folder(tmp_path / "mount")
    watch = watch_file(folder.file)
    folder.swap("v2", "two")
    assert has_event(watch)
    (folder.path / "v1" / "config.toml").write_text("nobody reads this")
    (folder.path / "v2" / "config.toml").write_text("three")

    assert has_event(watch)


def test_letting_go_of_an_old_directory_is_no_change(tmp_path: Path, watch_file: Callable[[Path], FileWatch]) -> None:
    folder = Folder(tmp_path / "mount")
    watch = watch_file(folder.file)
    folder.swap("v2", "two")
    assert has_event(watch)

    assert not has_event(watch)  # the kernel's confirmation


def test_a_directory_that_goes_away_is_a_change(tmp_path: Path, watch_file: Callable[[Path], FileWatch]) -> None:
    file = tmp_path / "etc" / "config.toml"
    file.parent.mkdir()
    file.write_text("one")
    watch = watch_file(file)
    file.unlink()
    file.parent.rmdir()

    with pytest.raises(FileNotFoundError):
        has_event(watch)


def test_other_files_of_the_directory_do_not_matter(tmp_path: Path, watch_file: Callable[[Path], FileWatch]) -> None:
    watch = watch_file(tmp_path / "config.toml")
    (tmp_path / "other.toml").write_text("one")

    assert not has_event(watch)


def test_a_directory_replaced_as_a_whole_is_found_again(
    tmp_path: Path, watch_file: Callable[[Path], FileWatch]
) -> None:
    file = tmp_path / "etc" / "config.toml"
    file.parent.mkdir()
    watch = watch_file(file)
    file.parent.rename(tmp_path / "old")
    file.parent.mkdir()
    watch.follow()
    file.write_text("two")

    assert has_event(watch)


def test_a_directory_that_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError):
        FileWatch(tmp_path / "nowhere" / "config.toml")

    assert open_descriptors() == before
