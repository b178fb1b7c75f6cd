"""Decides which share of the low-priority events is kept, by a clock and by what waits."""

from __future__ import annotations

from dataclasses import dataclass

from udfs.definition.overload import OverloadSpec

ALL = 1.0
STEP_MS = 1_000
"""How long a share is tried before a larger one is."""

GROWTH = 1.25
"""Of the share, in one step. One beyond what can be scored lets lag grow by a quarter of a second a
second at most, so it is seen before it is large; doubling made three times the lag."""

_FIRST_SHARE = 0.1
"""An attempt begins with this share at least."""

MOST_PATIENCE = 8
"""How often the wait before an end is lengthened, as a factor."""

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

    It begins to shed when lag, or the queue, has been at ``enter`` or above for ``sustained``.
    While it sheds it keeps ``keep``. When neither has stood at ``leave`` for ``calm``, it tries
    a quarter more, and more again, until it keeps all. A queue that stands at ``leave``
    meanwhile is an attempt that has failed: it keeps ``keep`` again, and waits twice as long before
    the next. So an overload that lasts costs a small queue now and then, and no events but those of
    low priority.

    Attributes:
        share: Of the low-priority events that is kept now; 1 keeps all.
        reason: ``lag`` or ``queue``: what began the shedding.

    Args:
        spec: The limits.
    """

    def __init__(self, spec: OverloadSpec) -> None:
        self._spec = spec
        self.share = ALL
        self.reason = "lag"
        queue = spec.queue
        self._lag_over = _Above(spec.lag.enter)
        self._queue_over = _Above(queue.enter)
        self._lag_left = _Above(spec.lag.leave)
        self._queue_left = _Above(queue.leave)
        self._patience = 1
        self._calm_since_ms: int | None = None
        self._grown_ms = self._seen_ms = 0
        self._ended_ms: int | None = None

    @property
    def sheds(self) -> bool:
        """Whether events of low priority are shed now."""
        return self.share < ALL

    def observe(self, now_ms: int, lag_ms: float, queue: float = 0.0) -> float:
        """Take notice of a micro-batch; the share that is kept of it.

        Args:
            now_ms: A clock that never goes back.
            lag_ms: How long the batch has waited.
            queue: How full the calls to the model server are, 0 to 1.
        """
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
        elif over:
            self._begin(now_ms, over[0])
        self._seen_ms = now_ms
        return self.share

    def _stands(self, above_ms: int | None) -> bool:
        return above_ms is not None and above_ms >= self._spec.sustained

    def _begin(self, now_ms: int, reason: str) -> None:
        relapsed = self._ended_ms is not None and now_ms - self._ended_ms < _RELAPSE_MS
        self._patience = self._longer() if relapsed else 1
        self.share, self.reason, self._calm_since_ms = self._spec.keep, reason, None

    def _try_to_end(self, now_ms: int, calm: bool) -> None:
        if not calm:
            self._calm_since_ms = None
            if self.share > self._spec.keep:
                self.share, self._patience = self._spec.keep, self._longer()
            return
        if self._calm_since_ms is None:
            # Nothing came for long: nothing can have waited.
            was_idle = now_ms - self._seen_ms >= self._spec.calm
            self._calm_since_ms = self._seen_ms if was_idle else now_ms
        is_trying = self.share > self._spec.keep
        wait_ms = STEP_MS if is_trying else self._spec.calm * self._patience
        if now_ms - (self._grown_ms if is_trying else self._calm_since_ms) >= wait_ms:
            self._grow(now_ms)

    def _grow(self, now_ms: int) -> None:
        self.share, self._grown_ms = min(ALL, max(GROWTH * self.share, _FIRST_SHARE)), now_ms
        if not self.sheds:
            self._ended_ms = now_ms

    def _longer(self) -> int:
        return min(MOST_PATIENCE, 2 * self._patience)
