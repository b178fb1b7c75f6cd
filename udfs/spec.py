"""What a user declares about events, labels and features: typed, checked, engine-free.

These models are the ``event``, ``labels`` and ``features`` sections of a file in ``conf/``. Every
field says what it is and in which unit; an unknown key is refused. The job, the training and the
tests read the same objects, which is what keeps a live feature equal to a training one.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration_ms(value: object) -> int:
    """Turn ``5m``, ``24h``, ``7d``, ``250ms`` or a whole number of milliseconds into milliseconds.

    Raises:
        ValueError: the text is not a duration.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration; write a number and ms, s, m, h or d: 5m")
    return round(float(match[1]) * _UNIT_MS[match[2]])


def format_duration(duration_ms: int) -> str:
    """The shortest exact text of a duration: 300000 -> ``5m``; one day stays ``24h``."""
    for unit in ("d", "h", "m", "s"):
        if duration_ms % _UNIT_MS[unit] == 0 and (unit != "d" or duration_ms > _UNIT_MS["d"]):
            return f"{duration_ms // _UNIT_MS[unit]}{unit}"
    return f"{duration_ms}ms"


DurationMs = Annotated[
    int, BeforeValidator(parse_duration_ms), PlainSerializer(format_duration, return_type=str)
]


class Strict(BaseModel):
    """A settings model: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldSpec(Strict):
    """One field of an event."""

    name: str = Field(description="key in the event's JSON object")
    type: Literal["string", "float", "int", "bool"] = Field(description="JSON type of the value")
    required: bool = Field(True, description="absent or null sends the event to the dead letters")
    default: str | float | int | bool | None = Field(
        None, description="value of an absent or null optional field; none means missing"
    )
    min: float | None = Field(None, description="smallest allowed number, in the field's own unit")
    max: float | None = Field(None, description="largest allowed number, in the field's own unit")

    @property
    def is_numeric(self) -> bool:
        """Whether the field holds a number (or a truth value, counted as 0 and 1)."""
        return self.type != "string"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.type == "string" and (self.min is not None or self.max is not None):
            raise ValueError(f"field {self.name!r} is a string: it can have neither min nor max")
        return self


class TimeSpec(Strict):
    """Where the event time is, and which times are believed."""

    field: str = Field(description="field that holds the event time")
    format: Literal["epoch_ms", "epoch_s", "iso8601"] = Field(
        "epoch_ms", description="how the time is written; ISO 8601 without an offset is UTC"
    )
    earliest: datetime = Field(
        datetime.fromisoformat("2000-01-01T00:00:00+00:00"),
        description="an older event time is a dead letter",
    )
    max_future: DurationMs = Field(
        3_600_000,
        description="an event time this much after the record's Kafka time is a dead letter",
    )
    allowed_lateness: DurationMs = Field(
        3_600_000,
        description="features are exact for events at most this much older than their key's newest",
    )

    @property
    def earliest_ms(self) -> int:
        """The oldest believed event time, in epoch milliseconds."""
        return round(self.earliest.timestamp() * 1_000)


class EventSpec(Strict):
    """The schema of an event: a JSON object per Kafka record."""

    id: str = Field(description="field with the event's unique id; repeats are duplicates")
    time: TimeSpec = Field(description="event time")
    fields: tuple[FieldSpec, ...] = Field(description="the fields the job reads; others are kept")
    dedupe_within: DurationMs = Field(
        86_400_000, description="an id seen again within this event time is a duplicate"
    )
    max_bytes: int = Field(
        1_048_576, gt=0, description="a larger record is a dead letter, in bytes"
    )

    def field(self, name: str) -> FieldSpec:
        """The declared field of that name.

        Raises:
            ValueError: no such field is declared.
        """
        for spec in self.fields:
            if spec.name == name:
                return spec
        known = ", ".join(f.name for f in self.fields)
        raise ValueError(f"no field {name!r} in event.fields; declared are: {known}")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [f.name for f in self.fields]
        doubles = sorted({n for n in names if names.count(n) > 1})
        if doubles:
            raise ValueError(f"fields declared twice: {', '.join(doubles)}")
        if self.field(self.id).type != "string":
            raise ValueError(f"the id field {self.id!r} must be a string")
        wanted = "string" if self.time.format == "iso8601" else "int"
        if self.field(self.time.field).type != wanted:
            raise ValueError(
                f"the time field {self.time.field!r} must be of type {wanted} "
                f"for format {self.time.format}"
            )
        return self


class LabelSpec(Strict):
    """The schema of a late label: a JSON object per record of the labels topic."""

    id: str = Field(description="field with the id of the labelled event")
    time: str = Field(description="field with the labelled event's own time, epoch milliseconds")
    key: str = Field(description="field with the key that label features are kept by")
    value: str = Field(description="field with the label, 0 or 1")


class ExpressionFeature(Strict):
    """A feature of one event alone."""

    name: str = Field(description="the feature's name; one_hot appends _<category>")
    type: Literal["value", "distance_km", "hour_of_day", "day_of_week", "one_hot"] = Field(
        description="value: the field itself; distance_km: great circle between two points"
    )
    fields: tuple[str, ...] = Field(
        (), description="the fields it reads; distance_km: lat, lon, lat, lon in degrees"
    )
    categories: tuple[str, ...] = Field(
        (), description="one_hot: a column each; an unknown category is 0 in all of them"
    )
    timezone: str = Field("UTC", description="hour_of_day, day_of_week: IANA time zone")

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted = {"value": 1, "distance_km": 4, "one_hot": 1, "hour_of_day": 0, "day_of_week": 0}
        if len(self.fields) != wanted[self.type]:
            raise ValueError(
                f"feature {self.name!r} of type {self.type} reads {wanted[self.type]} fields, "
                f"not {len(self.fields)}"
            )
        if self.type == "one_hot" and not self.categories:
            raise ValueError(f"feature {self.name!r} of type one_hot needs categories")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError) as exc:
            raise ValueError(f"no time zone {self.timezone!r}; write one like UTC") from exc
        return self

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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.windows) <= 0:
            raise ValueError(f"windows of {self.prefix!r} must be longer than 0")
        if self.value is None and set(self.aggregates) != {"count"}:
            raise ValueError(f"{self.prefix!r} aggregates a value: name the field in value")
        if self.stream == "labels" and "ratio_to_mean" in self.aggregates:
            raise ValueError(
                f"{self.prefix!r}: an event has no label to divide; drop ratio_to_mean"
            )
        return self

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

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = self.columns
        doubles = sorted({n for n in names if names.count(n) > 1})
        if doubles:
            raise ValueError(f"two features would have the same name: {', '.join(doubles)}")
        if not names:
            raise ValueError("declare at least one feature")
        return self


class Schema(Strict):
    """Events, labels and features together, checked against each other.

    Attributes:
        event: The schema of an event.
        key: The field that Kafka records and the first stage are keyed by.
        labels: The schema of a label, or none.
        features: The declared features.
    """

    event: EventSpec
    key: str
    labels: LabelSpec | None = None
    features: FeatureSpec

    @property
    def stages(self) -> tuple[str, ...]:
        """The keys of the keyed stages: the record key first, it also removes duplicates."""
        return (self.key, *(k for k in self.features.keys if k != self.key))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every feature name in the order of the stages that make them: the model's order."""
        named = [c for e in self.features.expressions for c in e.columns]
        for key in self.stages:
            named += [c for w in self.features.of_key(key) for c in w.columns]
        return tuple(named)

    def horizon_ms(self, key: str, stream: str) -> int:
        """How long a stage must keep a stream's entries: its longest window and the lateness."""
        spans = [w.horizon_ms for w in self.features.of_key(key) if w.stream == stream]
        if key == self.key and stream == "events":
            spans.append(self.event.dedupe_within)
        return max(spans, default=0) + self.event.time.allowed_lateness

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key in self.stages:
            if self.event.field(key).type != "string" or not self.event.field(key).required:
                raise ValueError(f"the key {key!r} must be a required string field")
        for expression in self.features.expressions:
            self._check_expression(expression)
        for window in self.features.windows:
            self._check_window(window)
        return self

    def _check_expression(self, expression: ExpressionFeature) -> None:
        for name in expression.fields:
            numeric = self.event.field(name).is_numeric
            if numeric == (expression.type == "one_hot"):
                wanted = "string" if expression.type == "one_hot" else "numeric"
                raise ValueError(f"feature {expression.name!r}: field {name!r} must be {wanted}")

    def _check_window(self, window: WindowFeature) -> None:
        if window.stream == "labels":
            if self.labels is None:
                raise ValueError(f"{window.prefix!r} reads labels, but there is no labels section")
            if window.key != self.labels.key or window.value not in (None, self.labels.value):
                raise ValueError(
                    f"{window.prefix!r} must use the labels' key {self.labels.key!r} "
                    f"and value {self.labels.value!r}"
                )
        elif window.value is not None:
            field = self.event.field(window.value)
            if not field.is_numeric or not field.required:
                raise ValueError(
                    f"{window.prefix!r}: value {window.value!r} must be a required number"
                )


def as_python(model: BaseModel) -> dict[str, Any]:
    """A settings model as plain JSON types, durations written as text."""
    return model.model_dump(mode="json")
