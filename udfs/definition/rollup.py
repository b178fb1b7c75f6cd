"""What a user declares about windows of readings that become events of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from pydantic import Field

from udfs.definition.event import EventSpec, FieldSpec, TimeSpec, is_key
from udfs.definition.readable import unreadable
from udfs.definition.types import DurationMs, Mistake, Strict, doubles
from udfs.features.aggregates import OF_A_WINDOW, parse_aggregate
from udfs.features.formulas import FormulaError, parse
from udfs.features.series import Series, kinds_of

WINDOW_ID, WINDOW_START, WINDOW_END = "window", "window_start_ms", "window_end_ms"
READINGS, CLOSED_BY = "readings", "closed_by"
BY_TIME, BY_IDLENESS, BY_END, BY_CLOCK = "time", "idle", "end", "clock"
"""What closes a window: a later reading, a silent machine, the end of the input, the clock."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_FIELDS = (WINDOW_ID, WINDOW_START, WINDOW_END, READINGS, CLOSED_BY)


class RollupField(Strict):
    """What is kept of one sensor's readings in a window."""

    value: str = Field(description="a numeric field of the readings, or a formula of several")
    where: str | None = Field(None, description="formula; only readings for which it holds")
    prefix: str | None = Field(
        None, description="start of the names, <prefix>_<aggregate>; none: the field's name"
    )
    aggregates: tuple[str, ...] = Field(
        min_length=1, description="see the table of aggregates, e.g. count, mean, std, slope"
    )

    @property
    def series(self) -> Series:
        """What is kept of a reading until its window closes."""
        return Series(self.value, self.where)

    @property
    def start(self) -> str:
        """The start of the names."""
        return self.prefix or self.value

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the window's fields."""
        return tuple(f"{self.start}_{aggregate}" for aggregate in self.aggregates)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if not _NAME.fullmatch(self.start):
            message = f"{self.start!r} starts no name: letters, digits and _; name one in prefix"
            yield Mistake(("prefix",), message)
        for n, name in enumerate(self.aggregates):
            try:
                code = parse_aggregate(name).aggregate.code
            except ValueError as exc:
                yield Mistake(("aggregates", n), str(exc))
                continue
            if code not in OF_A_WINDOW:
                message = f"{name} compares events: declare it in features over the windows"
                yield Mistake(("aggregates", n), message)


class RollupSpec(Strict):
    """Windows of each key's readings; each goes on as one event when it closes.

    A window is ``[start, end)``, aligned to multiples of ``every`` since 1970. It closes when its
    key's newest reading is ``event.time.allowed_lateness`` or more past its end: a key's clock
    closes no other key's windows.
    """

    every: DurationMs = Field(ge=1, description="length of the windows, which follow each other")
    fields: tuple[RollupField, ...] = Field(
        min_length=1, description="what windows say of readings"
    )
    keep: tuple[str, ...] = Field(
        (), description="string fields that windows have as their newest reading has them"
    )
    idle: DurationMs = Field(
        15_000,
        ge=100,
        description="a key's windows close when it has sent nothing for so long, by the clock",
    )
    overdue: DurationMs | None = Field(
        None,
        ge=100,
        description="a window that its key's next reading is late to close is closed by the clock, "
        "so long after that reading was due; none waits for it",
    )
    silent_after: DurationMs | None = Field(
        None, description="a key that has sent nothing for so long is an alert; none tells nobody"
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what is aggregated, in order."""
        return tuple(c for field in self.fields for c in field.columns)

    @property
    def named(self) -> tuple[tuple[Series, str], ...]:
        """Series and aggregate of each column."""
        return tuple((f.series, aggregate) for f in self.fields for aggregate in f.aggregates)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if twice := doubles((*_OWN_FIELDS, *self.keep, *self.columns)):
            yield Mistake(("fields",), f"a window would have twice: {', '.join(twice)}")
        if self.silent_after is not None and self.silent_after < self.idle:
            yield Mistake(("silent_after",), "must be at least idle: a window closes before that")

    def unfit(self, readings: EventSpec, key: str) -> Iterator[Mistake]:
        """What does not fit the readings, below ``rollup``."""
        kinds = kinds_of(readings)
        for n, field in enumerate(self.fields):
            yield from unreadable(("fields", n, "value"), field.value, kinds)
            if field.where is not None:
                yield from unreadable(("fields", n, "where"), field.where, kinds, "truth")
        for n, name in enumerate(self.keep):
            yield from readings.unfit(("keep", n), name, is_key, "a required string, to be kept")
        if key in (*_OWN_FIELDS, *self.keep, *self.columns):
            message = f"a window would have {key!r} twice: it has the key as it is"
            yield Mistake(("keep",) if key in self.keep else ("fields",), message)

    def read(self, readings: EventSpec) -> frozenset[str]:
        """The fields of readings that windows are computed from, as far as formulas can be read."""
        kinds, names = kinds_of(readings), set[str]()
        for text in (t for field in self.fields for t in (field.value, field.where) if t):
            with suppress(FormulaError):
                names |= {text} if text in kinds else set(parse(text, kinds).names)
        return frozenset(names)

    def event_of(self, readings: EventSpec, key: str) -> EventSpec:
        """The schema of a window as an event; its id has the key in it, and is as sensitive."""
        whole = (WINDOW_START, WINDOW_END, READINGS)
        time = TimeSpec(
            field=WINDOW_END,
            format="epoch_ms",
            earliest=readings.time.earliest,
            max_future=readings.time.max_future + self.every,
            allowed_lateness=readings.time.allowed_lateness + self.every + self.idle,
        )
        fields = (
            FieldSpec(name=WINDOW_ID, type="string", sensitive=readings.field(key).sensitive),
            FieldSpec(name=CLOSED_BY, type="string"),
            *(readings.field(name) for name in (key, *self.keep)),
            *(FieldSpec(name=name, type="int") for name in whole),
            *(FieldSpec(name=name, type="float", required=False) for name in self.columns),
        )
        return EventSpec(
            id=WINDOW_ID, time=time, fields=fields, dedupe_within=0, max_bytes=readings.max_bytes
        )
