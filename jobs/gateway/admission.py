"""How many requests a gateway lets wait for the job at once, found out from how long they take."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["Admission"]

_SLOW = 0.5
_CUT = 0.8
_GROWTH = 1.25
_LEAST = 8.0


class Admission:
    """A limit of requests at the job that follows what the job can do.

    A job that is asked more than it can do answers everything late. Whoever finds no place is
    answered at once, by popular items. A queue that stays shows in the quickest answer of a while
    (the deadline's length): if even that took more than ``_SLOW`` of the deadline, the limit falls
    by a fifth; else it grows by a quarter if somebody found no place. A moment's standstill makes
    answers late, but not all of a while's, and cuts nothing (as CoDel: Nichols and Jacobson, ACM
    Queue 2012). For one event loop.

    Args:
        deadline_s: How long a request is waited for.
        most: The limit's limit, from which it starts.
        clock: Monotonic seconds.
    """

    def __init__(self, deadline_s: float, most: int, clock: Callable[[], float]) -> None:
        self._deadline_s = deadline_s
        self._most = self._limit = float(most)
        self._clock = clock
        self._waiting = self._peak = 0
        self._quickest_s = math.inf
        self._begin(clock())

    @property
    def limit(self) -> int:
        """How many may wait now."""
        return int(self._limit)

    def enter(self) -> bool:
        """Take a place; False if there is none."""
        if self._waiting >= self.limit:
            self._refused = True
            return False
        self._waiting += 1
        self._peak = max(self._peak, self._waiting)
        return True

    def leave(self, took_s: float) -> None:
        """Give the place back.

        Args:
            took_s: How long the answer took, or how long it was waited for.
        """
        self._waiting -= 1
        self._quickest_s = min(self._quickest_s, took_s)
        now_s = self._clock()
        if now_s - self._began_s >= self._deadline_s:
            self._adapt()
            self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._began_s = now_s
        self._quickest_s = math.inf
        self._refused = False
        self._peak = self._waiting

    def _adapt(self) -> None:
        if self._quickest_s > _SLOW * self._deadline_s:
            # From what was there: the limit of an idle gateway says nothing of the job.
            self._limit = min(self._limit, max(_LEAST, _CUT * self._peak))
        elif self._refused:
            self._limit = min(self._most, _GROWTH * self._limit)
