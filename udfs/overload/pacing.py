"""A limit on how fast an operator takes records, so that back pressure leaves the rest in Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable

_BURST_S = 0.1


class RateLimit:
    """Lets so many records a second pass, by waiting.

    The connector of Kafka has no such limit, so the first operator waits, which holds up what comes
    before it. A checkpoint waits too, at most until the batch in hand is through: a batch is what
    comes in ``batch.window``, some thousand records of a backlog, so at 1,000/s some seconds.

    Args:
        per_s: Records per second.
        clock: Monotonic seconds.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_s, self._clock, self._sleep = per_s, clock, sleep
        self._free_s = clock()

    def wait(self, records: int) -> None:
        """Wait until the records before these are paid for; a tenth of a second is on credit."""
        wait_s = self._free_s - self._clock()
        if wait_s > _BURST_S:
            self._sleep(wait_s)
        self._free_s = max(self._free_s, self._clock()) + records / self._per_s


def limit_of(per_s: float | None) -> RateLimit | None:
    """The limit, if there is one."""
    return None if per_s is None else RateLimit(per_s)
