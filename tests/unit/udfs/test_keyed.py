"""The keyed features against a naive recomputation: any order, any batches, any restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.definition.event import EventSpec, FieldSpec, LabelSpec, TimeSpec
from udfs.definition.feature import FeatureSpec, WindowFeature
from udfs.definition.schema import Schema
from udfs.features import log_kernels, measure_kernels
from udfs.features.histories import Entries, Histories
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage, StageState
from udfs.features.series import Series
from udfs.features.window_plan import WindowPlan

WINDOWS_MS = (5, 20, 100)
DELAY_MS = 10
LATENESS_MS = 1_000


def make_schema() -> Schema:
    text = [FieldSpec(name=n, type="string") for n in ("id", "card", "terminal")]
    return Schema(
        event=EventSpec(
            id="id",
            time=TimeSpec(field="t", allowed_lateness=LATENESS_MS),
            fields=(*text, FieldSpec(name="t", type="int"), FieldSpec(name="amount", type="float")),
            dedupe_within=50,
        ),
        key="card",
        labels=LabelSpec(id="id", time="t", key="terminal", value="fraud"),
        features=FeatureSpec(
            windows=(
                WindowFeature(
                    prefix="c",
                    key="card",
                    value="amount",
                    windows=WINDOWS_MS,
                    aggregates=("count", "sum", "mean", "ratio_to_mean"),
                ),
                WindowFeature(
                    prefix="t",
                    key="terminal",
                    value="amount",
                    windows=WINDOWS_MS,
                    delay=DELAY_MS,
                    aggregates=("count", "sum"),
                ),
                WindowFeature(
                    prefix="f",
                    key="terminal",
                    stream="labels",
                    value="fraud",
                    windows=WINDOWS_MS,
                    delay=DELAY_MS,
                    aggregates=("count", "mean"),
                ),
            )
        ),
    )


SCHEMA = make_schema()


@dataclass(frozen=True)
class Event:
    entity: str
    time_ms: int
    amount: float


events = st.lists(
    st.builds(
        Event,
        entity=st.sampled_from(["a", "b", "c"]),
        time_ms=st.integers(0, 300),
        amount=st.one_of(st.floats(1e-6, 1e6), st.sampled_from([0.0, 1e15, 0.01])),
    ),
    max_size=60,
)
cuts = st.lists(st.integers(0, 60), max_size=6)


def in_batches(items: list[Event], at: list[int]) -> list[list[Event]]:
    edges = sorted({0, len(items), *(c for c in at if c < len(items))})
    return [items[a:b] for a, b in pairwise(edges)]


def identities(first: int, n: int) -> Identities:
    return Identities.of_events([f"e{first + i}" for i in range(n)], [b""] * n)


class Restarts:
    """A state that can go through its packed bytes, as a restart does."""

    def __init__(self, stage: KeyedStage) -> None:
        self._stage = stage
        self._stored: dict[tuple[str, str], bytes] = {}
        self.state = stage.new_state()

    def restart(self) -> None:
        for stream, histories in (("events", self.state.events), ("labels", self.state.labels)):
            entities = histories.entities
            packed = histories.pack(histories.slots(entities))
            self._stored |= {(stream, e): p for e, p in zip(entities, packed, strict=True)}
        self.state = self._stage.new_state(
            lambda stream, entity: self._stored.get((stream, entity))
        )


def run(
    stage: KeyedStage, batches: list[list[Event]], restart: bool, value: str = "amount"
) -> np.ndarray:
    restarts = Restarts(stage)
    rows = []
    seen = 0
    for batch in batches:
        observed = stage.observe(
            restarts.state,
            [e.entity for e in batch],
            np.array([e.time_ms for e in batch], np.int64),
            {value: np.array([e.amount for e in batch])},
            identities(seen, len(batch)),
        )
        assert len(observed.kept) == len(batch)
        rows.append(observed.features)
        seen += len(batch)
        if restart:
            restarts.restart()
    return np.concatenate(rows)


def window(items: list[Event], now: Event, span_ms: int, delay_ms: int) -> list[float]:
    end = now.time_ms - delay_ms
    return [e.amount for e in items if e.entity == now.entity and end - span_ms < e.time_ms <= end]


@settings(max_examples=400)
@given(items=events, at=cuts, restart=st.booleans())
def test_each_event_sees_exactly_its_own_window(
    items: list[Event], at: list[int], restart: bool
) -> None:
    if not items:
        return
    got = run(KeyedStage(SCHEMA, "card"), in_batches(items, at), restart)
    for row, now in enumerate(items):
        for w, span_ms in enumerate(WINDOWS_MS):
            inside = window(items[: row + 1], now, span_ms, 0)
            count, total, mean, ratio = got[row, 4 * w : 4 * w + 4]
            expected = math.fsum(inside)
            assert count == len(inside)
            assert total == pytest.approx(expected, rel=1e-9, abs=1e-15)
            assert mean == pytest.approx(expected / len(inside), rel=1e-9, abs=1e-15)
            if expected / len(inside) == 0:
                assert math.isnan(ratio)
            else:
                assert ratio == pytest.approx(now.amount * len(inside) / expected, rel=1e-9)


@settings(max_examples=200)
@given(items=events, at=cuts, restart=st.booleans())
def test_a_delayed_window_ends_before_the_event(
    items: list[Event], at: list[int], restart: bool
) -> None:
    if not items:
        return
    got = run(KeyedStage(SCHEMA, "terminal"), in_batches(items, at), restart)
    for row, now in enumerate(items):
        for w, span_ms in enumerate(WINDOWS_MS):
            inside = window(items[: row + 1], now, span_ms, DELAY_MS)
            assert got[row, 2 * w] == len(inside)
            assert got[row, 2 * w + 1] == pytest.approx(math.fsum(inside), rel=1e-9, abs=1e-15)


@settings(max_examples=200)
@given(
    labels=st.dictionaries(
        st.integers(0, 30),
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 300), st.booleans()),
        max_size=30,
    ),
    repeats=st.lists(st.integers(0, 30), max_size=20),
    corrected=st.sets(st.integers(0, 30)),
    now=st.builds(Event, st.sampled_from(["a", "b"]), st.integers(0, 400), st.just(1.0)),
    cut=st.integers(0, 60),
)
def test_labels_count_once_and_the_last_word_holds(
    labels: dict[int, tuple[str, int, bool]],
    repeats: list[int],
    corrected: set[int],
    now: Event,
    cut: int,
) -> None:
    stage = KeyedStage(SCHEMA, "terminal")
    restarts = Restarts(stage)
    sent = [(i, *v) for i, v in labels.items()]
    sent += [(i, *labels[i]) for i in repeats if i in labels]
    final = {i: (e, t, f != (i in corrected)) for i, (e, t, f) in labels.items()}
    sent += [(i, *final[i]) for i in corrected if i in labels]
    for part in (sent[:cut], sent[cut:]):
        if part:
            values = np.array([float(f) for *_, f in part])
            stage.learn(
                restarts.state,
                [e for _, e, _, _ in part],
                np.array([t for _, _, t, _ in part], np.int64),
                values,
                Identities.of_labels([f"e{i}" for i, *_ in part], values),
            )
            restarts.restart()
    got = stage.observe(
        restarts.state,
        [now.entity],
        np.array([now.time_ms]),
        {"amount": np.array([1.0])},
        Identities.none(1),
    ).features[0, 2 * len(WINDOWS_MS) :]
    known = [Event(e, t, float(f)) for e, t, f in final.values()]
    for w, span_ms in enumerate(WINDOWS_MS):
        inside = window(known, now, span_ms, DELAY_MS)
        assert got[2 * w] == len(inside)
        if inside:
            assert got[2 * w + 1] == pytest.approx(sum(inside) / len(inside), rel=1e-9, abs=1e-12)
        else:
            assert math.isnan(got[2 * w + 1])


def learn(stage: KeyedStage, state: StageState, labels: list[tuple[str, int, float]]) -> int:
    """Labels of one entity by id, time and value; returns how many were repeats."""
    values = np.array([value for *_, value in labels], np.float64)
    return stage.learn(
        state,
        ["a"] * len(labels),
        np.array([time_ms for _, time_ms, _ in labels], np.int64),
        values,
        Identities.of_labels([id_ for id_, *_ in labels], values),
    )


def label_window(stage: KeyedStage, state: StageState, now_ms: int) -> list[float]:
    """Count and mean of the largest label window."""
    one = np.ones(1)
    observed = stage.observe(state, ["a"], np.array([now_ms]), {"amount": one}, Identities.none(1))
    features: list[float] = observed.features[0, -2:].tolist()
    return features


@pytest.mark.parametrize("restart", [False, True])
def test_a_huge_label_that_was_corrected_leaves_no_trace(restart: bool) -> None:
    stage = KeyedStage(SCHEMA, "terminal")
    restarts = Restarts(stage)
    assert learn(stage, restarts.state, [("x", 1, 0.3), ("y", 2, 1e15), ("z", 3, 0.01)]) == 0
    if restart:
        restarts.restart()
    assert learn(stage, restarts.state, [("y", 2, 0.02)]) == 0
    count, mean = label_window(stage, restarts.state, 20)
    assert count == 3
    assert count * mean == pytest.approx(0.33, rel=1e-15)


@settings(max_examples=200)
@given(
    sent=st.lists(
        st.tuples(
            st.sampled_from("uvwxyz"),
            st.integers(0, 50),
            st.one_of(st.sampled_from([0.0, 1e15, -1e15, 0.01, 0.3]), st.floats(-1e15, 1e15)),
        ),
        max_size=25,
    )
)
def test_labels_corrected_over_and_over_measure_what_they_are_now(
    sent: list[tuple[str, int, float]],
) -> None:
    stage = KeyedStage(SCHEMA, "terminal")
    state = stage.new_state()
    final: dict[str, tuple[int, float]] = {}
    for label in sent:
        id_, time_ms, value = label
        repeated = id_ in final and final[id_][1] == value
        same_bits = repeated and math.copysign(1, value) == math.copysign(1, final[id_][1])
        assert learn(stage, state, [label]) == int(same_bits)
        if not same_bits:
            final[id_] = time_ms, value
    count, mean = label_window(stage, state, 60)
    assert count == len(final)
    if final:
        values = [value for _, value in final.values()]
        total, size = math.fsum(values), math.fsum(map(abs, values))
        foreign = 2.0**-104 * (len(sent) + 1) ** 2 * math.fsum(abs(v) for *_, v in sent)
        assert abs(mean * count - total) <= 2.0**-50 * size + foreign


def test_labels_that_differ_by_a_fraction_are_corrections() -> None:
    stage = KeyedStage(SCHEMA, "terminal")
    state = stage.new_state()
    assert learn(stage, state, [("x", 1, 0.3)]) == 0
    assert learn(stage, state, [("x", 1, 0.4), ("x", 1, 0.4)]) == 1
    assert label_window(stage, state, 20) == [1, 0.4]


@pytest.mark.parametrize("values", [np.array([0.0, 0.5, 1.0, 2.0**63]), np.arange(8.0)[::2]])
def test_the_check_of_a_label_is_its_bits(values: np.ndarray) -> None:
    identities = Identities.of_labels(["a", "b", "c", "d"], values)
    assert identities.checks.view(np.float64).tolist() == values.tolist()
    assert len(set(identities.ids.tolist())) == 4


@settings(max_examples=200)
@given(
    items=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(0, 120), st.booleans()),
        max_size=40,
    ),
    at=cuts,
)
def test_repeats_are_duplicates_or_conflicts_and_never_counted(
    items: list[tuple[str, int, int, bool]], at: list[int]
) -> None:
    stage = KeyedStage(SCHEMA, "card")
    state = stage.new_state()
    history: list[tuple[str, int, int, bool]] = []
    for batch in in_batches(items, at):  # type: ignore[arg-type]
        ids = [f"{e}{i}" for e, i, _, _ in batch]
        observed = stage.observe(
            state,
            [e for e, *_ in batch],
            np.array([t for _, _, t, _ in batch], np.int64),
            {"amount": np.ones(len(batch))},
            Identities.of_events(ids, [b"x" if same else b"y" for *_, same in batch]),
        )
        for row, (entity, number, time_ms, same) in enumerate(batch):
            rivals = [h for h in history if h[:2] == (entity, number) and h[2] > time_ms - 50]
            if not rivals:
                history.append((entity, number, time_ms, same))
                assert row in observed.kept
            elif any(r[3] == same for r in rivals):
                assert row in observed.duplicates or row in observed.conflicts
            else:
                assert row in observed.conflicts
        assert len(observed.kept) + len(observed.duplicates) + len(observed.conflicts) == len(batch)


@pytest.mark.parametrize("key", SCHEMA.stages)
def test_warming_up_leaves_the_stage_as_it_was(key: str) -> None:
    items = [Event("", 0, 1.0), Event("a", 5, 2.0), Event("", 7, 3.0)]
    warm, cold = KeyedStage(SCHEMA, key), KeyedStage(SCHEMA, key)
    warm.warm_up()
    warm.warm_up()
    got, expected = (run(stage, [items], restart=False) for stage in (warm, cold))
    np.testing.assert_array_equal(got, expected)
    assert len(warm.new_state().events) == len(warm.new_state().labels) == 0


def test_warming_up_compiles_all_that_a_batch_needs() -> None:
    stage = KeyedStage(SCHEMA, "terminal")
    stage.warm_up()
    compiled = [measure_kernels.observe, measure_kernels.measure, log_kernels.learn]
    before = [len(loop.signatures) for loop in compiled]
    state = stage.new_state()
    learn(stage, state, [("x", 1, 1.0)])
    label_window(stage, state, 20)
    assert [len(loop.signatures) for loop in compiled] == before


def test_one_key_may_have_a_batch_to_itself() -> None:
    items = [Event("hot", t, float(t % 7)) for t in (*range(0, 1_000, 2), *range(1, 1_000, 2))]
    got = run(KeyedStage(SCHEMA, "card"), in_batches(items, [250, 750]), restart=True)
    for row in range(0, len(items), 97):
        inside = window(items[: row + 1], items[row], 100, 0)
        assert got[row, 8] == len(inside)
        assert got[row, 9] == pytest.approx(sum(inside), abs=1e-9)


def test_a_huge_value_that_left_the_window_leaves_no_trace() -> None:
    items = [Event("a", 0, 1e15), *(Event("a", 200 + i, 0.01) for i in range(3))]
    got = run(KeyedStage(SCHEMA, "card"), [[e] for e in items], restart=True)
    assert got[-1, 1] == pytest.approx(0.03, rel=1e-12)


def test_expired_entries_are_forgotten_but_not_those_a_late_event_may_need() -> None:
    stage = KeyedStage(SCHEMA, "card")
    state = stage.new_state()
    horizon_ms = max(WINDOWS_MS) + LATENESS_MS
    for n, time_ms in enumerate((0, 100, horizon_ms, horizon_ms + 50)):
        stage.observe(state, ["a"], np.array([time_ms]), {"amount": np.ones(1)}, identities(n, 1))
    packed = state.events.pack(state.events.slots(["a"]))[0]
    assert len(packed) == 24 + 3 * 32  # a header, and three entries of four words


def plan(span_ms: int) -> WindowPlan:
    window = WindowFeature(prefix="w", key="k", windows=(span_ms,), aggregates=("count",))
    return WindowPlan([window], [Series("v")], [False], frozenset(), True, span_ms, LATENESS_MS, 0)


def add(histories: Histories, names: list[str], time_ms: int) -> None:
    n = len(names)
    zeros = np.zeros(n, np.int64)
    entries = Entries(histories.slots(names), zeros + time_ms, np.ones((n, 1)), zeros, zeros)
    histories.observe(entries)


def test_memory_is_bounded_by_what_is_live() -> None:
    histories = Histories(plan(10_000))
    names = [f"k{i}" for i in range(40)]
    for step in range(2_000):
        add(histories, names, step)
    slots = histories.slots(names)
    counted = histories.measure(slots, np.full(40, 2_000))
    assert (counted == 2_000).all()
    assert histories.capacity_bytes < 40 * 2_000 * 32 * 10
