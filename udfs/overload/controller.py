"""Decides which share of the low-priority events is kept, by a clock and by what waits."""

from __future__ import annotations

from dataclasses import dataclass

from udfs.definition.overload import OverloadSpec
from udfs.overload.load import Load

ALL = 1.0
STEP_MS = 1_000
"""How long a share is tried before a larger one is."""

GROWTH = 1.25
"""Of the share, in one step. One beyond what can be scored lets lag grow by a quarter of a second a
second at most, so it is seen before it is large; doubling made three times the lag."""

_FIRST_SHARE = 0.1
"""An attempt begins with this share at least."""

_RELAPSE_MS = 60_000
"""An overload that comes back within this time has not ended."""


@dataclass(slots=True)
class _Above:
    """For how long a value has been at a limit or above, without a pause.

    A queue that stands shows in every value, a burst or a pause of the JVM only in some: the
    shortest wait of an interval tells them apart, not the longest or the mean.
    """

    limit: float
    since_ms: int | None = None

    def for_ms(self, now_ms: int, value: float) -> int | None:
        """Since when in ms; none if it is below."""
        if value < self.limit:
            self.since_ms = None
            return None
        if self.since_ms is None:
            self.since_ms = now_ms
        return now_ms - self.since_ms


class Controller:
    """The state of one operator: all events, or a share of those of low priority.

    It begins to shed when lag, or the queue, has been at ``enter`` or above for ``sustained``, but
    not within ``warm_up`` of its first batch. While it sheds it keeps ``keep``. An attempt to end
    tries a quarter more each second, until it keeps all. A queue that stands at ``leave`` meanwhile
    is an attempt that has failed: it keeps ``keep`` again.

    An attempt costs a small queue, so it is made when it can succeed: when for ``calm`` no queue
    has stood at ``leave``, and clearly less came than was too much, or no more than has been
    carried before (``Load``); in the latter case the wait is twice as long after each attempt that
    has failed, up to ``retry``. What can be scored may also have grown, which nothing shows: after
    ``retry`` without a queue it tries whatever comes.

    Attributes:
        share: Of the low-priority events that is kept now; 1 keeps all.
        reason: ``lag`` or ``queue``: what began the shedding.
        load: What comes and goes on.

    Args:
        spec: The limits.
    """

    def __init__(self, spec: OverloadSpec) -> None:
        self._spec = spec
        self.share = ALL
        self.reason = "lag"
        self.load = Load()
        queue = spec.queue
        self._lag_over = _Above(spec.lag.enter)
        self._queue_over = _Above(queue.enter)
        self._lag_left = _Above(spec.lag.leave)
        self._queue_left = _Above(queue.leave)
        self._wait_ms = spec.calm
        self._fits_since_ms: int | None = None
        self._calm_since_ms: int | None = None
        self._first_ms: int | None = None
        self._grown_ms = self._seen_ms = 0
        self._ended_ms: int | None = None

    @property
    def sheds(self) -> bool:
        """Whether events of low priority are shed now."""
        return self.share < ALL

    def observe(self, now_ms: int, lag_ms: float, queue: float = 0.0, events: int = 0) -> float:
        """Take notice of a micro-batch; the share that is kept of it.

        Args:
            now_ms: A clock that never goes back.
            lag_ms: How long the batch has waited.
            queue: How full the calls to the model server are, 0 to 1.
            events: Of the batch; how many are shed is told to ``load``.
        """
        if self._first_ms is None:
            self._first_ms = now_ms
        limits = self._spec.lag.leave, self._spec.queue.leave
        self.load.add(now_ms, events, lag_ms >= limits[0] or queue >= limits[1])
        over = [
            name
            for name, above, value in (
                ("lag", self._lag_over, lag_ms),
                ("queue", self._queue_over, queue),
            )
            if self._stands(above.for_ms(now_ms, value))
        ]
        left = [
            self._stands(self._lag_left.for_ms(now_ms, lag_ms)),
            self._stands(self._queue_left.for_ms(now_ms, queue)),
        ]
        if self.sheds:
            self._try_to_end(now_ms, not any(left))
        elif over and now_ms - self._first_ms >= self._spec.warm_up:
            self._begin(now_ms, over[0])
        self._seen_ms = now_ms
        return self.share

    def _stands(self, above_ms: int | None) -> bool:
        return above_ms is not None and above_ms >= self._spec.sustained

    def _begin(self, now_ms: int, reason: str) -> None:
        relapsed = self._ended_ms is not None and now_ms - self._ended_ms < _RELAPSE_MS
        self._wait_ms = self._longer() if relapsed else self._spec.calm
        self.share, self.reason = self._spec.keep, reason
        self._calm_since_ms = self._fits_since_ms = None
        self.load.begin()

    def _try_to_end(self, now_ms: int, calm: bool) -> None:
        if not calm:
            self._calm_since_ms = self._fits_since_ms = None
            if self.share > self._spec.keep:
                self.share, self._wait_ms = self._spec.keep, self._longer()
                self.load.fail()
            return
        # Nothing came for long: nothing can have waited.
        was_idle = now_ms - self._seen_ms >= self._spec.calm
        since_ms = self._seen_ms if was_idle else now_ms
        if self._calm_since_ms is None:
            self._calm_since_ms = since_ms
        if not self.load.fits:
            self._fits_since_ms = None
        elif self._fits_since_ms is None:
            self._fits_since_ms = since_ms
        if self._is_time(now_ms):
            self._grow(now_ms)

    def _is_time(self, now_ms: int) -> bool:
        """For a larger share: the next step of an attempt, or the first one."""
        if self.share > self._spec.keep:
            return now_ms - self._grown_ms >= STEP_MS
        wait_ms = self._spec.calm if self.load.is_less else self._wait_ms
        waits = (self._fits_since_ms, wait_ms), (self._calm_since_ms, self._spec.retry)
        return any(since is not None and now_ms - since >= wait for since, wait in waits)

    def _grow(self, now_ms: int) -> None:
        self.share, self._grown_ms = min(ALL, max(GROWTH * self.share, _FIRST_SHARE)), now_ms
        if not self.sheds:
            self._ended_ms = now_ms

    def _longer(self) -> int:
        return max(self._spec.calm, min(self._spec.retry, 2 * self._wait_ms))
