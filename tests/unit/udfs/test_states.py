"""What a restart finds gives the features that an uninterrupted run gives, to the bit."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.definition.feature import FeatureSpec
from udfs.definition.schema import Schema
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage, Observed
from udfs.features.layouts import StateFormatError
from udfs.features.states import BucketStates

SCHEMA = Schema.model_validate(
    {
        "event": {
            "id": "id",
            "time": {"field": "time", "format": "epoch_ms"},
            "dedupe_within": "1h",
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "time", "type": "int"},
                {"name": "card", "type": "string"},
                {"name": "amount", "type": "float"},
            ],
        },
        "key": "card",
        "features": {
            "windows": [
                {
                    "prefix": "card",
                    "key": "card",
                    "value": "amount",
                    "windows": ["5m", "1h"],
                    "aggregates": ["count", "sum", "mean"],
                }
            ]
        },
    }
)
_WINDOWS = SCHEMA.model_dump(mode="json")["features"]["windows"]
WITH_FIRST = SCHEMA.model_copy(
    update={
        "features": FeatureSpec.model_validate(
            {"windows": [_WINDOWS[0] | {"windows": ["5m", {"first": 3}]}]}
        )
    }
)
"""The same with a window that never moves."""
BUCKET = 7
MINUTE_MS = 60_000

Row = tuple[str, int, float, int]
"""Card, minute, amount, id."""

ROWS = st.tuples(
    st.sampled_from(["a", "b", "ü|\n", ""]),
    st.integers(0, 200),
    st.floats(-1e6, 1e6),
    st.integers(0, 40),
)
BATCHES = st.lists(st.tuples(st.lists(ROWS, max_size=12), st.booleans()), max_size=12)


class MapState(dict[str, bytes]):
    """Flink's map state of one bucket."""

    writes = 0

    def put_all(self, values: dict[str, bytes]) -> None:
        assert all(type(v) is bytes for v in values.values())
        self.update(values)
        self.writes += sum(key[0] == "e" for key in values)

    def is_empty(self) -> bool:
        return not self

    def put(self, key: str, value: bytes) -> None:
        assert type(value) is bytes
        self[key] = value

    def remove(self, key: str) -> None:
        self.pop(key, None)


class Task:
    """One stage on a state, as a subtask has it."""

    def __init__(
        self,
        state: MapState,
        cached_entries: int,
        journal_events: int,
        schema: Schema = SCHEMA,
    ) -> None:
        self.stage = KeyedStage(schema, "card")
        self.states = BucketStates(self.stage, state, cached_entries, journal_events)

    def values(self, amounts: list[float]) -> dict[str, np.ndarray]:
        column = np.array(amounts, np.float64)
        large = np.where(column > 5, column, np.nan)
        return {s.name: large if s.where else column for s in self.stage.series}

    def run(self, rows: Sequence[Row]) -> tuple[Observed, int]:
        cards = [card for card, *_ in rows]
        ids = [str(number) for *_, number in rows]
        observed = self.stage.observe(
            self.states.of(BUCKET),
            cards,
            np.array([minute * MINUTE_MS for _, minute, *_ in rows], np.int64),
            self.values([amount for _, _, amount, _ in rows]),
            Identities.of_events(ids, [repr(row).encode() for row in rows]),
        )
        kept = [cards[i] for i in observed.kept.tolist()]
        return observed, self.states.add(BUCKET, kept, observed.entries)


def outcome(result: tuple[Observed, int]) -> list[Any]:
    observed, first = result
    kept = observed.kept.tolist()
    return [observed.features.tobytes(), kept, observed.duplicates, observed.conflicts, first]


@settings(max_examples=300)
@given(
    batches=BATCHES,
    cached_entries=st.sampled_from([1, 40, 1_000_000]),
    journal_events=st.sampled_from([0, 1, 10, 30, 100_000]),
    schema=st.sampled_from([SCHEMA, WITH_FIRST]),
)
def test_restarts_change_nothing(
    batches: list[tuple[list[Row], bool]],
    cached_entries: int,
    journal_events: int,
    schema: Schema,
) -> None:
    state = MapState()
    whole = Task(MapState(), 1 << 60, 0, schema)
    task = Task(state, cached_entries, journal_events, schema)
    for rows, restart in batches:
        if restart:
            state = MapState(state)
            task = Task(state, cached_entries, journal_events, schema)
        assert outcome(task.run(rows)) == outcome(whole.run(rows))


def test_the_journal_spares_writing_a_busy_keys_history() -> None:
    state = MapState()
    task = Task(state, 1_000_000, 100)
    for n in range(400):
        task.run([("busy", n // 10, 1.0, n)])
    assert state.writes == 400 // 100 - 1
    assert sum(key[0] == "j" for key in state) == 100


def test_nothing_is_read_of_a_bucket_that_began_empty() -> None:
    """Opening thousands of new keys costs no look into the state for each; a restart reads them."""

    class Counted(MapState):
        read: ClassVar[list[str]] = []

        def get(self, key: str, default: Any = None) -> Any:
            self.read.append(key)
            return super().get(key, default)

    state = Counted()
    first = Task(state, 1_000_000, 0)
    for n in range(3):
        first.run([(card, n, 1.0, n) for card in "abc"])
    assert not [key for key in state.read if key[0] in "elf"]
    restarted = Task(state, 1_000_000, 0)
    restarted.run([("a", 4, 1.0, 4), ("d", 4, 1.0, 5)])
    assert [key for key in state.read if key[0] == "e"] == ["ea", "ed"]


def test_an_idle_keys_history_is_written_before_its_journal_is_dropped() -> None:
    state = MapState()
    task = Task(state, 1_000_000, 10)
    task.run([("idle", 0, 5.0, 1_000)])
    for n in range(20):
        task.run([("busy", 0, 1.0, n)])
    assert "eidle" in state
    observed, place = Task(MapState(state), 1_000_000, 10).run([("idle", 1, 7.0, 1_001)])
    assert observed.features.tolist() == [[2, 12, 6, 2, 12, 6]] and place == 21


def test_without_a_journal_every_batch_writes_its_keys() -> None:
    state = MapState()
    task = Task(state, 1_000_000, 0)
    task.run([("a", 0, 5.0, 1), ("b", 0, 5.0, 2)])
    assert set(state) == {"ea", "eb", "#", "@"}


def test_a_segment_that_has_expired_is_passed_over() -> None:
    state = MapState()
    task = Task(state, 1_000_000, 10)
    for n in range(3):
        task.run([("a", 0, 1.0, n)])
    del state["j1"]
    task = Task(state, 1_000_000, 10)
    assert task.run([("a", 0, 1.0, 9)])[0].features[0, 0] == 3
    for n in range(20, 40):
        task.run([("b", 0, 1.0, n)])
    assert Task(MapState(state), 1_000_000, 10).run([("a", 0, 1.0, 50)])[0].features[0, 0] == 4


@pytest.mark.parametrize(
    "change",
    [
        {"#": b"12345678"},
        {"j0": b"\x03" + bytes(15)},  # another version
        {"j0": b"\x01\x02" + bytes(14)},  # version 1, of two values
        {"j0": b"\x02\x01\x07" + bytes(13)},  # a layout nobody knows
    ],
)
def test_another_layout_is_refused(change: dict[str, bytes]) -> None:
    state = MapState()
    Task(state, 1_000_000, 10).run([("a", 0, 1.0, 1)])
    state.update(change)
    with pytest.raises(StateFormatError, match="start without"):
        Task(state, 1_000_000, 10).states.of(BUCKET)


def test_a_journal_of_version_1_is_read() -> None:
    """It had no layouts: the values were those of the features of the time."""
    state = MapState()
    Task(state, 1_000_000, 10).run([("a", 0, 5.0, 1), ("a", 0, 7.0, 2)])
    segment = state["j0"]
    del state["@"]
    state["j0"] = struct.pack("<BBHIq", 1, 1, 0, 2, 0) + segment[16:]
    observed, place = Task(state, 1_000_000, 10).run([("a", 1, 6.0, 3)])
    assert observed.features.tolist() == [[3, 18, 6, 3, 18, 6]] and place == 2


def test_changed_features_keep_the_values_they_share() -> None:
    """Journal and histories alike; what is new begins with the events that bring it."""
    state = MapState()
    task = Task(state, 1_000_000, 1)
    task.run([("a", 0, 5.0, 1), ("b", 0, 3.0, 2)])
    task.run([("a", 0, 7.0, 3)])
    assert "ea" in state and "j1" in state
    spec = SCHEMA.model_dump(mode="json")
    spec["features"]["windows"][:0] = [
        {
            "prefix": "large",
            "key": "card",
            "value": "amount",
            "where": "amount > 5",
            "windows": ["1h"],
            "aggregates": ["count"],
        }
    ]
    changed = Task(state, 1_000_000, 1, Schema.model_validate(spec))
    first, _ = changed.run([("a", 1, 6.0, 4)])
    assert first.features.tolist() == [[1, 3, 18, 6, 3, 18, 6]]
    again = Task(MapState(state), 1_000_000, 1, Schema.model_validate(spec))
    assert again.run([("a", 1, 1.0, 5)])[0].features.tolist() == [[1, 4, 19, 4.75, 4, 19, 4.75]]
    back, _ = Task(MapState(state), 1_000_000, 1).run([("a", 1, 1.0, 5)])
    assert back.features.tolist() == [[4, 19, 4.75, 4, 19, 4.75]]


def test_a_required_field_that_is_aggregated_later_begins_with_its_first_event() -> None:
    """Entries from before have no value: neither its mean nor its deviation counts them."""
    state = MapState()
    task = Task(state, 1_000_000, 10)
    task.run([("a", 0, 5.0, n) for n in range(20)])
    spec = SCHEMA.model_dump(mode="json")
    spec["event"]["fields"].append({"name": "tip", "type": "float"})
    spec["features"]["windows"].append(
        {
            "prefix": "tip",
            "key": "card",
            "value": "tip",
            "windows": ["1h"],
            "aggregates": ["count", "mean", "first", "min"],
        }
    )
    changed = Task(state, 1_000_000, 10, Schema.model_validate(spec))
    observed, _ = changed.run([("a", 1, 100.0, 99)])
    assert observed.features[0, -4:].tolist() == [1, 100, 100, 100]
