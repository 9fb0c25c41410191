from __future__ import annotations

import os
import resource

from rpxy_l4.net.kernel import features, raise_open_files
from tests.support.descriptors import open_descriptors


def test_what_every_supported_kernel_has_is_found() -> None:
    found = dict(features())

    for name in ("SO_REUSEPORT", "UDP_GRO", "UDP_SEGMENT", "splice", "pidfd", "memfd", "inotify"):
        assert found[name] == "yes"
    assert found["open files"].endswith("at start")


def test_looking_leaves_nothing_open() -> None:
    before = open_descriptors()
    list(features())

    assert open_descriptors() == before


def test_a_hard_limit_that_the_kernel_does_not_grant_leaves_the_soft_one() -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Only who may raise limits may have one above fs.nr_open, and there is none of this process's own.
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))
            before = resource.getrlimit
            resource.getrlimit = lambda _: (256, 1 << 40)
            status = 0 if raise_open_files() == 256 else 2
            resource.getrlimit = before
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_soft_limit_on_open_files_becomes_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))

        assert raise_open_files() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
