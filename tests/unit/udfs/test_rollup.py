"""Windows of readings: against pandas and exact fractions, in any order and cut anywhere."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.feature_oracle import Entry, of_numbers, slope
from udfs.batches.categories import texts_of
from udfs.batches.events import Events
from udfs.definition.event import EventSpec
from udfs.definition.feature import FeatureSpec
from udfs.definition.rollup import RollupSpec
from udfs.definition.schema import Schema
from udfs.features.aggregates import parse_aggregate
from udfs.features.keyed import StageState
from udfs.offline.history import history_of
from udfs.offline.rolling import roll_up
from udfs.rollup.core import Rollup
from udfs.rollup.idleness import Idleness
from udfs.rollup.kernels import BY_CLOCK, BY_END, BY_IDLENESS, Closed
from udfs.rollup.windows import OpenWindows

BEGIN_MS = 1_700_000_000_000
EVERY_MS, LATENESS_MS, IDLE_MS, DEDUPE_MS = 10_000, 2_000, 15_000, 60_000
HORIZON_MS = DEDUPE_MS + LATENESS_MS + EVERY_MS
NAMES = ("count", "sum", "mean", "variance", "std", "min", "max", "first", "last", "slope", "p95")
SECTIONS: dict[str, Any] = {
    "event": EventSpec.model_validate(
        {
            "id": "id",
            "time": {"field": "t", "allowed_lateness": LATENESS_MS},
            "dedupe_within": DEDUPE_MS,
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "t", "type": "int"},
                {"name": "machine", "type": "string"},
                {"name": "line", "type": "string"},
                {"name": "p", "type": "float", "required": False},
                {"name": "flow rate", "type": "float", "required": False},
            ],
        }
    ),
    "key": "machine",
    "rollup": RollupSpec.model_validate(
        {
            "every": EVERY_MS,
            "idle": IDLE_MS,
            "silent_after": "1m",
            "keep": ["line"],
            "fields": [
                {"value": "p", "aggregates": list(NAMES)},
                {"value": "flow rate", "prefix": "flow", "aggregates": ["mean", "top2"]},
                {
                    "value": "p * 2",
                    "where": "line == 'a'",
                    "prefix": "twice",
                    "aggregates": ["sum"],
                },
            ],
        }
    ),
    "features": FeatureSpec.model_validate(
        {"expressions": [{"name": "p", "type": "value", "fields": ["p_mean"]}]}
    ),
}
SCHEMA = Schema(**Schema.parts(SECTIONS))


@dataclass(frozen=True)
class Reading:
    id: int
    time_ms: int
    machine: str
    line: str
    p: float | None
    flow: float | None

    @property
    def end_ms(self) -> int:
        return self.time_ms - self.time_ms % EVERY_MS + EVERY_MS


values = st.one_of(
    st.none(), st.floats(-1e6, 1e6), st.sampled_from([0.0, -0.0, 7.0, 1e15, -1e15, 1e15 + 1])
)
offsets = st.one_of(  # in ms: ties, window edges, order, gaps
    st.integers(0, 40_000),
    st.sampled_from([0, 9_999, 10_000, 10_001, 19_999, 20_000, 12_000, 22_000]),
    st.integers(0, 300_000),
)
readings = st.builds(
    Reading,
    id=st.integers(0, 25),
    time_ms=offsets.map(lambda o: BEGIN_MS + o),
    machine=st.sampled_from(["m1", "m2"]),
    line=st.sampled_from(["a", "b"]),
    p=values,
    flow=values,
)


def columns_of(given: list[Reading], first: int = 0) -> Events:
    def numbers(name: str) -> np.ndarray:
        return np.array([np.nan if (v := getattr(r, name)) is None else v for r in given], float)

    places = [(0, first + n, BEGIN_MS + first + n) for n in range(len(given))]
    return Events(
        raw=[repr(r).encode() for r in given],
        positions=np.array(places, np.int64).reshape(-1, 3),
        times=np.array([r.time_ms for r in given], np.int64),
        texts={
            "id": [str(r.id) for r in given],
            "machine": [r.machine for r in given],
            "line": [r.line for r in given],
        },
        numbers={"t": numbers("time_ms"), "p": numbers("p"), "flow rate": numbers("flow")},
    )


class Lists:
    """The roll-up by lists: what each machine's readings become, one after the other."""

    def __init__(self) -> None:
        self.kept: dict[str, list[tuple[int, Reading]]] = {}
        self.closed_until: dict[str, int] = {}

    def verdict(self, reading: Reading) -> str:
        known = [r for _, r in self.kept.get(reading.machine, [])]
        newest_ms = max((r.time_ms for r in known), default=0)
        known = [r for r in known if r.time_ms > newest_ms - HORIZON_MS]
        same = [r for r in known if r.id == reading.id and r.time_ms > reading.time_ms - DEDUPE_MS]
        if same:
            last = max(enumerate(same), key=lambda pair: (pair[1].time_ms, pair[0]))[1]
            return "duplicate" if repr(last) == repr(reading) else "conflict"
        return "late" if reading.end_ms <= self.closed_until.get(reading.machine, 0) else "new"

    def add(self, place: int, reading: Reading) -> list[tuple[str, int]]:
        """Returns the windows that it closes, by machine and end."""
        kept = self.kept.setdefault(reading.machine, [])
        kept.append((place, reading))
        newest_ms = max(r.time_ms for _, r in kept)
        since_ms = self.closed_until.get(reading.machine, 0)
        until_ms = max(since_ms, (newest_ms - LATENESS_MS) // EVERY_MS * EVERY_MS)
        self.closed_until[reading.machine] = until_ms
        ends = sorted({r.end_ms for _, r in kept if since_ms < r.end_ms <= until_ms})
        return [(reading.machine, end) for end in ends]

    def close(self, machine: str, until_ms: int = 1 << 60) -> list[tuple[str, int]]:
        """Those that end by then, and not after the newest reading's; what comes for them is late.

        The last may have no readings, as after a gap.
        """
        kept = [r for _, r in self.kept.get(machine, [])]
        since_ms = self.closed_until.get(machine, 0)
        until_ms = min([until_ms - until_ms % EVERY_MS, max((r.end_ms for r in kept), default=0)])
        ends = sorted({r.end_ms for r in kept if since_ms < r.end_ms <= until_ms})
        self.closed_until[machine] = max(since_ms, until_ms)
        return [(machine, end) for end in ends]

    def inside(self, machine: str, end_ms: int) -> list[tuple[int, Reading]]:
        found = [pair for pair in self.kept[machine] if pair[1].end_ms == end_ms]
        return sorted(found, key=lambda pair: pair[1].time_ms)


def check_window(windows: Events, row: int, inside: list[tuple[int, Reading]]) -> None:
    """One window against the definition of everything it says."""
    place, newest = inside[-1]
    assert windows.positions[row, 1] == place
    assert windows.times[row] == newest.end_ms == windows.numbers["window_end_ms"][row]
    assert windows.numbers["window_start_ms"][row] == newest.end_ms - EVERY_MS
    assert windows.texts["window"][row] == f"{newest.machine}@{newest.end_ms}"
    assert windows.texts["line"][row] == newest.line
    assert windows.numbers["readings"][row] == len(inside)
    entries = [Entry(r.time_ms, r.p) for _, r in inside if r.p is not None]
    for name in NAMES:
        close(windows.numbers[f"p_{name}"][row], defined(name, entries), name, entries)
    flows = [Entry(r.time_ms, r.flow) for _, r in inside if r.flow is not None]
    close(windows.numbers["flow_mean"][row], defined("mean", flows), "mean", flows)
    close(windows.numbers["flow_top2"][row], defined("top2", flows), "top2", flows)
    twice = [Entry(r.time_ms, 2 * r.p) for _, r in inside if r.p is not None and r.line == "a"]
    close(windows.numbers["twice_sum"][row], defined("sum", twice), "sum", twice)
    document = json.loads(windows.raw[row])
    assert document["window_end_ms"] == newest.end_ms and document["machine"] == newest.machine
    assert document["closed_by"] == windows.texts["closed_by"][row]
    mean = windows.numbers["p_mean"][row]
    assert document["p_mean"] == (None if math.isnan(mean) else mean)


def defined(name: str, entries: list[Entry]) -> float:
    if name == "count":
        return len(entries)
    if name == "slope":
        return slope(entries)
    named = parse_aggregate(name)
    numbers = [float(e.value) for e in entries]  # type: ignore[arg-type]
    return of_numbers(named.aggregate.name, named.number, numbers, None)


def close(got: float, wanted: float, name: str, entries: list[Entry]) -> None:
    largest = max((abs(float(e.value)) for e in entries), default=0.0)  # type: ignore[arg-type]
    slack = {"sum": 2.0**-90, "mean": 2.0**-90, "slope": 1_000 * 2.0**-48, "p95": 2.0**-50}
    assert got == pytest.approx(
        wanted, rel=1e-9, abs=len(entries) * largest * slack.get(name, 0.0), nan_ok=True
    ), name


def restored(rollup: Rollup, state: StageState) -> StageState:
    """The state, packed and read again."""
    windows = state.events
    assert isinstance(windows, OpenWindows)
    slots = np.arange(len(windows))
    names = windows.names(slots)
    packed = {
        "events": dict(zip(names, windows.pack(slots), strict=True)),
        "marks": dict(zip(names, windows.pack_marks(slots), strict=True)),
    }
    assert all(type(p) is bytes for kind in packed.values() for p in kind.values())
    again = rollup.new_state(lambda stream, key: packed[stream].get(key))
    again.events.slots(names)
    return again


@given(given=st.lists(readings, max_size=50), data=st.data())
@settings(max_examples=150)
def test_windows_equal_their_definition(given: list[Reading], data: st.DataObject) -> None:
    """Batches are cut anywhere; keys go idle and windows are overdue anywhere; after each the
    state is read again."""
    rollup, lists, place = Rollup(SCHEMA), Lists(), 0
    state = rollup.new_state()
    texts = texts_of(["a", "b"])
    while place < len(given):
        step = data.draw(st.integers(1, 15), label="batch")
        batch = given[place : place + step]
        rolled = rollup.observe(state, columns_of(batch, place))
        wanted: list[tuple[str, int]] = []
        verdicts = []
        for n, reading in enumerate(batch):
            verdicts.append(lists.verdict(reading))
            if verdicts[-1] == "new":
                wanted += lists.add(place + n, reading)
        assert [verdicts[n] for n in rolled.kept] == ["new"] * verdicts.count("new")
        assert rolled.duplicates == [n for n, v in enumerate(verdicts) if v == "duplicate"]
        assert rolled.conflicts == [n for n, v in enumerate(verdicts) if v == "conflict"]
        assert rolled.late == [n for n, v in enumerate(verdicts) if v == "late"]
        names = state.events.names(rolled.closed.slots)
        windows = rollup.events(rolled.closed, names, texts)
        assert list(zip(names, windows.times.tolist(), strict=True)) == wanted
        assert set(windows.texts["closed_by"]) <= {"time"}
        for row, window in enumerate(wanted):
            check_window(windows, row, lists.inside(*window))
        place += step
        if data.draw(st.integers(0, 3), label="idle") == 0:
            check_idle(rollup, state, lists, texts)
        if data.draw(st.integers(0, 2), label="clock") == 0:
            own_ms = data.draw(st.lists(offsets, min_size=2, max_size=2), label="own times")
            check_clock(rollup, state, lists, texts, [BEGIN_MS + o for o in own_ms])
        state = restored(rollup, state)


def check_idle(rollup: Rollup, state: StageState, lists: Lists, texts: dict[int, str]) -> None:
    windows = state.events
    assert isinstance(windows, OpenWindows)
    slots = windows.open_slots()
    names = windows.names(slots)
    wanted = [window for name in names for window in lists.close(name)]
    assert all(lists.close(name) == [] for name in ("m1", "m2")), "a key with an open window"
    check_closed(rollup, windows, lists, windows.close(slots, BY_IDLENESS), wanted, texts)
    assert not len(windows.open_slots())


def check_clock(
    rollup: Rollup, state: StageState, lists: Lists, texts: dict[int, str], own_ms: list[int]
) -> None:
    windows = state.events
    assert isinstance(windows, OpenWindows)
    times = np.array(own_ms[: len(windows)])
    slots, untils = windows.open_until(times)
    wanted = [
        window
        for slot, name in enumerate(windows.names(np.arange(len(windows))))
        for window in lists.close(name, own_ms[slot])
    ]
    check_closed(rollup, windows, lists, windows.close(slots, BY_CLOCK, untils), wanted, texts)
    assert not len(windows.open_until(times)[0])


def check_closed(
    rollup: Rollup,
    windows: OpenWindows,
    lists: Lists,
    closed: Closed,
    wanted: list[tuple[str, int]],
    texts: dict[int, str],
) -> None:
    """What the clock has closed: these windows, and what they say."""
    events = rollup.events(closed, windows.names(closed.slots), texts)
    assert [(w.split("@")[0], int(w.split("@")[1])) for w in events.texts["window"]] == wanted
    assert len({*closed.reasons.tolist()}) <= 1
    assert set(events.texts["closed_by"]) <= {"idle", "clock"}
    for row, window in enumerate(wanted):
        check_window(events, row, lists.inside(*window))


def frame_of(given: list[Reading]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"i{r.id}" for r in given],
            "t": [r.time_ms for r in given],
            "machine": [r.machine for r in given],
            "line": [r.line for r in given],
            "p": [np.nan if r.p is None else r.p for r in given],
            "flow rate": [np.nan if r.flow is None else r.flow for r in given],
        }
    )


@given(given=st.lists(readings, min_size=1, max_size=60))
@settings(max_examples=60)
def test_the_roll_up_of_a_table_equals_pandas(given: list[Reading]) -> None:
    """In order of time no reading is late: a group by key and window, by pandas."""
    given = [Reading(n, *list(r.__dict__.values())[1:]) for n, r in enumerate(given)]
    frame = frame_of(given)
    history = history_of(SCHEMA, frame)
    assert not history.rejects and not history.duplicates
    end = frame["t"] // EVERY_MS * EVERY_MS + EVERY_MS
    in_order = frame.assign(end=end).sort_values("t", kind="stable")
    groups = in_order.groupby(["machine", "end"])["p"]
    wanted = groups.agg(["count", "mean", "std", "min", "max", "first", "last", "size"])
    got = pd.DataFrame(history.events.numbers).assign(machine=history.events.texts["machine"])
    got = got.set_index(["machine", got["window_end_ms"].astype(int)]).sort_index()
    assert got.index.tolist() == wanted.index.tolist()
    assert got["readings"].tolist() == wanted["size"].tolist()
    for name in ("count", "mean", "min", "max", "first", "last", "std"):
        # pandas adds doubles up; the exact values are compared in the test above
        scale = frame["p"].abs().max() * (1e-7 if name == "std" else 1e-12)
        np.testing.assert_allclose(
            got[f"p_{name}"], wanted[name], rtol=1e-9, atol=0.0 if np.isnan(scale) else scale
        )
    labels = (frame["t"] % 3 == 0).to_numpy(np.float64)
    largest = in_order.assign(label=labels[in_order.index]).groupby(["machine", "end"])["label"]
    by_window = pd.Series(
        history.labels(labels),
        [*zip(history.events.texts["machine"], history.events.times, strict=True)],
    )
    assert by_window.sort_index().tolist() == largest.max().tolist()


@given(given=st.lists(readings, max_size=60))
@settings(max_examples=60)
def test_a_history_in_order_of_arrival_is_the_job_s(given: list[Reading]) -> None:
    """Late readings, repeats and conflicts too; the last windows close at the end."""
    rollup, whole = Rollup(SCHEMA), columns_of(given)
    state = rollup.new_state()
    rolled = rollup.observe(state, whole)
    texts = texts_of(["a", "b"])
    live = rollup.events(rolled.closed, state.events.names(rolled.closed.slots), texts)
    windows = state.events
    assert isinstance(windows, OpenWindows)
    rest = windows.close(windows.open_slots(), BY_END)
    ended = rollup.events(rest, windows.names(rest.slots), texts)
    offline = roll_up(SCHEMA, whole, order="arrival")
    count = len(live)
    assert offline.windows.raw[:count] == live.raw
    assert sorted(offline.windows.raw[count:]) == sorted(ended.raw)
    assert offline.duplicates == len(rolled.duplicates)
    refused = sorted(r.offset for r in offline.rejects)
    assert refused == sorted([*rolled.late, *rolled.conflicts])


def by_hand(*times_s: float, machine: str = "m1") -> list[Reading]:
    return [
        Reading(n, BEGIN_MS + round(1_000 * t), machine, "a", float(n), None)
        for n, t in enumerate(times_s)
    ]


def windows_of(*times_s: float) -> list[tuple[int, int, str]]:
    """End after the begin in s, readings, and what closed it, of a table."""
    events = history_of(SCHEMA, frame_of(by_hand(*times_s))).events
    ends = ((events.times - BEGIN_MS) // 1_000).tolist()
    return [
        *zip(ends, events.numbers["readings"].astype(int), events.texts["closed_by"], strict=True)
    ]


def test_a_window_has_its_start_and_not_its_end() -> None:
    assert windows_of(0, 9.999, 10, 12) == [(10, 2, "time"), (20, 2, "end")]


def test_a_window_without_readings_is_none() -> None:
    assert windows_of(1, 14, 41) == [(10, 1, "time"), (20, 1, "idle"), (50, 1, "end")]


def test_a_gap_longer_than_idle_closes_as_the_clock_would() -> None:
    assert windows_of(1, 2, 17) == [(10, 2, "time"), (20, 1, "end")]
    assert windows_of(1, 2, 17.001) == [(10, 2, "idle"), (20, 1, "end")]


def test_one_key_s_clock_closes_no_other_key_s_windows() -> None:
    rollup = Rollup(SCHEMA)
    state = rollup.new_state()
    ahead, behind = by_hand(3_600, machine="m1"), by_hand(1, 2, machine="m2")
    rolled = rollup.observe(state, columns_of([*ahead, *behind]))
    assert not rolled.late and not len(rolled.closed.slots)


def overdue_of(idleness: Idleness, windows: OpenWindows, now_ms: int) -> list[tuple[str, int]]:
    """Keys, and until when their windows are overdue, s after the begin."""
    slots, untils = idleness.overdue(now_ms)
    ends = ((untils - BEGIN_MS) // 1_000).tolist()
    return [*zip(windows.names(slots), ends, strict=True)]


def test_an_overdue_reading_is_not_waited_for() -> None:
    """A machine's own time goes on as the clock does; not while the job is behind."""
    rollup = Rollup(SCHEMA)
    state = rollup.new_state()
    windows = state.events
    assert isinstance(windows, OpenWindows)
    idleness = Idleness(windows, 60_000, None, now_ms=0, overdue_ms=1_000)
    rollup.observe(state, columns_of(by_hand(9, machine="m1") + by_hand(4, machine="m2")))
    slots = windows.slots(["m1", "m2"])
    due_ms = 50_000 + 1_000 + LATENESS_MS + 1_000
    assert overdue_of(idleness, windows, 10**9) == [], "after a restart, before it has read"
    idleness.heard(slots, 50_000)
    assert overdue_of(idleness, windows, due_ms - 1) == []
    assert overdue_of(idleness, windows, due_ms) == [("m1", 10)]
    windows.close(slots[:1], BY_CLOCK)
    assert overdue_of(idleness, windows, due_ms + 4_999) == []
    assert overdue_of(idleness, windows, due_ms + 5_000) == [("m2", 10)]
    idleness.heard(slots[:1], 50_000, written_ms=48_999)
    assert overdue_of(idleness, windows, due_ms + 5_000) == []
    never = Idleness(windows, 60_000, None, now_ms=0)
    assert overdue_of(never, windows, 10**9) == []


def test_a_reading_of_the_next_window_does_not_make_an_overdue_one_wait() -> None:
    """The older window alone is closed; what comes for it then is late, for the next it is not."""
    rollup = Rollup(SCHEMA)
    state = rollup.new_state()
    windows = state.events
    assert isinstance(windows, OpenWindows)
    idleness = Idleness(windows, 60_000, None, now_ms=0, overdue_ms=1_000)
    rollup.observe(state, columns_of(by_hand(5, 11.5)))
    idleness.heard(windows.slots(["m1"]), 50_000)
    rollup.observe(state, columns_of([by_hand(0, 0, 6)[2]], 2))
    idleness.heard(windows.slots(["m1"]), 51_000)  # an older one, which moves no time
    due_ms = 50_000 - 1_500 + LATENESS_MS + 1_000
    assert overdue_of(idleness, windows, due_ms - 1) == []
    assert overdue_of(idleness, windows, due_ms) == [("m1", 10)]
    slots, untils = idleness.overdue(due_ms)
    closed = windows.close(slots, BY_CLOCK, untils)
    assert closed.readings.tolist() == [2]
    assert overdue_of(idleness, windows, due_ms) == [], "each is closed once"
    rolled = rollup.observe(state, columns_of([*by_hand(0, 0, 0, 7, 11)[3:]], 3))
    assert rolled.late == [0] and rolled.kept.tolist() == [1]
    assert overdue_of(idleness, windows, due_ms + 10_000) == [("m1", 20)]


def test_idleness_and_silence_go_by_the_clock() -> None:
    rollup = Rollup(SCHEMA)
    state = rollup.new_state()
    windows = state.events
    assert isinstance(windows, OpenWindows)
    idleness = Idleness(windows, idle_ms=15_000, silent_ms=60_000, now_ms=0)
    rollup.observe(state, columns_of(by_hand(1, machine="m1") + by_hand(1, machine="m2")))
    idleness.heard(windows.slots(["m1", "m2"]), 1_000)
    idleness.heard(windows.slots(["m2"]), 9_000)
    assert windows.names(idleness.idle(15_999)) == []
    assert windows.names(idleness.idle(16_000)) == ["m1"]
    windows.close(idleness.idle(16_000), BY_IDLENESS)
    assert windows.names(idleness.idle(30_000)) == ["m2"]
    assert windows.names(idleness.newly_silent(60_999)) == []
    assert windows.names(idleness.newly_silent(61_000)) == ["m1"]
    assert windows.names(idleness.newly_silent(70_000)) == ["m2"], "each silence is told once"
    again = restored(rollup, state).events
    assert isinstance(again, OpenWindows)
    told = Idleness(again, 15_000, 60_000, now_ms=0)
    assert not len(told.newly_silent(10**9)), "nor again after a restart"


def test_a_reading_ends_a_silence() -> None:
    rollup = Rollup(SCHEMA)
    state = rollup.new_state()
    windows = state.events
    assert isinstance(windows, OpenWindows)
    idleness = Idleness(windows, 15_000, 60_000, now_ms=0)
    for n, second in enumerate((1, 200)):
        rollup.observe(state, columns_of([by_hand(0, second)[1]], n))
        idleness.heard(windows.slots(["m1"]), 1_000 * second)
        assert windows.names(idleness.newly_silent(1_000 * second + 60_000)) == ["m1"]


def test_many_keys_and_windows_at_once() -> None:
    """Arrays grow on the way, also that of the windows that have closed."""
    machines, seconds = 700, 60
    given = [
        Reading(s, BEGIN_MS + 1_000 * s, f"m{m}", "a", float(s), 1.0)
        for s, m in itertools.product(range(seconds), range(machines))
    ]
    rollup = Rollup(SCHEMA)
    rolled = rollup.observe(rollup.new_state(), columns_of(given))
    assert len(rolled.closed.slots) == machines * 5
    assert set(rolled.closed.readings.tolist()) == {10}
    offline = roll_up(SCHEMA, columns_of(given))
    assert len(offline.windows) == machines * 6
    assert (np.bincount(offline.window_of) == 10).all()
