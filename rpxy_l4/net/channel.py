"""A pair of sockets between the supervisor and one child, or two workers: whole messages, with descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final

from rpxy_l4.control import Message, decode, encode

# SCM_MAX_FD, include/net/scm.h: the kernel refuses more descriptors in one message.
MAX_DESCRIPTORS: Final = 253
DESCRIPTORS_AT_A_TIME: Final = 200
"""What to send where there are more; it leaves room for those that come in addition."""
# A sequenced packet must fit the socket's send buffer (212 992 bytes by default); a snapshot of thousands of routes
# does not, so what is longer than this travels as a memfd.
_INLINE_LIMIT: Final = 32 * 1024
_INLINE: Final = b"i"
_IN_MEMFD: Final = b"m"


class DescriptorsLostError(Exception):
    """Descriptors that came with a message found no room in this process."""

    def __init__(self, message: Message | None) -> None:
        """Keep what the message said without them; None when that was in one of them."""
        super().__init__()
        self.message = message


class Channel:
    """One end. Never blocks; the other end's death is ``receive`` returning None."""

    def __init__(self, end: socket.socket) -> None:
        """Take ownership of one end of a pair."""
        end.setblocking(False)
        self._socket = end

    @classmethod
    def of(cls, descriptor: int) -> Channel:
        """Return the end that a descriptor stands for, which is owned from now on."""
        return cls(socket.socket(fileno=descriptor))

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two connected ends; neither is inherited over exec."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """Return the descriptor, for a selector or an event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the other one sees EOF."""
        self._socket.close()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Send a message with copies of descriptors, which stay the caller's.

        Returns False when it was not delivered: the other end is gone, or has not read for so long that the queue is
        full, or the system is short of something.
        """
        data = encode(message)
        if len(data) <= _INLINE_LIMIT:
            return self._send(_INLINE + data, descriptors)
        try:
            carrier = os.memfd_create("rpxy-l4-message", os.MFD_CLOEXEC)
        except OSError:
            return False
        try:
            with open(carrier, "wb", closefd=False) as file:
                file.write(data)
            return self._send(_IN_MEMFD, (carrier, *descriptors))
        finally:
            os.close(carrier)

    def _send(self, data: bytes, descriptors: Sequence[int]) -> bool:
        try:
            socket.send_fds(self._socket, [data], descriptors)
        except OSError:  # gone, full, or the system is short of something: in each case it was not delivered
            return False
        return True

    def receive(self) -> tuple[Message, list[int]] | None:
        """Return the next message and its descriptors, which are now the caller's; None at EOF.

        Raises BlockingIOError when there is nothing to read, DescriptorsLostError when this process had no room for the
        descriptors; none of them is left open then.
        """
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, _INLINE_LIMIT + 1, MAX_DESCRIPTORS)
        except ConnectionResetError:
            return None
        if not data:
            return None
        if flags & socket.MSG_CTRUNC:
            for descriptor in descriptors:
                os.close(descriptor)
            raise DescriptorsLostError(decode(data[1:]) if data[:1] == _INLINE else None)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if data[:1] == _IN_MEMFD:
            with open(descriptors.pop(0), "rb") as file:  # noqa: PTH123
                file.seek(0)
                return decode(file.read()), descriptors
        return decode(data[1:]), descriptors
