"""What a user declares about features."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from udfs.definition.expression import ExpressionFeature
from udfs.definition.preparation import PreparationSpec
from udfs.definition.types import DurationMs, Mistake, Strict, doubles
from udfs.definition.window import Window
from udfs.features.aggregates import (
    AGGREGATES,
    DECAYED,
    OF_EVENTS_BEFORE,
    PANED,
    Reads,
    parse_aggregate,
)

KEY_SEPARATOR = "\x1f"
"""Stands between the values of a key of several fields; no key field holds control characters."""

Fields = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    PlainSerializer(lambda fields: fields[0] if len(fields) == 1 else list(fields)),
]
"""One field or several; one may be written alone."""


_PANED = ", ".join(a.name for a in AGGREGATES if a.code in PANED)


class WindowFeature(Strict):
    """Aggregates of a key's events over windows that end with the event that is scored."""

    prefix: str = Field(description="start of the names: <prefix>_<aggregate>_<window>")
    key: Fields = Field(description="field, or list of fields, that the windows are kept by")
    stream: Literal["events", "labels"] = Field("events", description="what is aggregated")
    value: str | tuple[str, str] | None = Field(
        None,
        description="what is aggregated: a field, a formula, or [latitude, longitude]; none counts",
    )
    where: str | None = Field(
        None, description="formula; only events for which it holds, e.g. type == 'CNP'"
    )
    windows: tuple[Window, ...] = Field(
        min_length=1, description="lengths of sliding windows, as 5m, or other kinds"
    )
    delay: DurationMs = Field(0, description="how long before the event the windows end")
    aggregates: tuple[str, ...] = Field(
        min_length=1, description="see the table of aggregates, e.g. count, mean, std, p95, lag1"
    )

    @property
    def stage(self) -> str:
        """The name of the stage that keeps its windows: the fields, joined by ``+``."""
        return "+".join(self.key)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if not self.key or doubles(self.key):
            yield Mistake(("key",), "name a field, or a list of different fields")
        unfit = ""
        for n, name in enumerate(self.aggregates):
            try:
                aggregate = parse_aggregate(name).aggregate
            except ValueError as exc:
                yield Mistake(("aggregates", n), str(exc))
                continue
            unfit = unfit or self._unfit(name, aggregate.reads)
            if self.stream == "labels" and aggregate.of_own:
                message = f"{self.prefix!r}: an event has no label of its own; drop {name}"
                yield Mistake(("aggregates", n), message)
            if aggregate.code not in DECAYED and any(w.half_life for w in self.windows):
                message = f"a half_life window has count, sum and mean, not {name}"
                yield Mistake(("aggregates", n), message)
            if aggregate.code not in PANED and any(w.panes for w in self.windows):
                message = f"{name} cannot be merged from panes; windows with panes have {_PANED}"
                yield Mistake(("aggregates", n), message)
            if aggregate.code in OF_EVENTS_BEFORE and any(w.first for w in self.windows):
                message = f"a first window stands still, it has no event before: drop {name}"
                yield Mistake(("aggregates", n), message)
        if unfit:
            yield Mistake(("value",), unfit)
        if isinstance(self.value, tuple) and self.value[0] == self.value[1]:
            yield Mistake(("value",), "a point needs two fields: [latitude, longitude]")
        if self.delay and any(w.kind == "session" for w in self.windows):
            yield Mistake(("delay",), "a session window ends with the event: it has no delay")
        if self.stream == "labels" and any(w.panes for w in self.windows):
            yield Mistake(("windows",), "labels can be corrected: their windows have no panes")
        if self.stream == "labels" and any(w.first for w in self.windows):
            yield Mistake(("windows",), "labels can change: a first window is of events")
        if twice := doubles(w.label for w in self.windows):
            yield Mistake(("windows",), f"windows of one name: {', '.join(twice)}")

    def _unfit(self, name: str, reads: Reads) -> str:
        """Why an aggregate cannot read the value, as far as its form tells."""
        if reads == "anything":
            return ""
        if reads == "point":
            is_point = isinstance(self.value, tuple)
            return "" if is_point else f"{name} needs value: [latitude, longitude]"
        if isinstance(self.value, tuple):
            return f"{name} cannot aggregate a point: name one field in value"
        if self.value is None:
            return f"{self.prefix!r} aggregates a value, for {name}: name the field in value"
        return ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, window by window and aggregate by aggregate."""
        return tuple(
            f"{self.prefix}_{aggregate}_{window.label}"
            for window, aggregate in product(self.windows, self.aggregates)
        )

    @property
    def horizon_ms(self) -> int:
        """How far back before an event the windows look, in ms."""
        return max(w.reach_ms for w in self.windows) + self.delay

    @property
    def exact_ms(self) -> int:
        """How far back before an event they need single events, in ms."""
        return max(0 if w.panes else w.reach_ms for w in self.windows) + self.delay


class FormulaFeature(Strict):
    """A feature computed from other features, e.g. the ratio of two."""

    name: str = Field(description="the feature's name")
    formula: str = Field(
        description="from the features before it and the event's numeric fields, e.g. a / b"
    )


class FeatureSpec(Strict):
    """All features of a job, in the order in which the model gets them."""

    expressions: tuple[ExpressionFeature, ...] = Field(
        (), description="features of one event alone"
    )
    windows: tuple[WindowFeature, ...] = Field((), description="features over a key's history")
    formulas: tuple[FormulaFeature, ...] = Field((), description="features of features")

    preparation: PreparationSpec = Field(
        default_factory=PreparationSpec, description="from features to the model's columns"
    )

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """The key fields of each keyed stage, by its name, in the order of their first use."""
        return {w.stage: w.key for w in self.windows}

    @property
    def categories(self) -> dict[str, ExpressionFeature]:
        """The features of type category by name."""
        return {e.name: e for e in self.expressions if e.type == "category"}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every feature name: the expressions', each stage's, the formulas'."""
        return (
            *(c for e in self.expressions for c in e.columns),
            *(c for s in self.stages for w in self.of_stage(s) for c in w.columns),
            *(f.name for f in self.formulas),
        )

    def of_stage(self, stage: str) -> tuple[WindowFeature, ...]:
        """The window features of a stage."""
        return tuple(w for w in self.windows if w.stage == stage)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if twice := doubles(self.columns):
            yield Mistake((), f"two features would have the same name: {', '.join(twice)}")
        if not self.columns:
            yield Mistake((), "declare at least one feature")
