"""Waiting for something that another process does: by looking, with a limit, never by a pause."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_S = 0.02


def wait_until(done: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Look until it is so; what is looked at decides, the pause only spares the processor."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(POLL_S)
