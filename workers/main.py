"""Entry of a worker process: called in the child, right after the fork."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import signal
from typing import Any, Final

import uvloop

from rpxy_l4 import logs
from rpxy_l4.flow_memory import FlowMemories
from rpxy_l4.metrics.slab import Slab
from rpxy_l4.net.channel import Channel
from rpxy_l4.workers.worker import Worker

EVENTS: Final = logging.getLogger(__name__)

# New objects before the collector looks at them: some thousand sessions.
_YOUNG: Final = 50_000
# Ctrl-C and a hang-up of the terminal reach the whole process group; what they mean is the supervisor's to decide.
_IGNORED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
    signal.SIGPIPE,
)


def run(number: int, workers: int, channel: Channel, slab: Slab, memories: FlowMemories) -> int:
    """Be worker ``number`` (from 0) until told to stop; return the exit status. ``workers``: rows of all workers.

    Owns ``channel``. The logs of this process must have been set up. SIGABRT writes the stack of every thread to
    the log of events before the process dies of it.
    """
    signal.set_wakeup_fd(-1)
    for ignored in _IGNORED:
        signal.signal(ignored, signal.SIG_IGN)
    # The number stays when the log is opened again.
    faulthandler.enable(logs.current().events.descriptor)
    # Sessions leave nothing behind that only the collector could free, so it need not look often; what it looks at is
    # what is new, and a pause of its is one for every session.
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_on_loop_exception)
    worker = Worker(loop, number, workers, channel, slab, memories, logs.current())
    worker.start()
    try:
        loop.run_forever()
    finally:
        worker.finish()
    return 0


def _on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001  asyncio's
    EVENTS.error("fault in the event loop: %s", context.get("message"), exc_info=context.get("exception"))
