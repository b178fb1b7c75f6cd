"""What an operator does to the Python interpreter it runs in."""

from __future__ import annotations

import gc
import sys
from threading import Lock

_YOUNG_OBJECTS = 100_000
_SWITCH_INTERVAL_S = 0.0005

_collecting = Lock()
"""A collection beside another one does nothing, and what it should drop would be frozen."""


def calm_garbage_collector() -> None:
    """Keep the cyclic garbage collector from walking over all that was loaded.

    A micro-batch makes and drops thousands of containers, none of them in cycles. With Python's
    own thresholds (700 objects) that alone sets off collection after collection, a tenth of the
    time, and every so often one of everything, a pause that the latency shows. Call it when all is
    loaded and warm; each operator of a start does, and walks over what is new since the one before.
    """
    with _collecting:
        gc.collect()
        gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 100)


def drop_garbage() -> None:
    """Let go of what operators that have ended left in cycles, though it was there when all froze.

    That is their Python objects, and the keyed state that those hold in the JVM. It walks over
    everything, some 0.2 s in which no other operator of the process goes on.
    """
    with _collecting:
        gc.unfreeze()
        gc.collect()
        gc.freeze()


def share_interpreter_fairly() -> None:
    """Let a thread that waits for the interpreter have it after half a millisecond, not five.

    In thread mode every operator of a TaskManager and the event loop of the model calls take turns
    in one interpreter. With Python's own interval an answer that is there waits for 5 ms behind
    another operator's batch, once per hand-over. Measured at 5,000 and 10,000 records/s
    (bench/latency.py, served, 2 cores): p99 69 and 166 ms instead of 285 and 200.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def restore_print() -> None:
    """Let Numba be imported in PyFlink's worker process.

    The worker replaces the built-in ``print`` by a method that is no attribute of the module it
    names, and Numba, which looks ``print`` up there, fails with AttributeError. Call it before the
    first import of Numba; anywhere else it does nothing.
    """
    module = sys.modules.get(print.__module__)
    if module is not None and not hasattr(module, "print"):
        module.print = print  # type: ignore[attr-defined]
