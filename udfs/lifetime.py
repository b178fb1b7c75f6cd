"""The end of an operator, of which PyFlink's thread mode tells Python only when its input ends.

After a failure, a cancellation or a stop with savepoint nobody calls ``close``, and the process
goes on. Without more, each restart would leave a model, its connections and the threads that follow
files and topics, which hold the operator, and it the keyed state in the JVM. What does go each time
is the thread state of the operator's own interpreter (Pemja's ``PythonInterpreter.close``), and
with it the values of the thread-local variables that ``open`` has set.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock, Thread, local

from udfs.runtime import drop_garbage

__all__ = ["close_at_end", "is_embedded"]

logger = logging.getLogger(__name__)

_QUIET_S = 0.2
"""A job's operators end together: garbage is looked for when as long no other has ended."""

Close = Callable[[], None]


def close_at_end(close: Close) -> None:
    """Have something closed soon after the operator that opens here has ended, however it did.

    An operator with nothing to close but keyed state gives its ``close`` too: garbage is collected
    after it. Elsewhere than in thread mode nothing is done: there whoever opens one closes it.

    Args:
        close: Called in a thread of its own, also where PyFlink has called it before. It must not
            touch what is Flink's: state, timers and metrics are gone by then, and Pemja makes no
            Java object in such a thread, the TaskManager would die of it (SIGSEGV).
    """
    if not is_embedded():
        return
    _start_closing()
    _here.__dict__.setdefault("operators", []).append(_Operator(close))


def is_embedded() -> bool:
    """Whether a JVM runs this interpreter, by Pemja's own module."""
    return "_pemja" in sys.modules


class _Operator:
    """Lives as long as the thread state that it is a local value of."""

    def __init__(self, close: Close) -> None:
        self._close = close

    def __del__(self) -> None:
        # Amid the end of a thread state nothing but this may be done.
        _ended.put(self._close)


_here = local()
_ended: SimpleQueue[Close] = SimpleQueue()
_starting = Lock()
_closing: list[Thread] = []


def _start_closing() -> None:
    with _starting:
        if not _closing:
            _closing.append(Thread(target=_close_ended, name="streamscore-ended", daemon=True))
            _closing[0].start()


def _close_ended() -> None:
    while True:
        _close_one(_ended.get())
        while True:
            try:
                _close_one(_ended.get(timeout=_QUIET_S))
            except Empty:
                break
        drop_garbage()


def _close_one(close: Close) -> None:
    try:
        close()
    except Exception:  # the others are to be closed too
        logger.exception("an operator that has ended could not be closed")
