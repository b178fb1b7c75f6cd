"""The event loop that an operator's calls run in, beside the operator."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import cache
from threading import Thread
from typing import Any

from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.lookups import Lookups

__all__ = ["open_lookups", "run", "wait_closed"]

logger = logging.getLogger(__name__)

_CLOSE_S = 1.0
"""How long an operator that ends waits for what it closes."""


def open_lookups(specs: tuple[LookupSpec, ...]) -> Lookups:
    """The look-ups, connected to the stores that answer at once."""
    lookups = Lookups(specs)
    run(lookups.connect()).result()
    return lookups


def run(coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Start a call; the future gets what it returns."""
    return asyncio.run_coroutine_threadsafe(coroutine, _event_loop())


def wait_closed(*closing: Coroutine[Any, Any, None]) -> None:
    """Close one after the other; one that cannot be closed, or not soon, does not stop the rest."""
    for one in closing:
        call = run(one)
        try:
            call.result(_CLOSE_S)
        except TimeoutError:
            call.cancel()
        except Exception:  # a store's own errors
            logger.exception("a connection could not be closed")


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process' calls, in a thread of its own that ends with the process.

    Two operators that open at the same moment may get one each, which does no harm.
    """
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="streamscore-calls", daemon=True).start()
    return loop
