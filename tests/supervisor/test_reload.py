from __future__ import annotations

import os
from pathlib import Path

import pytest

from rpxy_l4.errors import ConfigError
from rpxy_l4.metrics.layout import Directory
from rpxy_l4.snapshot import Bind
from rpxy_l4.supervisor.reload import (
    BindPlan,
    Content,
    descriptors_wanted,
    load,
    new_names,
    plan_binds,
    printable,
    read_content,
)
from rpxy_l4.verdict import Transport
from tests.support.descriptors import open_descriptors

A, B, C = (Bind(Transport.TCP, f"127.0.0.{n}", 1) for n in (1, 2, 3))
GOOD = b'listen_port = 8448\ntcp_target = ["one.test:1", "two.test:1"]\n'


def content(data: bytes) -> Content:
    return Content(data, "0" * 64)


def test_a_plan_opens_what_is_new_and_closes_what_is_gone() -> None:
    assert plan_binds([A, B], [C, B]) == BindPlan(open=(C,), close=(A,))


def test_a_plan_for_the_same_addresses_is_empty() -> None:
    assert plan_binds([A, B], [B, A]) == BindPlan(open=(), close=())


def test_the_content_of_a_file_goes_with_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(b"abc")

    # FIPS 180-2, appendix B.1.
    assert read_content(file) == Content(b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


@pytest.mark.parametrize(("name", "reason"), [("missing.toml", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_a_wrong_configuration(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_content(tmp_path / name)

    assert caught.value.render().startswith(f"{tmp_path / name}: error: cannot be read: {reason}")


def test_a_pipe_is_read_only_by_who_may_wait(tmp_path: Path) -> None:
    pipe = tmp_path / "config.toml"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="cannot be read: it is no regular file"):
        read_content(pipe)

    reader, writer = os.pipe()
    os.write(writer, b"abc")
    os.close(writer)
    assert read_content(Path(f"/proc/self/fd/{reader}"), may_wait=True).data == b"abc"
    os.close(reader)


def test_nothing_stays_open_of_what_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = open_descriptors()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(ConfigError):
            read_content(path)

    assert open_descriptors() == before


def test_a_path_is_shown_whatever_its_bytes_are() -> None:
    assert printable(Path(os.fsdecode("/etc/ä".encode() + b"\xff"))) == "/etc/ä\\xff"


def test_loading_adds_series_to_a_copy_of_the_directory() -> None:
    known = Directory()
    snapshot, directory = load(content(GOOD), "c.toml", generation=7, known=known, cpus=3)

    assert (snapshot.generation, snapshot.workers, snapshot.sha256) == (7, 3, "0" * 64)
    assert len(directory.targets) == 2
    assert known == Directory()


def test_a_wrong_file_names_the_place() -> None:
    with pytest.raises(ConfigError) as caught:
        load(content(GOOD + b"tcp_tarqet = 1\n"), "c.toml", generation=1, known=Directory(), cpus=1)

    assert str(caught.value).startswith("c.toml:3:1: error: tcp_tarqet")


def test_only_names_that_are_new_have_to_be_waited_for() -> None:
    before, _ = load(content(GOOD), "c.toml", generation=1, known=Directory(), cpus=1)
    after, _ = load(
        content(GOOD.replace(b"one.test", b"three.test")), "c.toml", generation=2, known=Directory(), cpus=1
    )

    assert new_names(before, None) == {"one.test", "two.test"}
    assert new_names(after, before) == {"three.test"}


def test_each_connection_wants_two_descriptors_and_each_flow_one() -> None:
    text = b'udp_target = ["one.test:1"]\ntcp_max_connections = 100\nudp_max_connections = 7\n' + GOOD
    snapshot, _ = load(content(text), "config.toml", generation=1, known=Directory(), cpus=1)

    assert descriptors_wanted(snapshot) == 207
