"""Histories against plain lists: any order of operations, any values, any number of entities."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from udfs.definition.feature import WindowFeature
from udfs.features.histories import Entries, Histories
from udfs.features.layouts import Layouts, StateFormatError
from udfs.features.log_kernels import ANY_CONTENT, CONFLICT, DUPLICATE, LONG, NEW
from udfs.features.series import Series
from udfs.features.window_plan import WindowPlan

SPANS = [(5, 0), (30, 0), (30, 10), (1_000, 0), (1, 3), (1 << 40, 0)]


def make_plan(
    values: int,
    horizon_ms: int,
    spans: list[tuple[int, int]] | None = None,
    dedupe_ms: int = 0,
) -> WindowPlan:
    """A count and every sum of each span, in that order."""
    windows = []
    for n, (window_ms, delay_ms) in enumerate(spans or SPANS):
        common = {"key": "k", "windows": (window_ms,), "delay": delay_ms}
        windows.append(WindowFeature(prefix=f"n{n}", aggregates=("count",), **common))  # type: ignore[arg-type]
        windows += [
            WindowFeature(prefix=f"s{n}_{v}", value=f"v{v}", aggregates=("sum",), **common)  # type: ignore[arg-type]
            for v in range(values)
        ]
    series = [Series(f"v{v}") for v in range(values)]
    nullable = [False] * values
    return WindowPlan(windows, series, nullable, frozenset(), True, horizon_ms, 1 << 60, dedupe_ms)


@dataclass(frozen=True)
class Entry:
    time_ms: int
    values: tuple[float, ...]
    id: int
    check: int


Row = tuple[str, Entry]


@dataclass
class Naive:
    """A history as a list: sorted by time, equal times in the order of arrival."""

    entries: list[Entry] = field(default_factory=list)
    magnitude: float = 0.0  # of all that was ever summed
    changes: int = 0

    def add(self, entry: Entry) -> None:
        at = bisect_right([e.time_ms for e in self.entries], entry.time_ms)
        self.entries.insert(at, entry)
        self._touch(entry)

    def remove(self, entry: Entry) -> None:
        at = max(n for n, e in enumerate(self.entries) if e == entry)
        self._touch(self.entries.pop(at))

    def expire(self, limit_ms: int) -> None:
        self.entries = [e for e in self.entries if e.time_ms > limit_ms]

    def window(self, now_ms: int, window_ms: int, delay_ms: int) -> list[Entry]:
        end = now_ms - delay_ms
        return [e for e in self.entries if end - window_ms < e.time_ms <= end]

    def find(self, id_: int, since_ms: float = -math.inf) -> Entry | None:
        hits = [e for e in self.entries if e.id == id_ and e.time_ms > since_ms]
        return hits[-1] if hits else None

    def assert_features(
        self, got: np.ndarray, now_ms: int, values: int, spans: list[tuple[int, int]]
    ) -> None:
        """Counts are exact; sums too, but for the last bits of the window's own values.

        What is outside of the window may only show at 2**-104 of its size: that is what the
        pairs of doubles are for.
        """
        foreign = (self.changes + 1) ** 2 * 2.0**-104 * self.magnitude
        for (count, *totals), span in zip(got.reshape(len(spans), -1).tolist(), spans, strict=True):
            inside = self.window(now_ms, *span)
            assert count == len(inside)
            assert len(totals) == values
            for n, total in enumerate(totals):
                own = [e.values[n] for e in inside]
                bound = 2.0**-51 * math.fsum(map(abs, own)) + foreign
                assert abs(total - math.fsum(own)) <= bound

    def _touch(self, entry: Entry) -> None:
        self.changes += 1
        self.magnitude += max(map(abs, entry.values), default=0.0)


class Pair:
    """The histories and the lists, given the same operations."""

    def __init__(
        self,
        values: int,
        *,
        horizon_ms: int = 1 << 50,
        max_entries: int = 1 << 62,
        spans: list[tuple[int, int]] | None = None,
        dedupe_ms: int = 0,
    ) -> None:
        self.dedupe_ms = dedupe_ms
        self.values = values
        self.horizon_ms = horizon_ms
        self.max_entries = max_entries
        self.spans = spans or SPANS
        self.plan = make_plan(values, horizon_ms, spans, dedupe_ms)
        self.stored: dict[str, bytes] = {}
        self.naive: dict[str, Naive] = {}
        self.restart()

    def restart(self) -> None:
        """Forget all that is unpacked; what is stored is read again."""
        self.histories = Histories(self.plan, self.stored.get, self.max_entries)

    def store(self, entities: list[str]) -> None:
        distinct = list(dict.fromkeys(entities))
        packed = self.histories.pack(self.histories.slots(distinct))
        self.stored |= dict(zip(distinct, packed, strict=True))

    def of(self, entity: str) -> Naive:
        return self.naive.setdefault(entity, Naive())

    def entries(self, rows: list[Row]) -> Entries:
        return Entries(
            self.histories.slots([entity for entity, _ in rows]),
            np.array([e.time_ms for _, e in rows], np.int64),
            np.array([e.values for _, e in rows], np.float64).reshape(len(rows), self.values),
            np.array([e.id for _, e in rows], np.int64),
            np.array([e.check for _, e in rows], np.int64),
        )

    def observe(self, rows: list[Row]) -> None:
        features, verdicts = self.histories.observe(self.entries(rows))
        assert features.shape == (len(rows), len(self.plan.columns))
        for (entity, entry), got, verdict in zip(rows, features, verdicts.tolist(), strict=True):
            naive = self.of(entity)
            since_ms = entry.time_ms - self.dedupe_ms
            seen = naive.find(entry.id, since_ms) if self.dedupe_ms else None
            if seen is not None and seen.check == ANY_CONTENT:
                seen = replace(seen, check=entry.check)
            assert verdict == verdict_of(seen, entry)
            if seen is None:
                naive.add(entry)
                naive.assert_features(got, entry.time_ms, self.values, self.spans)
                naive.expire(naive.entries[-1].time_ms - self.horizon_ms)
        self.store([entity for entity, _ in rows])

    def learn(self, rows: list[Row]) -> None:
        verdicts = self.histories.learn(self.entries(rows))
        for (entity, entry), verdict in zip(rows, verdicts.tolist(), strict=True):
            naive = self.of(entity)
            seen = naive.find(entry.id)
            assert verdict == verdict_of(seen, entry)
            if seen is not None and verdict == CONFLICT:
                naive.remove(seen)
            if verdict != DUPLICATE:
                naive.add(entry)
        self.store([entity for entity, _ in rows])

    def measure(self, entities: list[str], times: list[int]) -> None:
        slots = self.histories.slots(entities)
        features = self.histories.measure(slots, np.array(times, np.int64))
        assert features.shape == (len(entities), len(self.plan.columns))
        for entity, now_ms, got in zip(entities, times, features, strict=True):
            self.of(entity).assert_features(got, now_ms, self.values, self.spans)
            self.of(entity).expire(now_ms - self.horizon_ms)
        self.store(entities)


def verdict_of(seen: Entry | None, entry: Entry) -> int:
    if seen is None:
        return NEW
    return DUPLICATE if seen.check == entry.check else CONFLICT


amounts = st.one_of(
    st.sampled_from([0.0, 0.01, 1e15, 1e-9, -1e15, -0.01, 0.1]),
    st.floats(-1e6, 1e6, allow_subnormal=False),
)
names = st.sampled_from(["a", "b", "c"])
moments = st.integers(0, 60)


class HistoriesMachine(RuleBasedStateMachine):
    """Operations in any order; each one's result is compared with the lists'."""

    pair: Pair

    @rule()
    def restart(self) -> None:
        self.pair.restart()

    @rule()
    def clear(self) -> None:
        self.pair.histories.clear()

    @rule(rows=st.lists(st.tuples(names, st.integers(-5, 90)), max_size=6))
    def measure(self, rows: list[tuple[str, int]]) -> None:
        self.pair.measure([e for e, _ in rows], [t for _, t in rows])

    def draw(self, data: st.DataObject, n: int, values: st.SearchStrategy[float]) -> list[Row]:
        tuples = st.tuples(*[values] * self.pair.values)
        entry = st.builds(Entry, moments, tuples, st.integers(0, 8), st.integers(0, 1))
        return [data.draw(st.tuples(names, entry)) for _ in range(n)]


class EventsMachine(HistoriesMachine):
    @initialize(
        values=st.integers(0, 2),
        horizon_ms=st.sampled_from([20, 1 << 50]),
        max_entries=st.sampled_from([10, 1 << 62]),
        dedupe_ms=st.sampled_from([0, 15, 1 << 40]),
    )
    def start(self, values: int, horizon_ms: int, max_entries: int, dedupe_ms: int) -> None:
        self.pair = Pair(
            values, horizon_ms=horizon_ms, max_entries=max_entries, dedupe_ms=dedupe_ms
        )

    @rule(data=st.data(), n=st.integers(0, 14))
    def observe(self, data: st.DataObject, n: int) -> None:
        self.pair.observe(self.draw(data, n, amounts))


class LabelsMachine(HistoriesMachine):
    @initialize(
        values=st.integers(0, 2),
        horizon_ms=st.sampled_from([40, 1 << 50]),
        max_entries=st.sampled_from([10, 1 << 62]),
    )
    def start(self, values: int, horizon_ms: int, max_entries: int) -> None:
        self.pair = Pair(values, horizon_ms=horizon_ms, max_entries=max_entries)

    @rule(data=st.data(), n=st.integers(0, 14))
    def learn(self, data: st.DataObject, n: int) -> None:
        self.pair.learn(self.draw(data, n, st.sampled_from([0.0, 1.0])))


STEPS = settings(max_examples=60, stateful_step_count=20)
TestEvents = EventsMachine.TestCase
TestEvents.settings = STEPS
TestLabels = LabelsMachine.TestCase
TestLabels.settings = STEPS


# -- exactness ----------------------------------------------------------------------------------


def filled(times: list[int], values: list[float]) -> Pair:
    pair = Pair(1)
    pair.observe([("a", Entry(t, (v,), t, 0)) for t, v in zip(times, values, strict=True)])
    return pair


def total(pair: Pair, now_ms: int, window_ms: int) -> float:
    histories = Histories(make_plan(1, 1 << 50, [(window_ms, 0)]), pair.stored.get)
    return float(histories.measure(histories.slots(["a"]), np.array([now_ms]))[0, 1])


def test_cents_next_to_a_quadrillion_are_exact() -> None:
    pair = filled([*range(100)], [1e15 if t % 10 == 0 else 0.01 for t in range(100)])
    pair.restart()
    for now in range(9, 100, 10):
        assert total(pair, now, 9) == pytest.approx(0.09, rel=1e-14)
    assert total(pair, 99, 100) == math.fsum([1e15] * 10 + [0.01] * 90)


def test_years_of_cents_do_not_drift() -> None:
    n = 200_000
    histories = Histories(make_plan(1, 100, [(3, 0)]))
    nothing = np.zeros(n, np.int64)
    slots = np.repeat(histories.slots(["a"]), n)
    entries = Entries(slots, np.arange(n), np.full((n, 1), 0.1), nothing, nothing)
    features, _ = histories.observe(entries)
    expected = math.fsum([0.1] * 3)
    assert np.abs(features[2:, 1] - expected).max() <= 2 * math.ulp(expected)
    assert len(histories.pack(slots[:1])[0]) < 200 * 32


def test_a_late_huge_value_moves_no_window_after_it() -> None:
    pair = filled([10, 20, 30], [0.01, 0.02, 0.03])
    pair.observe([("a", Entry(t, (1e15,), t, 0)) for t in (5, 25)])
    assert total(pair, 20, 15) == pytest.approx(0.03, rel=1e-14)
    assert total(pair, 30, 5) == pytest.approx(0.03, rel=1e-14)


def test_a_corrected_label_leaves_no_trace() -> None:
    pair = Pair(1)
    pair.learn([("a", Entry(t, (float(t % 2),), t, t % 2)) for t in range(50)])
    pair.learn([("a", Entry(t, (float(t % 3 == 0),), t, int(t % 3 == 0))) for t in range(50)])
    pair.restart()
    for now in range(50):
        assert total(pair, now, 10) == sum(t % 3 == 0 for t in range(max(0, now - 9), now + 1))


def test_a_history_that_has_shrunk_does_not_fill_the_index() -> None:
    pair = Pair(1, horizon_ms=1_000, spans=[(50, 0)], dedupe_ms=900)
    pair.observe([("a", Entry(n, (1.0,), n, 0)) for n in range(2 * LONG)])
    pair.observe([("a", Entry(10_000 * (n + 1), (1.0,), n + 1_000, 0)) for n in range(3_000)])
    assert len(pair.naive["a"].entries) == 1


@pytest.mark.parametrize("restart_every", [0, 7])
def test_repeats_are_found_in_long_histories(restart_every: int) -> None:
    """By the index: ids come back soon, late, after they have expired, and in other keys."""
    random = np.random.default_rng(2)
    pair = Pair(1, horizon_ms=900, spans=[(50, 0)], dedupe_ms=800)
    now = 0
    for step in range(60):
        times = [max(0, (now := now + 1) - int(random.integers(0, 40))) for _ in range(50)]
        names_ = random.choice(["a", "b", "c"], 50, p=[0.8, 0.15, 0.05]).tolist()
        ids = random.integers(0, 6_000, 50).tolist()
        ids[::9] = [pair.naive[n].entries[-1].id if n in pair.naive else 1 for n in names_[::9]]
        columns = zip(names_, times, ids, strict=True)
        pair.observe([(n, Entry(t, (1.0,), i, i % 2)) for n, t, i in columns])
        if restart_every and step % restart_every == 0:
            pair.restart()
    assert max(len(n.entries) for n in pair.naive.values()) > 5 * LONG
    corrected = Pair(1)
    for _ in range(40):
        ids = random.integers(0, 900, 50).tolist()
        corrected.learn([("a", Entry(i, (float(i % 3),), i, i % 2)) for i in ids])
    assert len(corrected.naive["a"].entries) > 5 * LONG


# -- many entities ------------------------------------------------------------------------------


def test_thousands_of_entities_through_growth_and_compaction() -> None:
    """Skewed arrivals over more entities than the first slots hold, late ones among them."""
    random = np.random.default_rng(11)
    pair = Pair(1, horizon_ms=400, spans=[(100, 0), (300, 50)], dedupe_ms=50)
    capacities = [pair.histories.capacity_bytes]
    for step in range(40):
        entities = [f"k{i}" for i in (random.zipf(1.3, 800) * (step % 7 + 1)) % 3_000]
        times = (step * 100 + random.integers(-150, 100, 800)).tolist()
        values = random.choice([0.01, 1.0, 12.34, 1e9], 800).tolist()
        ids = random.integers(0, 1_000, 800).tolist()
        columns = zip(entities, times, values, ids, strict=True)
        rows = [(e, Entry(t, (v,), i, 0)) for e, t, v, i in columns]
        pair.observe(rows)
        if step == 25:
            pair.restart()
        some = [entities[i] for i in random.integers(0, 800, 40)]
        pair.measure(some, (step * 100 + random.integers(-100, 150, 40)).tolist())
        capacities.append(pair.histories.capacity_bytes)
    assert len(set(capacities)) > 2, "the array never grew"
    assert len(pair.naive) > 1_024, "the slots never grew"


def test_memory_is_given_back_when_histories_move() -> None:
    """A key's history moves as it grows: what it leaves behind is used again."""
    histories = Histories(make_plan(1, 10, [(10, 0)]))
    capacities = []
    for step in range(200):
        n = 20_000 if step == 3 else 100
        slots = np.repeat(histories.slots([f"k{step}"]), n)
        nothing = np.zeros(n, np.int64)
        values = np.ones((n, 1))
        times = nothing + step if step == 3 else np.arange(n)
        features, _ = histories.observe(Entries(slots, times, values, nothing, nothing))
        assert features[-1].tolist() == ([n, n] if step == 3 else [10, 10])
        capacities.append(histories.capacity_bytes)
    assert max(capacities) > 20_000 * 48
    assert max(capacities) < 20 * 20_000 * 48
    counted = histories.measure(
        histories.slots([f"k{step}" for step in range(200)]), np.full(200, 99)
    )
    assert np.delete(counted[:, 0], 3).tolist() == [10] * 199


def test_pack_gives_one_history_per_slot_asked_for() -> None:
    pair = Pair(1)
    pair.observe([(f"k{i}", Entry(i, (float(i),), i, 0)) for i in range(2_000)])
    assert len(pair.histories) == len(pair.histories.entities) == 2_000
    packed = pair.histories.pack(pair.histories.slots(["k1999", "k0", "k1999"]))
    assert packed == [pair.stored["k1999"], pair.stored["k0"], pair.stored["k1999"]]


def test_what_is_dropped_is_read_again() -> None:
    pair = Pair(0, max_entries=100)
    pair.observe([("a", Entry(1, (), 1, 0))])
    assert not pair.histories.is_over_size
    pair.observe([(f"k{i}", Entry(1, (), 1, 0)) for i in range(50)])
    assert pair.histories.is_over_size
    pair.histories.clear()
    assert len(pair.histories) == 0 and not pair.histories.is_over_size
    pair.measure(["a", "k7", "new"], [1, 1, 1])


def test_what_was_packed_does_not_follow_what_is_unpacked() -> None:
    pair = filled([1], [1.0])
    packed = pair.stored["a"]
    before = bytes(bytearray(packed))
    pair.restart()
    pair.observe([("a", Entry(0, (5.0,), 0, 0))])
    assert packed == before


# -- the packed layout --------------------------------------------------------------------------


def packed_with(values: int) -> bytes:
    pair = Pair(values)
    pair.observe([("a", Entry(1, (1.0,) * values, 2, 3))])
    return pair.stored["a"]


@pytest.mark.parametrize(
    ("values", "change"),
    [
        (0, lambda _: packed_with(1)),
        (1, lambda _: packed_with(0)),
        (2, lambda _: packed_with(1)),
        (1, lambda packed: packed[:-1]),
        (1, lambda packed: packed + b"\x00"),
        (1, lambda packed: bytes([packed[0] + 1]) + packed[1:]),  # another version
        (1, lambda packed: packed[:1] + b"\x00" + packed[2:]),  # entries without ids
        (1, lambda packed: packed[:2] + b"\x01" + packed[3:]),  # a layout nobody knows
        (1, lambda packed: packed[:3]),
        (1, lambda _: b""),
        (1, lambda packed: packed[8:]),
    ],
)
def test_another_layout_is_refused(values: int, change: Callable[[bytes], bytes]) -> None:
    packed = change(packed_with(values))
    histories = Histories(make_plan(values, 1 << 50), read=lambda _: packed)
    with pytest.raises(StateFormatError, match="another layout"):
        histories.slots(["a"])
    assert len(histories) == 0


def test_the_packed_layout_is_frozen() -> None:
    """Savepoints hold these bytes: a change needs another version in the header."""
    assert packed_with(1).hex() == (
        "0301000001000000"  # version, with ids, layout, series, zero
        + "00" * 8  # up to which place in the order of arrival
        + "00000000000000c0"  # time of the newest expired entry: never
        + "0100000000000000"  # time
        + "0200000000000000"  # id
        + "0300000000000000"  # check
        + "000000000000f03f"  # value
    )


def test_version_2_is_read() -> None:
    """It kept running sums, pairs of doubles, where version 3 keeps values."""
    values = [0.1, 1e15, 0.01, -2.5]
    sums = [(0.0, 0.0)]
    for value in values:
        high = sums[-1][0] + value
        low = math.fsum([sums[-1][0], value, -high]) + sums[-1][1]
        sums.append((high, low))
    rows = [(-5, 0, 0, *sums[0])] + [(t, t, 0, *s) for t, s in enumerate(sums[1:])]
    packed = struct.pack("<BBHIq", 2, 1, 5, 0, 7) + b"".join(
        struct.pack("<qqqdd", *row) for row in rows
    )
    histories = Histories(make_plan(1, 1 << 50), read=lambda _: packed)
    slots = histories.slots(["a"])
    assert histories.written_until(slots).tolist() == [7]
    again = np.frombuffer(histories.pack(slots)[0], np.float64, offset=24).reshape(4, 4)
    assert again[:, 3].tolist() == values
    with pytest.raises(StateFormatError):
        Histories(make_plan(2, 1 << 50), read=lambda _: packed).slots(["a"])


def test_other_features_find_the_values_they_share() -> None:
    """A series that was kept stays, a new one is missing until events bring it."""
    pair = Pair(2, spans=[(100, 0)])
    pair.observe([("a", Entry(t, (float(t), 10.0 * t), t, 0)) for t in (1, 2)])
    windows = [
        WindowFeature(prefix=name, key="k", value=name, windows=(100,), aggregates=("count", "sum"))
        for name in ("v1", "v9")
    ]
    series = [Series("v1"), Series("v9")]
    plan = WindowPlan(windows, series, [False, True], frozenset(), True, 1 << 50, 1 << 60, 0)
    layouts = Layouts(["v1", "v9"], [["v0", "v1"]])
    histories = Histories(plan, pair.stored.get, layouts=layouts)
    slots = histories.slots(["a"])
    assert histories.measure(slots, np.array([3])).tolist() == [[2, 30.0, 0, 0.0]]
    one = np.array([3])
    features, _ = histories.observe(Entries(slots, one, np.array([[5.0, 7.0]]), one, one))
    assert features.tolist() == [[3, 35.0, 1, 7.0]]
    stored = dict(zip(["a"], histories.pack(slots), strict=True))
    again = Histories(plan, stored.get, layouts=layouts)
    assert again.measure(again.slots(["a"]), np.array([3])).tolist() == [[3, 35.0, 1, 7.0]]


# -- no rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [0, 1])
def test_no_rows(values: int) -> None:
    pair = Pair(values)
    pair.observe([])
    pair.learn([])
    pair.measure([], [])
    assert len(pair.histories) == 0
