"""How much came and how much of it went on, which says whether all of it could be scored."""

from __future__ import annotations

INTERVAL_MS = 1_000

_AS_MUCH = 1.1
"""Of what has been carried: a rate is never the same twice."""

_LESS_THAN_CAME = 0.5
"""Of the most that came in an overload: what had waited comes faster than it was sent."""

_LESS_THAN_FAILED = 0.8
"""Of what went on when an attempt failed."""


class Load:
    """Events per second of one operator, and which of them it could and could not carry.

    Attributes:
        came_per_s: In the last whole interval.
        kept_per_s: Of them, those that went on.
        carried_per_s: The most that went on in an interval in which nothing waited.
    """

    def __init__(self) -> None:
        self.came_per_s = self.kept_per_s = 0.0
        self.carried_per_s = 0.0
        self._most_per_s = self._failed_per_s = 0.0
        self._since_ms: int | None = None
        self._came = self._shed = 0
        self._waited = False

    def add(self, now_ms: int, events: int, waits: bool) -> None:
        """A batch has come.

        Args:
            now_ms: A clock that never goes back.
            events: Of it.
            waits: Whether it has waited for long.
        """
        if self._since_ms is None:
            self._since_ms = now_ms
        if (took_ms := now_ms - self._since_ms) >= INTERVAL_MS:
            self._close(took_ms)
            self._since_ms = now_ms
        self._came += events
        self._waited |= waits

    def shed(self, events: int) -> None:
        """So many of the last batch do not go on."""
        self._shed += events

    def begin(self) -> None:
        """An overload begins."""
        self._most_per_s, self._failed_per_s = self.came_per_s, 0.0

    def fail(self) -> None:
        """What goes on now is too much."""
        self._failed_per_s = self.kept_per_s

    @property
    def is_less(self) -> bool:
        """Whether clearly less comes than was too much."""
        if self._failed_per_s:
            return self.came_per_s < _LESS_THAN_FAILED * self._failed_per_s
        return self.came_per_s < _LESS_THAN_CAME * self._most_per_s

    @property
    def fits(self) -> bool:
        """Whether all that comes now could be carried, as far as is known."""
        return self.is_less or self.came_per_s <= _AS_MUCH * self.carried_per_s

    def _close(self, took_ms: int) -> None:
        self.came_per_s = 1_000 * self._came / took_ms
        self.kept_per_s = 1_000 * (self._came - self._shed) / took_ms
        if not self._waited:
            self.carried_per_s = max(self.carried_per_s, self.kept_per_s)
        self._most_per_s = max(self._most_per_s, self.came_per_s)
        self._came = self._shed = 0
        self._waited = False
