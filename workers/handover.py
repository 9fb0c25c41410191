"""A slot's UDP flows on their way from one worker to another, sockets included.

While they travel nobody reads the slot's listening sockets: what clients send waits there. Flows that have not left yet
go on to forward what their targets send. Should either worker die, what it held is gone; the next datagram of such a
client begins a flow anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, NamedTuple

from rpxy_l4.control import FlowRecord, Flows, Message, Taken
from rpxy_l4.net.channel import DESCRIPTORS_AT_A_TIME, Channel, DescriptorsLostError
from rpxy_l4.workers.context import Context
from rpxy_l4.workers.udp import UdpListener

EVENTS: Final = logging.getLogger(__name__)

NO_SERIES: Final = -1
"""In place of a listener's series, where no flows come that are counted there."""


class Leaving(NamedTuple):
    """A listener to hand over."""

    listener: UdpListener
    until: float | None
    """When it is to be closed, because its address has left the configuration. Nobody else has its socket then, and it
    is handed over even without flows: with each socket that is closed, the kernel spreads what comes for others anew.
    """


class Giver:
    """Hands flows over. Owns the channel and the listeners."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        channel: Channel,
        leaving: Iterable[Leaving],
        on_end: Callable[[], None],
    ) -> None:
        """Begin at once. ``on_end`` is called when all is closed here, perhaps before this returns."""
        self._loop = loop
        self._context = context
        self._channel = channel
        self._leaving = deque(leaving)
        self._announced: set[UdpListener] = set()
        self._on_end = on_end
        for listener, _ in self._leaving:
            listener.pause()
        loop.add_reader(channel.fileno(), self._on_message)
        self._go_on()

    def _on_message(self) -> None:
        try:
            received = self._channel.receive()
        except BlockingIOError:
            return
        if received is None:
            EVENTS.error("the worker that a slot was given to has died; its flows begin anew")
            self._give_up()
        self._go_on()

    def _go_on(self) -> None:
        """Send the next flows; the taker asks for those behind them."""
        try:
            self._send_more()
        except Exception:  # noqa: BLE001  whatever it is, the slot is not to stay without anybody who serves it
            EVENTS.critical("a fault in handing a slot over; its flows begin anew", exc_info=True)
            self._give_up()
            self._end()

    def _send_more(self) -> None:
        self._context.poller.begin_batch()
        while self._leaving:
            listener, until = self._leaving[0]
            flows = list(islice(listener.flows.values(), DESCRIPTORS_AT_A_TIME))
            if not flows and (until is None or listener in self._announced):
                listener.close()
                self._leaving.popleft()
                continue
            packed = [flow.pack() for flow in flows]
            descriptors = [] if until is None else [listener.socket.fileno()]
            descriptors += [descriptor for _, descriptor in packed if descriptor is not None]
            records = tuple(record for record, _ in packed)
            series = flows[0].series if flows else NO_SERIES
            if not self._channel.send(Flows(listener.bind, series, until, records), descriptors):
                EVENTS.error("flows could not be handed over; they begin anew")
                self._give_up()
                continue
            self._announced.add(listener)
            for flow in flows:
                flow.forget()
            self._context.poller.end_batch()
            return
        self._context.poller.end_batch()
        self._end()

    def _end(self) -> None:
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        self._on_end()

    def _give_up(self) -> None:
        self._context.poller.begin_batch()
        for listener, _ in self._leaving:
            listener.close()
        self._leaving.clear()
        self._context.poller.end_batch()


class Taker:
    """Takes flows over. Owns the channel."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        adopt: Callable[[Flows, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        """Have ``adopt`` called with each message and its descriptors, which it owns; then ``on_end``, once."""
        self._loop = loop
        self._channel = channel
        self._adopt = adopt
        self._on_end = on_end
        loop.add_reader(channel.fileno(), self._on_message)

    def _on_message(self) -> None:
        while True:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except DescriptorsLostError:
                EVENTS.error("out of descriptors: flows of another worker could not be taken; they begin anew")
            else:
                if received is None:
                    self._end()
                    return
                try:
                    self._take(*received)
                except Exception:  # noqa: BLE001  whatever it is, the slot is not to stay without anybody who serves it
                    EVENTS.critical("a fault in taking flows of another worker; they begin anew", exc_info=True)
            if not self._channel.send(Taken()):  # the other one would wait for ever
                self._end()
                return

    def _take(self, message: Message, descriptors: list[int]) -> None:
        if isinstance(message, Flows):
            self._adopt(message, descriptors)
        else:
            for descriptor in descriptors:
                os.close(descriptor)

    def _end(self) -> None:
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        self._on_end()


def with_descriptors(
    records: Iterable[FlowRecord], descriptors: Iterable[int]
) -> Iterable[tuple[FlowRecord, int | None]]:
    """Yield each record with the descriptor that came for it; None for one that is undecided."""
    rest = iter(descriptors)
    for record in records:
        yield record, None if record.target is None else next(rest)
