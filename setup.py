"""Compile the data path, where that is wanted: ``RPXY_L4_COMPILE=1 pip install``.

mypyc makes a C extension of the very modules that Python runs otherwise. It needs a C compiler and Python's headers.
All else about the package is in pyproject.toml.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from setuptools import Extension, setup

COMPILED: Final = (
    "detect/tcp",
    "detect/udp",
    "net/burst",
    "net/datagram",
    "net/inbox",
    "net/mmsg",
    "net/stream",
    "probes/client_hello",
    "probes/http1",
    "probes/http2",
    "probes/quic",
    "probes/quic_crypto_stream",
    "probes/quic_frames",
    "probes/quic_keys",
    "probes/quic_packets",
    "probes/socks5",
    "probes/ssh",
    "probes/tls",
    "probes/wireguard",
    "router",
    "timers",
    "workers/context",
    "workers/poller",
    "workers/relay",
    "workers/tcp",
    "workers/udp",
    "workers/unconfirmed",
)
"""Modules of ``rpxy_l4`` that do something for each connection, flow or datagram."""


def extensions() -> list[Extension]:
    """Return what is to be compiled, as C."""
    from mypyc.build import mypycify

    package = Path(__file__).parent / "rpxy_l4"
    if not (package / "workers").exists():  # links are left out of source archives
        (package / "workers").symlink_to("../workers")
    paths = [f"rpxy_l4/{name}.py" for name in COMPILED]
    # Whether the types are right is judged elsewhere; here, the packages that would tell need not be there.
    return mypycify(["--config-file=", "--ignore-missing-imports", *paths], group_name="rpxy_l4", opt_level="3")


if os.environ.get("RPXY_L4_COMPILE") == "1":
    # The first question is what a build needs; only then is mypyc there.
    is_question = sys.argv[1:2] == ["egg_info"]
    setup(ext_modules=[] if is_question else extensions(), setup_requires=["mypy>=1.13"])
else:
    setup()
