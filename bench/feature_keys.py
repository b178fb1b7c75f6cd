"""What an event costs the keyed engine as the number of keys grows, without Flink.

At each number of keys every key has the same number of events in its longest window, and the
state is warm: the events' times are as much denser as there are more keys. What is left to differ
is how far apart memory is touched.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.common import Result, say
from udfs.definition.schema import Schema
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage, StageState

EVENTS_PER_KEY = 8
"""In the longest window, on average."""

BATCH_ROWS = 2_048
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class KeyCost:
    """What was measured at a number of keys.

    Attributes:
        keys: The number.
        ns_per_event: Median over the repeats.
        packed_bytes_per_key: Of the state that Flink stores.
        resident_bytes_per_key: Of the array that holds the unpacked histories.
    """

    keys: int
    ns_per_event: float
    packed_bytes_per_key: float
    resident_bytes_per_key: float


class _Traffic:
    """Endless events over some keys, drawn evenly.

    Args:
        keys: How many.
        window_ms: Time in which each key has ``EVENTS_PER_KEY`` events on average.
    """

    def __init__(self, keys: int, window_ms: int) -> None:
        self._rng = np.random.default_rng(keys)
        self._names = [f"c{n:07d}" for n in range(keys)]
        self._spacing_ms = window_ms / (keys * EVENTS_PER_KEY)
        self._sent = 0

    def batches(self, events: int) -> Iterator[tuple[list[str], Any, Any, Identities]]:
        """Names, times, amounts and identities of each micro-batch."""
        for first in range(0, events, BATCH_ROWS):
            n = min(BATCH_ROWS, events - first)
            numbers = np.arange(self._sent, self._sent + n)
            self._sent += n
            times = (numbers * self._spacing_ms).astype(np.int64)
            names = [self._names[k] for k in self._rng.integers(0, len(self._names), n).tolist()]
            yield (
                names,
                times,
                np.round(self._rng.lognormal(3.5, 1.0, n), 2),
                Identities(numbers, numbers),
            )


def measure(schema: Schema, keys: int, events: int) -> KeyCost:
    """Warm the state up with twice a window of events, then time ``events`` more, three times.

    Args:
        schema: Its first key's stage is measured.
        keys: How many keys.
        events: Events of one repeat.
    """
    stage = KeyedStage(schema, schema.key)
    stage.warm_up()
    state = stage.new_state()
    windows = schema.features.of_stage(schema.key)
    traffic = _Traffic(keys, max(w.reach_ms for spec in windows for w in spec.windows))
    _seconds(stage, state, traffic, 2 * EVENTS_PER_KEY * keys)
    seconds = [_seconds(stage, state, traffic, events) for _ in range(_REPEATS)]
    slots = np.arange(len(state.events), dtype=np.int64)
    packed = sum(map(len, state.events.pack(slots)))
    return KeyCost(
        keys,
        1e9 * statistics.median(seconds) / events,
        packed / len(slots),
        state.events.capacity_bytes / len(slots),
    )


def _seconds(stage: KeyedStage, state: StageState, traffic: _Traffic, events: int) -> float:
    """CPU time inside the engine, which has one thread: other work on the machine is not in it."""
    total_s, said_s, done = 0.0, time.monotonic(), 0
    for names, times, amounts, identities in traffic.batches(events):
        values = {series.name: amounts for series in stage.series}
        begun_s = time.thread_time()
        stage.observe(state, names, times, values, identities)
        total_s += time.thread_time() - begun_s
        done += len(names)
        if time.monotonic() - said_s > 10:
            said_s = time.monotonic()
            say(f"keys: {done:,} of {events:,} events")
    return total_s


def results_of(costs: Sequence[KeyCost]) -> list[Result]:
    """The headline figures: the dearest number of keys over the cheapest, and each of them."""
    by_cost = sorted(costs, key=lambda cost: cost.ns_per_event)
    cheapest, dearest = by_cost[0], by_cost[-1]
    ratio = dearest.ns_per_event / cheapest.ns_per_event
    note = f"{dearest.keys:,} keys over {cheapest.keys:,}; 1 would be flat"
    results = [Result("cost_1e3_to_1e6_keys", ratio, "x", 1.0, ratio, note)]
    for cost in costs:
        note = f"{cost.resident_bytes_per_key:,.0f} bytes per key unpacked"
        keys = f"{cost.keys}_keys"
        results.append(Result(f"cost_{keys}", cost.ns_per_event, "ns/event"))
        results.append(Result(f"state_{keys}", cost.packed_bytes_per_key, "bytes/key", note=note))
    return results
