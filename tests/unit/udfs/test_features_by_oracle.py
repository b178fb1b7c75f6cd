"""Random features over random histories: the engine against lists and exact fractions."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.feature_oracle import Entry, Value, measure
from udfs.batches.events import Events
from udfs.definition.feature import WindowFeature
from udfs.definition.schema import Schema
from udfs.features.aggregates import AGGREGATES, DECAYED, OF_EVENTS_BEFORE, parse_aggregate
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage
from udfs.features.log_kernels import CONFLICT, DUPLICATE, LATE, NEW
from udfs.features.stage_inputs import StageInputs

BEGIN_MS = 1_711_756_800_000  # 30 March 2024: in Paris the clocks change on the next day
SECOND = 1_000
LATENESS_MS = 60 * SECOND
DEDUPE_MS = 120 * SECOND
FIELDS: list[dict[str, Any]] = [
    {"name": "id", "type": "string"},
    {"name": "t", "type": "int"},
    {"name": "card", "type": "string"},
    {"name": "shop", "type": "string"},
    {"name": "amount", "type": "float"},
    {"name": "tip", "type": "float", "required": False},
    {"name": "online", "type": "bool", "required": False},
    {"name": "kind", "type": "string", "required": False},
    {"name": "lat", "type": "float", "required": False},
    {"name": "lon", "type": "float", "required": False},
]
WHERES = {
    "amount > 0": lambda e: e.amount > 0,
    "kind == 'a'": lambda e: e.kind == "a",
    "kind in ('a', 'b') and not online": lambda e: e.kind in ("a", "b") and e.online is not True,
}


@dataclass(frozen=True)
class Event:
    id: int
    time_ms: int
    card: str
    shop: str
    amount: float
    tip: float | None
    online: bool | None
    kind: str | None
    lat: float | None
    lon: float | None

    def value_of(self, feature: WindowFeature) -> Value:
        if feature.where is not None and not WHERES[feature.where](self):
            return None
        match feature.value:
            case None:
                return 1.0
            case "amount - tip":
                return None if self.tip is None else self.amount - self.tip
            case str(name):
                value = getattr(self, name)
                return float(value) if isinstance(value, bool) else value
            case (_, _):
                known = self.lat is not None and self.lon is not None
                return (self.lat, self.lon) if known else None  # type: ignore[return-value]


def names(*reads: str) -> list[str]:
    return [a.name.replace("<k>", "2").replace("<q>", "90") for a in AGGREGATES if a.reads in reads]


NUMBERS = names("anything", "number", "number or category")
TEXTS = names("anything", "category", "number or category")
VALUES: dict[Any, list[str]] = {
    None: names("anything"),
    "amount": NUMBERS,
    "tip": NUMBERS,
    "online": NUMBERS,
    "amount - tip": NUMBERS,
    "kind": TEXTS,
    ("lat", "lon"): names("anything", "point"),
}
lengths = st.sampled_from(["1s", "7s", "60s", "10m"])
windows = st.one_of(
    lengths,
    st.builds(lambda n, w: {"events": n, "within": w}, st.integers(1, 6), lengths),
    st.builds(lambda g, w: {"session": g, "within": w}, st.sampled_from(["1s", "3s"]), lengths),
    st.builds(lambda w: {"tumbling": w}, lengths),
    st.builds(lambda w, e: {"hopping": w, "every": e}, lengths, st.sampled_from(["1s", "5s"])),
    st.builds(lambda n: {"first": n}, st.integers(1, 6)),
    st.sampled_from([{"day": "Europe/Paris"}, {"day": "UTC"}]),
)
decays = st.builds(
    lambda h, w: {"half_life": h, "within": w}, st.sampled_from(["1s", "20s"]), lengths
)


@st.composite
def features(draw: st.DrawFn, number: int) -> dict[str, Any]:
    value = draw(st.sampled_from([*VALUES]))
    decaying = draw(st.booleans()) and value in ("amount", "tip", None)
    allowed = VALUES[value]
    if decaying:
        allowed = [a for a in allowed if parse_aggregate(a).aggregate.code in DECAYED]
    chosen = draw(
        st.lists(decays if decaying else windows, min_size=1, max_size=3, unique_by=label_of)
    )
    if any("first" in w for w in chosen if isinstance(w, dict)):
        allowed = [a for a in allowed if parse_aggregate(a).aggregate.code not in OF_EVENTS_BEFORE]
    has_session = any("session" in w for w in chosen if isinstance(w, dict))
    return {
        "prefix": f"f{number}",
        "key": draw(st.sampled_from(["card", "shop", ["card", "shop"]])),
        "value": value,
        "where": draw(st.sampled_from([None, *WHERES])),
        "windows": chosen,
        "delay": 0 if has_session else draw(st.sampled_from([0, 0, 3 * SECOND])),
        "aggregates": draw(st.lists(st.sampled_from(allowed), min_size=1, unique=True)),
    }


def label_of(window: Any) -> str:
    example = {"prefix": "p", "key": "k", "windows": [window], "aggregates": ["count"]}
    return WindowFeature.model_validate(example).windows[0].label


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    event = {
        "id": "id",
        "time": {"field": "t", "allowed_lateness": LATENESS_MS},
        "fields": FIELDS,
        "dedupe_within": DEDUPE_MS,
    }
    declared = [draw(features(n)) for n in range(3)]
    return Schema.model_validate({"key": "card", "event": event, "features": {"windows": declared}})


amounts = st.one_of(
    st.sampled_from([0.0, 0.1, -0.1, 1e15, -1e15, 1e-9, 12.34, 1e60]),
    st.floats(-1e6, 1e6, allow_subnormal=False),
)
offsets = st.one_of(  # in ms: ties, order, lateness within and beyond what is allowed
    st.integers(0, 20 * SECOND),
    st.sampled_from([0, 1 * SECOND, 5 * SECOND, 7 * SECOND]),
    st.integers(0, 26 * 3_600 * SECOND),
)
drawn_events = st.builds(
    Event,
    id=st.integers(0, 30),
    time_ms=offsets.map(lambda o: BEGIN_MS + o),
    card=st.sampled_from(["c1", "c2"]),
    shop=st.sampled_from(["s1", "s2"]),
    amount=amounts,
    tip=st.none() | amounts,
    online=st.none() | st.booleans(),
    kind=st.none() | st.sampled_from(["a", "b", "c"]),
    lat=st.none() | st.floats(-90, 90),
    lon=st.none() | st.floats(-180, 180),
)


def columns_of(events: list[Event]) -> Events:
    def numbers(name: str) -> np.ndarray:
        return np.array([np.nan if (v := getattr(e, name)) is None else v for e in events], float)

    return Events(
        raw=[repr(e).encode() for e in events],
        positions=np.zeros((len(events), 3), np.int64),
        times=np.array([e.time_ms for e in events], np.int64),
        texts={
            "id": [str(e.id) for e in events],
            **{n: [getattr(e, n) for e in events] for n in ("card", "shop", "kind")},
        },
        numbers={
            "t": np.array([e.time_ms for e in events], float),
            **{n: numbers(n) for n in ("amount", "tip", "online", "lat", "lon")},
        },
    )


@dataclass
class Lists:
    """A stage by lists: per entity the events in time order, ties in the order of arrival."""

    stage: KeyedStage
    features: tuple[WindowFeature, ...]
    entities: dict[str, list[Event]] = field(default_factory=dict)

    def verdict(self, entity: str, event: Event) -> int:
        known = self.entities.get(entity, [])
        if self.stage.dedupes:
            since_ms = event.time_ms - DEDUPE_MS
            seen = [e for e in known if e.id == event.id and e.time_ms > since_ms]
            if seen:
                return DUPLICATE if seen[-1] == event else CONFLICT
        newest_ms = max((e.time_ms for e in known), default=event.time_ms)
        return LATE if event.time_ms < newest_ms - LATENESS_MS else NEW

    def add(self, entity: str, event: Event) -> list[float]:
        known = self.entities.setdefault(entity, [])
        at = bisect_right([e.time_ms for e in known], event.time_ms)
        known.insert(at, event)
        wanted = []
        for feature in self.features:
            entries = [Entry(e.time_ms, e.value_of(feature)) for e in known]
            for window in feature.windows:
                wanted += [
                    measure(feature, window, name, entries, entries[at])
                    for name in feature.aggregates
                ]
        return wanted


def assert_close(got: float, wanted: float, column: str, scale: float) -> None:
    """1e-9 of the result; where terms cancel, what is left of 100 bits of the largest term."""
    if math.isnan(wanted) or math.isnan(got):
        assert math.isnan(got) and math.isnan(wanted), f"{column}: {got} for {wanted}"
        return
    assert abs(got - wanted) <= 1e-9 * abs(wanted) + scale, f"{column}: {got} for {wanted}"


def slack(column: str, values: list[float]) -> float:
    """What cancellation may leave of a sum of terms, or of squares, of that size."""
    largest = max(map(abs, values), default=0.0)
    if "_sum_" in column or "_mean_" in column:
        return len(values) * largest * 2.0**-90
    if "_entropy_" in column or "_distance_" in column or "_speed_" in column:
        return 1e-6
    if "_slope_" in column:
        return len(values) * largest * 1_000 * 2.0**-48  # the times may be 1 ms apart
    return 0.0


@given(schema=schemas(), events=st.lists(drawn_events, max_size=40), data=st.data())
@settings(max_examples=700)
def test_every_feature_equals_its_definition(
    schema: Schema, events: list[Event], data: st.DataObject
) -> None:
    """Batches are cut anywhere; after each, the state is packed and read again."""
    lists = {n: Lists(KeyedStage(schema, n), schema.features.of_stage(n)) for n in schema.stages}
    stored: dict[str, dict[str, bytes]] = {n: {} for n in schema.stages}
    inputs = StageInputs(schema)
    at = 0
    while at < len(events):
        step = data.draw(st.integers(1, 15), label="batch")
        batch, at = events[at : at + step], at + step
        for name in schema.stages:
            batch = observe(lists[name], stored[name], inputs, batch)


def observe(
    lists: Lists, stored: dict[str, bytes], inputs: StageInputs, batch: list[Event]
) -> list[Event]:
    """Give a batch to a stage and to the lists; returns what is not a repeat."""
    stage = lists.stage
    columns = columns_of(batch)
    entities = {"card": columns.texts["card"], **inputs.entities(columns)}[stage.name]
    state = stage.new_state(lambda stream, entity: stored.get(stream + entity))
    identities = Identities.of_events(columns.texts["id"], columns.raw)
    observed = stage.observe(state, entities, columns.times, inputs.values(columns), identities)
    kept = dict(zip(observed.kept.tolist(), range(len(observed.kept)), strict=True))
    for row, (entity, event) in enumerate(zip(entities, batch, strict=True)):
        verdict = lists.verdict(entity, event)
        known = lists.entities.get(entity, [])
        newest_ms = max((e.time_ms for e in known), default=event.time_ms)
        if event.time_ms < newest_ms - LATENESS_MS:  # what it repeats may have been forgotten
            verdict = LATE if row in kept else DUPLICATE
        assert (row in kept) == (verdict in (NEW, LATE))
        if row not in kept:
            continue
        assert observed.late[kept[row]] == (verdict == LATE)
        wanted = lists.add(entity, event)
        if verdict == NEW:
            values = [abs(e.amount) + abs(e.tip or 0.0) for e in lists.entities[entity]]
            got = observed.features[kept[row]].tolist()
            for column, g, w in zip(stage.columns, got, wanted, strict=True):
                assert_close(g, w, column, slack(column, values))
    for stream, histories in (("events", state.events), ("first", state.first)):
        if histories is not None:
            names = list(histories.entities)
            packed = histories.pack(histories.slots(names))
            stored |= zip([stream + name for name in names], packed, strict=True)
    return [batch[row] for row in observed.kept.tolist()]
