"""Windows with panes: exact but for where they begin, however late events come.

Histories are long enough for events to be merged, which the short ones of
``test_features_by_oracle`` are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.feature_oracle import Entry, inside, measure
from udfs.features.aggregates import AGGREGATES, PANED, parse_aggregate
from udfs.features.keyed import Identities, KeyedStage, StageState
from udfs.spec.feature import WindowFeature
from udfs.spec.schema import Schema
from udfs.spec.window import Window

BEGIN_MS = 1_711_756_800_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
LATENESS_MS = 10 * MINUTE_MS
SKETCHED = ("distinct", "p25", "p90")
EXACT = [a.name for a in AGGREGATES if a.code in PANED and a.name not in ("distinct", "p<q>")]
COUNTED = [n for n in EXACT if parse_aggregate(n).aggregate.reads == "anything"]


def schema_of(*declared: dict[str, Any]) -> Schema:
    return Schema.model_validate(
        {
            "key": "card",
            "event": {
                "id": "id",
                "time": {"field": "t", "allowed_lateness": LATENESS_MS},
                "dedupe_within": "1m",
                "fields": [
                    {"name": "id", "type": "string"},
                    {"name": "t", "type": "int"},
                    {"name": "card", "type": "string"},
                    {"name": "x", "type": "float", "required": False},
                ],
            },
            "features": {
                "windows": [
                    {"key": "card", "prefix": f"f{n}"} | spec for n, spec in enumerate(declared)
                ]
            },
        }
    )


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    panes = draw(st.sampled_from(["1m", "7m", "1h"]))
    spans = draw(st.lists(st.sampled_from(["2h", "3h", "5h"]), min_size=1, unique=True))
    paned = [{"sliding": span, "panes": panes} for span in spans]
    delay = draw(st.sampled_from(["0s", "0s", "13m"]))
    few = st.lists(st.sampled_from(EXACT + list(SKETCHED)), min_size=1, unique=True)
    return schema_of(
        {"value": "x", "windows": [*paned, "10m"], "delay": delay, "aggregates": draw(few)}
        | ({"where": "x > 0"} if draw(st.booleans()) else {}),
        {"windows": paned, "aggregates": draw(st.lists(st.sampled_from(COUNTED), min_size=1, unique=True))},
        {"value": "x", "windows": ["5m", {"events": 3, "within": "10m"}], "aggregates": ["lag1"]},
    )


class Stream:
    """Events of one key, batch by batch; the state is packed and read again between them.

    Args:
        schema: The job's.
        few: How many entries wait before they are merged.
    """

    def __init__(self, schema: Schema, few: int) -> None:
        self.stage = KeyedStage(schema, "card")
        self.features = schema.features.of_stage("card")
        plan = self.stage.plans["events"]
        plan.plan = plan.plan._replace(panes=plan.plan.panes._replace(few=few))
        self.entries: list[Entry] = []
        self.packed: dict[str, bytes] = {}
        self.count = 0

    def state(self) -> StageState:
        return self.stage.new_state(lambda stream, entity: self.packed.get(entity))

    def observe(self, times: list[int], xs: list[float]) -> Iterator[tuple[Entry, list[float]]]:
        """Each event that is not late, with what the stage makes of it."""
        state, n = self.state(), len(times)
        ids = np.arange(self.count, self.count + n)
        self.count += n
        column = np.array(xs)
        values = {
            s.name: np.where(column > 0, column, np.nan) if s.where else column
            for s in self.stage.series
        }
        at = np.array(times, np.int64)
        seen = self.stage.observe(state, ["c"] * n, at, values, Identities(ids, ids))
        self.packed["c"] = state.events.pack(state.events.slots(["c"]))[0]
        for row, (time_ms, x) in enumerate(zip(times, xs, strict=True)):
            own = Entry(time_ms, None if math.isnan(x) else x)
            places = [e for e in self.entries if e.time_ms <= time_ms]
            self.entries.insert(len(places), own)
            newest_ms = self.entries[-1].time_ms
            assert seen.late[row] == (time_ms < newest_ms - LATENESS_MS)
            if not seen.late[row]:
                yield own, seen.features[row].tolist()

    def of(self, feature: WindowFeature) -> list[Entry]:
        """The entries as a feature sees them."""

        def value(e: Entry) -> Entry:
            if feature.value is None:
                return Entry(e.time_ms, 1.0)
            is_in = e.value is not None and (feature.where is None or e.value > 0)  # type: ignore[operator]
            return Entry(e.time_ms, e.value if is_in else None)

        return [value(e) for e in self.entries]

    def assert_right(self, own: Entry, got: list[float]) -> None:
        columns = iter(zip(self.stage.columns, got, strict=True))
        at = next(n for n, e in enumerate(self.entries) if e is own)
        for feature in self.features:
            entries = self.of(feature)
            for window, name in product(feature.windows, feature.aggregates):
                column, value = next(columns)
                wanted = measure(feature, window, name, entries, entries[at])
                if window.panes and name in SKETCHED:
                    found = inside(entries, window, own.time_ms - feature.delay)
                    xs = [float(e.value) for e in found]  # type: ignore[arg-type]
                    assert_sketched(name, value, wanted, xs, window)
                else:
                    assert_equal(value, wanted, column)


def assert_equal(got: float, wanted: float, column: str) -> None:
    if math.isnan(got) or math.isnan(wanted):
        assert math.isnan(got) and math.isnan(wanted), f"{column}: {got} for {wanted}"
    else:
        assert abs(got - wanted) <= 1e-9 * abs(wanted) + 1e-15, f"{column}: {got} for {wanted}"


def assert_sketched(name: str, got: float, wanted: float, xs: list[float], window: Window) -> None:
    """Quantiles to their error of the two values they lie between; so few values are counted."""
    if name == "distinct" or math.isnan(wanted):
        assert_equal(got, wanted, name)
        return
    place = float(name[1:]) / 100 * (len(xs) - 1)
    beside = sorted(xs)[int(place)], sorted(xs)[math.ceil(place)]
    assert abs(got - wanted) <= 1.0001 * window.pane_error * max(map(abs, beside)) + 1e-9


values = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, -0.1, 1e12, 5.0, math.nan]), st.floats(-1e6, 1e6)
)
steps = st.one_of(  # mostly forward; back within the lateness, and beyond it
    st.integers(0, 3 * MINUTE_MS),
    st.integers(0, 40 * MINUTE_MS),
    st.integers(-LATENESS_MS, 0),
    st.sampled_from([0, -4 * HOUR_MS, 6 * HOUR_MS]),
)
arrivals = st.lists(st.tuples(steps, values), max_size=60)


@given(schema=schemas(), drawn=arrivals, few=st.sampled_from([1, 5]), cut=st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_a_window_with_panes_equals_its_definition(
    schema: Schema, drawn: list[tuple[int, float]], few: int, cut: int
) -> None:
    stream, newest_ms, arrived = Stream(schema, few), BEGIN_MS, []
    for step_ms, x in drawn:
        arrived.append((newest_ms + step_ms, x))
        newest_ms = max(newest_ms, arrived[-1][0])
    for start in range(0, len(arrived), cut):
        batch = arrived[start : start + cut]
        for own, got in stream.observe([t for t, _ in batch], [x for _, x in batch]):
            stream.assert_right(own, got)
