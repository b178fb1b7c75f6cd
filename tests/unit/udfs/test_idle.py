"""Idle keys go by event time, a slice with each batch, and what stays is what a restart finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.unit.udfs.test_states import BUCKET, MINUTE_MS, SCHEMA, MapState, Row, Task, outcome
from udfs.features.idle import IdleKeys
from udfs.features.states import BucketStates

IDLE_MS = 600 * MINUTE_MS


class IdleTask(Task):
    """A task whose keys go after ten hours without an event."""

    def __init__(self, state: MapState, journal_events: int = 100) -> None:
        super().__init__(state, 1 << 60, journal_events, SCHEMA)
        self.states = BucketStates(self.stage, state, 1 << 60, journal_events, IDLE_MS)


def histories(state: MapState) -> list[str]:
    return [name[1:] for name in state if name[0] == "e"]


def one_event_keys(first: int, count: int, per_minute: int) -> list[Row]:
    return [(f"k{n}", n // per_minute, 1.0, n) for n in range(first, first + count)]


def test_keys_of_one_event_take_flat_memory() -> None:
    """50,000 keys over 83 hours: no more than those of some 12 hours stay."""
    state, sizes = MapState(), []
    task = IdleTask(state)
    for first in range(0, 50_000, 500):
        if first == 25_000:
            task = IdleTask(state)
        task.run(one_event_keys(first, 500, per_minute=10))
        sizes.append(sum(len(k) + len(v) for k, v in state.items()))
    assert len(histories(state)) <= 600 * 10 * 1.25 + 2 * 500
    assert "k49899" in histories(state) and "k30000" not in histories(state)
    assert max(sizes) < 1.1 * sizes[30]
    assert sum(name[0] == "i" for name in state) <= 60


def test_a_key_that_comes_back_stays() -> None:
    state = MapState()
    task = IdleTask(state, journal_events=0)
    for hour in range(100):
        task.run(
            [("often", 60 * hour, 1.0, 2 * hour), (f"once{hour}", 60 * hour, 1.0, 2 * hour + 1)]
        )
    assert "often" in histories(state) and "once0" not in histories(state)


@pytest.mark.parametrize("restart", [False, True])
def test_a_removed_key_begins_anew(restart: bool) -> None:
    """Also where its history is still unpacked: what a restart finds is the same."""
    state = MapState()
    task = IdleTask(state, journal_events=0)
    task.run([("a", 0, 5.0, 1)])
    for minute in range(700, 900, 10):
        task.run([("b", minute, 1.0, minute)])
    assert histories(state) == ["b"]
    if restart:
        task = IdleTask(state, journal_events=0)
    seen, _ = task.run([("a", 0, 5.0, 1)])  # its bucket is far ahead of it
    assert (seen.kept.tolist(), seen.late.tolist()) == ([0], [False])
    assert seen.features[0].tolist() == [1, 5, 5, 1, 5, 5]


def test_what_the_journal_holds_is_not_removed() -> None:
    """A restart adds the journal's events again, so that their key cannot be gone."""
    rows: list[list[Row]] = [[("a", 0, 5.0, 1)], [("b", m, 1.0, m) for m in range(10)]]
    rows += [[("a", 1, 7.0, 99)]]
    rows += [[("b", minute, 1.0, minute)] for minute in range(700, 905, 5)]
    rows += [[("a", 2, 1.0, 77)]]
    assert last_outcome(rows, restart=True) == last_outcome(rows, restart=False)


def last_outcome(batches: Sequence[list[Row]], restart: bool) -> list[object]:
    state = MapState()
    task = IdleTask(state, journal_events=8)
    for rows in batches[:-1]:
        task.run(rows)
    return outcome((IdleTask(MapState(state), 8) if restart else task).run(batches[-1]))


def test_state_of_earlier_releases_is_registered() -> None:
    state = MapState()
    before = Task(state, 1 << 60, 0, SCHEMA)
    before.run([("old", 0, 1.0, 1), ("new", 700, 1.0, 2)])
    for name in [n for n in state if n[0] in "i%"]:
        state.remove(name)
    task = IdleTask(state, journal_events=0)
    for minute in range(701, 1_000):
        task.run([("x", minute, 1.0, minute)])
    assert sorted(histories(state)) == ["new", "x"]


def test_a_wrong_clock_of_the_wall_does_not_matter() -> None:
    """Nothing but events moves the clock: a job that was paused for a year goes on."""
    state = MapState()
    IdleTask(state, journal_events=0).run([("a", 0, 5.0, 1)])
    task = IdleTask(state, journal_events=0)
    assert task.run([("a", 1, 5.0, 2)])[0].features[0, 0] == 2
    keys = IdleKeys(state, IDLE_MS, lambda name, packed: 0)
    keys.sweep(1, lambda names, until_ms: pytest.fail("nothing is past"))
    assert keys.clock_ms <= MINUTE_MS and BUCKET in task.states._buckets


def test_registering_again_in_one_period_costs_nothing() -> None:
    keys = IdleKeys(MapState(), IDLE_MS, lambda name, packed: 0)
    newest = np.array([5 * MINUTE_MS], np.int64)
    assert keys.register(["ea"], newest)
    assert not keys.register(["ea"], newest + MINUTE_MS)
    assert keys.register(["ea"], newest + IDLE_MS)
