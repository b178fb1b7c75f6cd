"""Which events of a key's history a feature looks at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from udfs.definition.types import DurationMs, Mistake, Strict, format_duration

DAY_MS = 86_400_000
LONGEST_DAY_MS = 25 * 3_600_000
"""The day on which clocks go back."""

_KINDS = ("sliding", "events", "session", "tumbling", "hopping", "day", "half_life", "first")
_BOUNDED_BY_WITHIN = ("events", "session", "half_life")
_WITHIN_MS = {"events": 30 * DAY_MS, "session": DAY_MS}
_HALF_LIVES = 20
_PANE_ERROR = 0.05


def is_timezone(name: str) -> bool:
    """Whether a name is in the time zone database, like Europe/Paris."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a region, like Europe
        return False
    return True


class Window(Strict):
    """One kind of window; a duration alone is a sliding one.

    ``t`` is the time of the event that is scored, less the feature's ``delay``.
    """

    shorthand: ClassVar[str] = "duration"

    sliding: DurationMs | None = Field(None, description="(t - length, t], exact")
    events: int | None = Field(None, description="the newest so many events, at most 100000")
    session: DurationMs | None = Field(
        None, description="the events up to t with no gap longer than this between them"
    )
    tumbling: DurationMs | None = Field(
        None, description="[multiple of the length since 1970, t]: the window that t is in"
    )
    hopping: DurationMs | None = Field(
        None, description="[end - length, end) with the newest end at a multiple of every"
    )
    every: DurationMs | None = Field(None, description="hopping: distance of the windows")
    day: str | None = Field(None, description="[midnight, t] in this IANA time zone")
    half_life: DurationMs | None = Field(
        None, description="(t - within, t]; an event of that age counts half"
    )
    panes: DurationMs | None = Field(
        None,
        description="sliding: older events are merged into panes of this length, and the window "
        "begins with a whole one, at most this much earlier",
    )
    error: float | None = Field(
        None,
        description="panes: error of p<q>, and standard error of distinct, where events are merged;"
        " 0.01 to 0.3 (default 0.05)",
    )
    first: int | None = Field(
        None,
        description="the key's oldest so many events, at most 10000, of those up to t; they are "
        "never forgotten",
    )
    within: DurationMs | None = Field(
        None,
        description="oldest event that events (default 30d), session (24h) and half_life (20 half-"
        "lives) look at",
    )

    @model_validator(mode="before")
    @classmethod
    def _length_alone(cls, given: Any) -> Any:
        return {"sliding": given} if isinstance(given, str | int | float) else given

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        written = {name: value for name, value in handler(self).items() if value is not None}
        return written["sliding"] if list(written) == ["sliding"] else written

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        kinds = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            named = f"not {' and '.join(kinds)}" if kinds else "such as 5m"
            yield Mistake((), f"a window is one of {', '.join(_KINDS)}, {named}")
            return
        kind = kinds[0]
        if kind == "day":
            if not is_timezone(self.kind_day):
                message = f"no time zone {self.day!r}; write one like UTC or Europe/Paris"
                yield Mistake(("day",), message)
        elif getattr(self, kind) <= 0:
            yield Mistake((kind,), "a window must be longer than 0")
        if self.events is not None and self.events > 100_000:
            yield Mistake(("events",), "at most 100000 events; write a duration for more")
        if self.first is not None and self.first > 10_000:
            yield Mistake(("first",), "at most 10000 events: each key keeps them for good")
        if (kind == "hopping") != (self.every is not None):
            verb = "needs" if kind == "hopping" else "has no"
            yield Mistake(("every",), f"a {kind} window {verb} every")
        elif self.every is not None and self.every <= 0:
            yield Mistake(("every",), "must be longer than 0")
        yield from self._pane_mistakes(kind)
        if self.within is not None and kind not in _BOUNDED_BY_WITHIN:
            yield Mistake(("within",), f"a {kind} window has no within: its length bounds it")
        elif self.within is not None and self.within <= 0:
            yield Mistake(("within",), "must be longer than 0")

    def _pane_mistakes(self, kind: str) -> Iterator[Mistake]:
        if self.panes is None:
            if self.error is not None:
                yield Mistake(("error",), "only a window with panes has an error")
            return
        if self.sliding is None:
            yield Mistake(("panes",), f"a {kind} window has no panes; a sliding one can")
        elif not 1_000 <= self.panes <= self.sliding:
            yield Mistake(("panes",), "must be at least 1s, and no longer than the window")
        if self.error is not None and not 0.01 <= self.error <= 0.3:
            yield Mistake(("error",), "must be 0.01 to 0.3")

    @property
    def pane_error(self) -> float:
        """The error of sketches of a window with panes."""
        return _PANE_ERROR if self.error is None else self.error

    @property
    def kind(self) -> str:
        """``sliding``, ``events`` and so on."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def kind_day(self) -> str:
        """The time zone of a ``day`` window."""
        return self.day or "UTC"

    @property
    def reach_ms(self) -> int:
        """How far back before ``t`` it can look, in ms."""
        match self.kind:
            case "day":
                return LONGEST_DAY_MS
            case "hopping":
                assert self.hopping is not None and self.every is not None
                return self.hopping + self.every
            case "first":
                return 0  # it is kept apart
            case "half_life":
                assert self.half_life is not None
                return self.within or _HALF_LIVES * self.half_life
            case "events" | "session" as kind:
                return self.within or _WITHIN_MS[kind]
            case "sliding":
                assert self.sliding is not None
                return self.sliding + (self.panes or 0)
            case kind:
                length: int = getattr(self, kind)
                return length

    @property
    def label(self) -> str:
        """The end of a feature's name: ``5m``, ``last10``, ``session30m``, ``day``, ``decay1h``."""
        match self.kind:
            case "sliding":
                return format_duration(self.sliding or 0)
            case "events":
                return f"last{self.events}"
            case "first":
                return f"first{self.first}"
            case "day":
                return "day"
            case "half_life":
                return f"decay{format_duration(self.half_life or 0)}"
            case kind:
                return f"{kind}{format_duration(getattr(self, kind))}"
