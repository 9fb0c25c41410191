"""Accepted TCP connections on their way to the worker that is to serve them: a queue in the kernel with two ends.

Any number of processes may have copies of either end. What is queued stays while one of them has the end that it is
taken from, whoever dies. Packets (SOCK_SEQPACKET) and not datagrams, of which a queue holds only ten by default
(net.unix.max_dgram_qlen); of these it holds some hundreds, as many as fit the send buffer.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import socket
import termios
from array import array
from typing import Final

from rpxy_l4.addresses import SocketAddress

# An IP literal of 45 bytes at most and a port. All messages have one length, so that each costs the queue the same.
_LENGTH: Final = 64
_ANCILLARY: Final = socket.CMSG_SPACE(array("i").itemsize)
_NO_NUMBER: Final = bytes(array("i").itemsize)


class ConnectionInbox:
    """The end that connections are taken from. Never blocks."""

    def __init__(self, end: socket.socket) -> None:
        """Take ownership of a socket of a :func:`pair`."""
        end.setblocking(False)
        self.socket = end

    @classmethod
    def of(cls, descriptor: int) -> ConnectionInbox:
        """Return the end that a descriptor stands for, which is owned from now on."""
        return cls(socket.socket(fileno=descriptor))

    def receive(self) -> tuple[int, SocketAddress]:
        """Return the next connection, a descriptor that is the caller's, and the address of its client.

        Raises BlockingIOError when there is none. Raises OSError (EMFILE) when this process had no room for the
        descriptor: then the connection is lost.
        """
        data, ancillary, flags, _ = self.socket.recvmsg(_LENGTH, _ANCILLARY)
        if not data:  # nothing more can come
            raise BlockingIOError
        if flags & socket.MSG_CTRUNC or not ancillary:
            raise OSError(errno.EMFILE, "a connection is lost, as there was no descriptor for it")
        (descriptor,) = array("i", ancillary[0][2])
        host, port = data.split()
        return descriptor, (host.decode(), int(port))

    def stop(self) -> None:
        """Let nothing more come, from whatever process; what is queued can still be taken."""
        self.socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Close this copy; with the last one, what is queued is reset."""
        self.socket.close()


class InboxEntry:
    """The end that connections are put into. Never blocks."""

    def __init__(self, end: socket.socket) -> None:
        """Take ownership of a socket of a :func:`pair`."""
        end.setblocking(False)
        self.socket = end

    @classmethod
    def of(cls, descriptor: int) -> InboxEntry:
        """Return the end that a descriptor stands for, which is owned from now on."""
        return cls(socket.socket(fileno=descriptor))

    def send(self, connection: int, client: SocketAddress) -> bool:
        """Put a copy of a connection into the inbox; the caller's stays the caller's.

        Returns False when that failed: the inbox is full, nobody will ever read it, or the system is short of
        something.
        """
        text = b"%s %d" % (client[0].encode(), client[1])
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", (connection,)))
        try:
            self.socket.sendmsg((text.ljust(_LENGTH),), (rights,))
        except OSError:
            return False
        return True

    def waiting(self) -> int:
        """Return how many connections are in the inbox, whoever put them there."""
        # unix(7), SIOCOUTQ (the same number as TIOCOUTQ): memory of what this socket sent and nobody has read.
        used = int.from_bytes(fcntl.ioctl(self.socket.fileno(), termios.TIOCOUTQ, _NO_NUMBER), "little")
        return used // _cost()

    def close(self) -> None:
        """Close this copy."""
        self.socket.close()


def pair() -> tuple[ConnectionInbox, InboxEntry]:
    """Return the two ends of a new inbox; neither is inherited over exec. Raises OSError without descriptors."""
    inbox, entry = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ConnectionInbox(inbox), InboxEntry(entry)


@functools.cache
def _cost() -> int:
    """Return what the kernel takes a queued connection for, in bytes: asked, because that differs between kernels."""
    inbox, entry = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with inbox, entry:
        entry.send(bytes(_LENGTH))
        return int.from_bytes(fcntl.ioctl(entry.fileno(), termios.TIOCOUTQ, _NO_NUMBER), "little")
