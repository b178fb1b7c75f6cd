"""Circuit breaker: stop calling a server that keeps failing, try again after a pause.

::

            failure_threshold failures in a row
    CLOSED ────────────────────────────────────> OPEN
      ^                                          │  ^
      │ trial_calls successes     open_ms passed │  │ any failure
      └──────────────────────── HALF_OPEN <──────┘  │
                                    └───────────────┘

Failures are counted in a row, not as a rate: a server that answers part of the calls is still
worth calling, and the deadline bounds what each failure costs.

One event loop owns a breaker: no lock, hence nothing to wait for. ``state`` may be read from any
thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from model_server.errors import CircuitOpen

__all__ = ["BreakerOptions", "BreakerState", "CircuitBreaker", "Permit"]


class BreakerState(IntEnum):
    """State as a number, for a gauge."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True)
class BreakerOptions:
    """Settings of a CircuitBreaker.

    Attributes:
        failure_threshold: Failed calls in a row that open the breaker; at least 1.
        open_ms: Milliseconds without any call before trial calls; above 0.
        trial_calls: Calls let through half-open; all must succeed to close; at least 1.

    Raises:
        ValueError: A setting is out of range.
    """

    failure_threshold: int = 5
    open_ms: float = 1_000.0
    trial_calls: int = 1

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.failure_threshold < 1:
            raise ValueError(f"failure_threshold must be at least 1, is {self.failure_threshold}")
        if not self.open_ms > 0:
            raise ValueError(f"open_ms must be above 0, is {self.open_ms}")
        if self.trial_calls < 1:
            raise ValueError(f"trial_calls must be at least 1, is {self.trial_calls}")


class Permit:
    """Leave to make one call; give back its outcome exactly once, later ones are ignored."""

    def __init__(self, breaker: CircuitBreaker, period: int) -> None:
        """Remember the breaker and the period of its life that the call belongs to."""
        self._breaker = breaker
        self._period = period
        self._settled = False

    def succeed(self) -> None:
        """The server answered, be it with a refusal."""
        if self._settle():
            self._breaker._on_success()

    def fail(self) -> None:
        """The server did not do its work."""
        if self._settle():
            self._breaker._on_failure()

    def abandon(self) -> None:
        """The caller gave up: nothing is known about the server."""
        if self._settle():
            self._breaker._on_abandon()

    def _settle(self) -> bool:
        """Return whether this outcome still says something about the present period."""
        first, self._settled = not self._settled, True
        return first and self._period == self._breaker._period


class CircuitBreaker:
    """Closed, open or half-open, by the outcomes of calls."""

    def __init__(
        self,
        options: BreakerOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start closed.

        Args:
            options: Thresholds; defaults when None.
            clock: Monotonic clock in seconds.
        """
        self._options = options or BreakerOptions()
        self._clock = clock
        self._state = BreakerState.CLOSED
        # Counts state changes: the outcome of a call begun in an earlier period is stale.
        self._period = 0
        self._failures = 0
        self._opened_at_s = 0.0
        self._trials_left = 0
        self._trial_successes = 0

    @property
    def state(self) -> BreakerState:
        """The state as of now; OPEN becomes HALF_OPEN by time alone."""
        if self._state is BreakerState.OPEN and self._pause_over():
            return BreakerState.HALF_OPEN
        return self._state

    def acquire(self) -> Permit:
        """Ask for leave to make one call.

        Returns:
            The permit, to be settled with the call's outcome.

        Raises:
            CircuitOpen: The breaker is open, or half-open with all trial calls given out.
        """
        if self._state is BreakerState.OPEN and self._pause_over():
            self._half_open()
        if self._state is BreakerState.OPEN:
            raise CircuitOpen(f"open for another {self._pause_left_ms():.0f} ms")
        if self._state is BreakerState.HALF_OPEN:
            self._take_trial()
        return Permit(self, self._period)

    def _pause_left_ms(self) -> float:
        return self._options.open_ms - (self._clock() - self._opened_at_s) * 1_000.0

    def _pause_over(self) -> bool:
        return self._pause_left_ms() <= 0

    def _take_trial(self) -> None:
        if self._trials_left == 0:
            raise CircuitOpen("half-open and all trial calls are in flight")
        self._trials_left -= 1

    def _enter(self, state: BreakerState) -> None:
        self._state = state
        self._period += 1
        self._failures = 0

    def _open(self) -> None:
        self._opened_at_s = self._clock()
        self._enter(BreakerState.OPEN)

    def _half_open(self) -> None:
        self._trials_left = self._options.trial_calls
        self._trial_successes = 0
        self._enter(BreakerState.HALF_OPEN)

    def _on_success(self) -> None:
        self._failures = 0
        if self._state is not BreakerState.HALF_OPEN:
            return
        self._trial_successes += 1
        if self._trial_successes == self._options.trial_calls:
            self._enter(BreakerState.CLOSED)

    def _on_failure(self) -> None:
        self._failures += 1
        too_many = self._failures >= self._options.failure_threshold
        if too_many or self._state is BreakerState.HALF_OPEN:
            self._open()

    def _on_abandon(self) -> None:
        if self._state is BreakerState.HALF_OPEN:
            self._trials_left += 1
