"""What a user declares about features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from udfs.preparation_spec import Encoding, PreparationSpec, encoding_mistakes
from udfs.settings_types import DurationMs, Mistake, Strict, doubles, format_duration

_FIELDS_READ = {
    "value": 1,
    "distance_km": 4,
    "one_hot": 1,
    "category": 1,
    "hour_of_day": 0,
    "day_of_week": 0,
}


def _is_timezone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a region, like Europe
        return False
    return True


class ExpressionFeature(Strict):
    """A feature of one event alone."""

    name: str = Field(description="the feature's name; one_hot appends _<category>")
    type: Literal["value", "distance_km", "hour_of_day", "day_of_week", "one_hot", "category"] = (
        Field(
            description="value: the field itself; distance_km: great circle between two points; "
            "category: a text that training encodes"
        )
    )
    fields: tuple[str, ...] = Field(
        (), description="the fields it reads; distance_km: lat, lon, lat, lon in degrees"
    )
    categories: tuple[str, ...] = Field(
        (), description="one_hot: a column each; an unknown category is 0 in all of them"
    )
    timezone: str = Field("UTC", description="hour_of_day, day_of_week: IANA time zone")
    encoding: Encoding | None = Field(
        None, description="category: what the model gets; target: the category's mean label"
    )
    max_categories: int | None = Field(
        None,
        ge=1,
        description="category: the most frequent ones that are kept; none: all, of one_hot 32",
    )
    min_count: int = Field(
        1, ge=1, description="category: one in fewer rows trained on counts as unknown"
    )
    buckets: int = Field(16, ge=2, le=4_096, description="hashing: columns")
    smoothing: float = Field(
        20.0,
        ge=0,
        allow_inf_nan=False,
        description="target: rows with the mean label of all that are added to each category",
    )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        wanted, found = _FIELDS_READ[self.type], len(self.fields)
        if found != wanted:
            yield Mistake(
                ("fields",), f"{self.name!r} of type {self.type} reads {wanted} fields, not {found}"
            )
        if (self.type == "one_hot") != bool(self.categories):
            verb = "needs" if self.type == "one_hot" else "has no"
            yield Mistake(("categories",), f"type {self.type} {verb} categories")
        if not _is_timezone(self.timezone):
            message = f"no time zone {self.timezone!r}; write one like UTC or Europe/Paris"
            yield Mistake(("timezone",), message)
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        yield from encoding_mistakes(self.type, self.encoding, self.__dict__, defaults)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns this feature makes."""
        if self.type == "one_hot":
            return tuple(f"{self.name}_{category}" for category in self.categories)
        return (self.name,)


Aggregate = Literal["count", "sum", "mean", "ratio_to_mean"]


class WindowFeature(Strict):
    """Exact sliding windows per key: each event sees ``(t - delay - window, t - delay]``."""

    prefix: str = Field(description="start of the names: <prefix>_<aggregate>_<window>")
    key: str = Field(description="field that the windows are kept by")
    stream: Literal["events", "labels"] = Field("events", description="what is aggregated")
    value: str | None = Field(None, description="numeric field aggregated; count needs none")
    windows: tuple[DurationMs, ...] = Field(min_length=1, description="window lengths")
    delay: DurationMs = Field(0, description="how long before the event the windows end")
    aggregates: tuple[Aggregate, ...] = Field(
        min_length=1, description="ratio_to_mean: the event's own value over the window's mean"
    )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if min(self.windows) <= 0:
            yield Mistake(("windows",), f"windows of {self.prefix!r} must be longer than 0")
        if self.value is None and set(self.aggregates) != {"count"}:
            message = f"{self.prefix!r} aggregates a value: name the field in value"
            yield Mistake(("value",), message)
        if self.stream == "labels" and "ratio_to_mean" in self.aggregates:
            message = f"{self.prefix!r}: an event has no label to divide; drop ratio_to_mean"
            yield Mistake(("aggregates",), message)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, window by window and aggregate by aggregate."""
        return tuple(
            f"{self.prefix}_{aggregate}_{format_duration(window)}"
            for window in self.windows
            for aggregate in self.aggregates
        )

    @property
    def horizon_ms(self) -> int:
        """How far back before an event the windows look, in ms."""
        return max(self.windows) + self.delay


class FeatureSpec(Strict):
    """All features of a job, in the order in which the model gets them."""

    expressions: tuple[ExpressionFeature, ...] = Field(
        (), description="features of one event alone"
    )
    windows: tuple[WindowFeature, ...] = Field((), description="features over a key's history")
    preparation: PreparationSpec = Field(
        default_factory=PreparationSpec, description="from features to the model's columns"
    )

    @property
    def categories(self) -> dict[str, ExpressionFeature]:
        """The features of type category by name."""
        return {e.name: e for e in self.expressions if e.type == "category"}

    @property
    def columns(self) -> tuple[str, ...]:
        """Every feature name: the expressions', then each key's, in stage order."""
        named = [c for e in self.expressions for c in e.columns]
        return tuple(named + [c for key in self.keys for w in self.of_key(key) for c in w.columns])

    @property
    def keys(self) -> tuple[str, ...]:
        """The distinct keys in the order of their first use; one keyed stage each."""
        return tuple(dict.fromkeys(w.key for w in self.windows))

    def of_key(self, key: str) -> tuple[WindowFeature, ...]:
        """The window features kept by that key."""
        return tuple(w for w in self.windows if w.key == key)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if twice := doubles(self.columns):
            yield Mistake((), f"two features would have the same name: {', '.join(twice)}")
        if not self.columns:
            yield Mistake((), "declare at least one feature")
