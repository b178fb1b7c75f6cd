"""How many requests a gateway lets wait for the job at once, found out from how long they take."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Admission"]

_TARGET = 0.6
_CUT = 0.8
_LEAST = 4.0


class Admission:
    """A limit of requests at the job that follows what the job can do.

    A job that is asked more than it can do answers everything late. So the limit falls by a fifth
    when an answer took more than ``_TARGET`` of the deadline, at most once in so long a time, and
    grows by one for as many quick answers as it has places, or faster below what was good before.
    Whoever finds no place is answered at once, by popular items. For one event loop.

    Args:
        deadline_s: How long a request is waited for.
        most: The limit's limit, from which it starts.
        clock: Monotonic seconds.
    """

    def __init__(self, deadline_s: float, most: int, clock: Callable[[], float]) -> None:
        self._slow_s = _TARGET * deadline_s
        self._most = float(most)
        self._limit = float(most)
        self._clock = clock
        self._cut_s = -self._slow_s
        self._waiting = 0

    @property
    def limit(self) -> int:
        """How many may wait now."""
        return int(self._limit)

    def enter(self) -> bool:
        """Take a place; False if there is none."""
        if self._waiting >= self.limit:
            return False
        self._waiting += 1
        return True

    def leave(self, took_s: float) -> None:
        """Give the place back.

        Args:
            took_s: How long the answer took, or how long it was waited for.
        """
        full = 2 * self._waiting >= self.limit
        self._waiting -= 1
        now_s = self._clock()
        if took_s > self._slow_s:
            if now_s - self._cut_s >= self._slow_s:
                self._cut_s = now_s
                # From what was there: an idle gateway's limit says nothing of the job.
                held = min(self._limit, self._waiting + 1.0)
                self._limit = max(_LEAST, _CUT * held)
        elif full:
            self._limit = min(self._most, self._limit + 1.0 / self._limit)
