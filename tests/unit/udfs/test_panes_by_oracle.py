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
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.feature_oracle import Entry, bounds, inside, measure
from udfs.definition.feature import WindowFeature
from udfs.definition.schema import Schema
from udfs.definition.window import Window
from udfs.features.aggregates import AGGREGATES, PANED, parse_aggregate
from udfs.features.histories import Entries
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage, StageState
from udfs.features.layouts import Layouts

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
        {
            "windows": paned,
            "aggregates": draw(st.lists(st.sampled_from(COUNTED), min_size=1, unique=True)),
        },
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
    st.sampled_from([0.0, -0.0, 0.1, -0.1, 1e12, 5.0, math.nan]),
    st.floats(-1e6, 1e6, allow_subnormal=False),
)
steps = st.one_of(  # mostly forward; back within the lateness, and beyond it
    st.integers(0, 3 * MINUTE_MS),
    st.integers(0, 40 * MINUTE_MS),
    st.integers(-LATENESS_MS, 0),
    st.sampled_from([0, -4 * HOUR_MS, 6 * HOUR_MS]),
)
arrivals = st.lists(st.tuples(steps, values), max_size=60)


@given(schema=schemas(), drawn=arrivals, few=st.sampled_from([1, 5]), cut=st.integers(1, 30))
@settings(max_examples=300)
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


# -- size and error -----------------------------------------------------------------------------

DAY_MS = 24 * HOUR_MS
EVENTS = 1_000_000


def filled(
    spec: dict[str, Any], xs: np.ndarray, span_ms: int, keys: int = 1
) -> tuple[KeyedStage, StageState, np.ndarray, np.ndarray]:
    """Events spread evenly over a time, taken by turns by some keys, and added unmeasured."""
    stage = KeyedStage(schema_of({"value": "x"} | spec), "card")
    state, n = stage.new_state(), len(xs)
    times = BEGIN_MS + np.arange(n) * span_ms // n
    slots = state.events.slots([f"k{k}" for k in range(keys)])[np.arange(n) % keys]
    ids = np.arange(n)
    state.events.add_again(Entries(slots, times, xs[:, None], ids, ids))
    return stage, state, slots, times


def last_of(stage: KeyedStage, state: StageState, time_ms: int, x: float) -> list[float]:
    """The features of one more event of each key."""
    found = []
    for key in state.events.entities:
        one = np.array([time_ms], np.int64)
        identities = Identities(np.array([-1]), np.array([-1]))
        seen = stage.observe(state, [key], one, {"x": np.array([x])}, identities)
        found += seen.features[0].tolist()
    return found


def test_a_million_events_in_a_month_take_kilobytes() -> None:
    """Every aggregate but the sketched ones; all of it exact from the pane's edge on."""
    xs = np.random.default_rng(0).lognormal(3, 1, EVENTS)
    names = ["count", "sum", "mean", "std", "min", "max", "first"]
    spec = {"windows": [{"sliding": "30d", "panes": "1h"}, "1h"], "aggregates": names}
    stage, state, slots, times = filled(spec, xs, 40 * DAY_MS)
    packed = state.events.pack(slots[:1])[0]
    assert len(packed) < 150_000 < EVENTS * 32 // 100
    end_ms = int(times[-1]) + 17
    month = dict(zip(stage.columns, last_of(stage, state, end_ms, 5.0), strict=True))
    low, _ = bounds(Window.model_validate(spec["windows"][0]), end_ms)
    assert end_ms - 30 * DAY_MS - HOUR_MS < low <= end_ms - 30 * DAY_MS
    inside = np.append(xs[times > low], 5.0)
    wanted = [len(inside), math.fsum(inside), inside.mean(), inside.std(ddof=1)]
    wanted += [inside.min(), inside.max(), inside[0]]
    for name, value in zip(names, wanted, strict=True):
        assert_equal(month[f"f0_{name}_30d"], float(value), name)


@pytest.mark.parametrize(("error", "registers"), [(0.05, 512), (0.15, 64)])
def test_different_values_are_counted_to_the_standard_error(error: float, registers: int) -> None:
    """Keys with 600 to 12,600 different values in 20 days, of which the window has 10."""
    window = {"sliding": "10d", "panes": "1d", "error": error}
    xs, keys = np.random.default_rng(1).permutation(300_000).astype(float), 60
    xs[: len(xs) // 2] = 7.5  # the first ten days have one value
    spec = {"windows": [window], "aggregates": ["distinct"]}
    stage, state, _, times = filled(spec, xs, 20 * DAY_MS, keys)
    found = last_of(stage, state, int(times[-1]) + 1, -1.0)
    wanted = len(xs) // 2 // keys + 2
    relative = np.array(found) / wanted - 1
    stated = 1.04 / math.sqrt(registers)
    assert stated <= error
    spread = stated / math.sqrt(keys)
    assert abs(relative.mean()) <= 4 * spread
    assert math.sqrt((relative**2).mean()) <= stated * (1 + 4 / math.sqrt(2 * keys))


def test_few_different_values_of_many_events_are_counted_exactly() -> None:
    xs = (np.arange(50_000) % 400).astype(float)
    spec = {"windows": [{"sliding": "10d", "panes": "1h"}], "aggregates": ["distinct"]}
    stage, state, _, times = filled(spec, xs, 12 * DAY_MS)
    assert last_of(stage, state, int(times[-1]), 0.0) == [400]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_quantiles_are_right_to_their_error(sign: float) -> None:
    xs = sign * np.random.default_rng(2).lognormal(0, 4, 50_000)
    window = {"sliding": "10d", "panes": "6h", "error": 0.02}
    quantiles = (0, 0.1, 5, 50, 99.9, 100)
    spec = {"windows": [window], "aggregates": [f"p{q}" for q in quantiles]}
    stage, state, _, times = filled(spec, xs, 9 * DAY_MS)
    found = last_of(stage, state, int(times[-1]), sign)
    for q, value in zip(quantiles, found, strict=True):
        wanted = np.percentile(np.append(xs, sign), q)
        assert abs(value - wanted) <= 0.0201 * abs(wanted), q


# -- changes ------------------------------------------------------------------------------------


def test_a_history_of_single_events_is_read_and_merged() -> None:
    """State of version 3, which has no panes."""
    exact = Stream(schema_of({"value": "x", "windows": ["5h"], "aggregates": ["sum"]}), 64)
    rows = [(BEGIN_MS + n * MINUTE_MS, float(n)) for n in range(200)]
    list(exact.observe([t for t, _ in rows], [x for _, x in rows]))
    window = {"sliding": "5h", "panes": "10m"}
    paned = Stream(schema_of({"value": "x", "windows": [window], "aggregates": ["sum"]}), 1)
    paned.packed, paned.entries = dict(exact.packed), exact.entries
    paned.count = exact.count
    for n in range(3):
        for own, got in paned.observe([BEGIN_MS + (200 + n) * MINUTE_MS], [1.0]):
            paned.assert_right(own, got)
    assert len(paned.packed["c"]) < len(exact.packed["c"]) * 0.6
    assert (exact.packed["c"][0], paned.packed["c"][0]) == (3, 4)


def stored_as(schema: Schema, packed: bytes, before: KeyedStage) -> list[float]:
    """What a job of other features makes of a history: its own columns for one more event."""
    stage = KeyedStage(schema, "card")
    layouts = {
        what: Layouts(names, [before.stored_names.get(what, [])])
        for what, names in {"panes": [], **stage.stored_names}.items()
    }
    state = stage.new_state(lambda stream, entity: packed, layouts=layouts)
    time_ms = BEGIN_MS + 4 * HOUR_MS
    seen = stage.observe(
        state,
        ["c"],
        np.array([time_ms], np.int64),
        {s.name: np.array([2.0]) for s in stage.series},
        Identities(np.array([-1]), np.array([-1])),
    )
    return seen.features[0].tolist()


def test_features_that_stay_keep_their_panes() -> None:
    """Others begin with what single events are left; panes of another length are dropped."""
    window = {"sliding": "5h", "panes": "10m"}
    names = ["distinct", "p50"]
    stream = Stream(schema_of({"value": "x", "windows": [window], "aggregates": names}), 1)
    times = [BEGIN_MS + n * MINUTE_MS for n in range(240)]
    list(stream.observe(times, [float(n % 7 + 1) for n in range(240)]))
    packed = stream.packed["c"]
    more = schema_of(
        {"value": "x", "windows": [window], "aggregates": ["p50", "sum"]},
        {"windows": [window], "aggregates": ["count"]},
    )
    middle, total, count = stored_as(more, packed, stream.stage)
    assert abs(middle - 4) <= 0.2 and 0 < total < 240 and 1 < count < 60
    other = schema_of(
        {"value": "x", "windows": [window | {"panes": "20m"}], "aggregates": ["distinct", "count"]}
    )
    assert stored_as(other, packed, stream.stage)[1] < 60
    none = schema_of({"value": "x", "windows": ["5h"], "aggregates": ["count"]})
    assert 1 < stored_as(none, packed, stream.stage)[0] < 60


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"windows": [{"tumbling": "1d", "panes": "1h"}]}, "a tumbling window has no panes"),
        ({"windows": [{"sliding": "1d", "panes": "2d"}]}, "no longer than the window"),
        ({"windows": [{"sliding": "1d", "panes": "10ms"}]}, "at least 1s"),
        ({"windows": [{"sliding": "1d", "error": 0.1}]}, "only a window with panes has an error"),
        ({"windows": [{"sliding": "1d", "panes": "1h", "error": 0.5}]}, "must be 0.01 to 0.3"),
        (
            {"windows": [{"sliding": "1d", "panes": "1h"}], "aggregates": ["entropy"]},
            "entropy cannot be merged from panes; windows with panes have count, sum",
        ),
        (
            {"windows": [{"sliding": "1d", "panes": "1h"}, {"sliding": "2d", "panes": "2h"}]},
            "all windows of key card need the same panes and error",
        ),
        (
            {"windows": [{"sliding": "1d", "panes": "1h"}, "2d"]},
            "panes save nothing: dedupe_within, or windows without panes, keep each event of key "
            "card for 2890m",
        ),
    ],
)
def test_what_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema_of({"value": "x", "aggregates": ["distinct"]} | spec)
