"""Queries over UDP, each sent once: from ports that are kept, and from new ones."""

from __future__ import annotations

import itertools
import socket
import time
from typing import Final

import dns.exception
import dns.message
import dns.rcode

from tests.support.traffic.source import Address, WrongAnswerError

NAME: Final = "name.test"
NAMES_ADDRESS: Final = "192.0.2.1"


def dnsmasq(port: int, *addresses: str) -> list[str]:
    """The command of a DNS server that knows one name, on these addresses."""
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-", "--pid-file=", "--user="]
    options += ["--no-resolv", "--no-hosts", "--bind-interfaces", f"--port={port}"]
    options += [f"--listen-address={address}" for address in addresses]
    return ["dnsmasq", *options, f"--host-record={NAME},{NAMES_ADDRESS}"]


class Dns:
    """One query at a time, each answered in time or lost."""

    def __init__(self, to: Address, patience: float, *, kept: bool) -> None:
        """``kept``: always from the same port; otherwise each query from a new one."""
        self.address: Address | None = None
        self._to = to
        self._patience = patience
        self._kept = kept
        self._socket: socket.socket | None = None
        self._turns = itertools.count(1)

    def act(self) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.connect(self._to)
            self.address = self._socket.getsockname()
        query = dns.message.make_query(NAME, "A", id=next(self._turns) % 65_536)
        try:
            self._socket.send(query.to_wire())
            self._wait_for_answer(self._socket, query)
        finally:
            if not self._kept:
                self.close()

    def _wait_for_answer(self, sock: socket.socket, query: dns.message.Message) -> None:
        deadline = time.monotonic() + self._patience
        while True:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = sock.recv(4096)
            try:
                answer = dns.message.from_wire(data)
            except dns.exception.DNSException as error:
                raise WrongAnswerError(f"no answer of a DNS server: {data!r}") from error
            # One that came too late for its own turn has been counted as lost.
            if answer.id == query.id:
                break
        if answer.rcode() != dns.rcode.NOERROR or NAMES_ADDRESS not in answer.to_text():
            raise WrongAnswerError(answer.to_text())

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
