"""How much memory a job's features take: measured on real histories, filled with synthetic events.

Each stage's ``BucketStates`` gets events at the given rate, as the operator gives them, with a
dictionary in place of Flink's map state. What is measured is the length of what it stores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.settings import Settings
from udfs.batches.events import FloatArray, IntArray
from udfs.features.clock import DAY_MS
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage, Stream
from udfs.features.states import BucketStates

Progress = Callable[[str, float], None]

HEADER_BYTES = 24
_MOST_EVENTS = 200_000
"""Events filled in per stage and stream; so many keys as fit, but always one."""
_MOST_KEYS = 1_000
_BATCH_ROWS = 2_048
_OVERFILL = 1.1
"""Of the horizon: the first events have expired when the last comes."""


@dataclass(frozen=True, slots=True)
class Size:
    """A stage's histories of one stream.

    Attributes:
        stage: Its name.
        stream: ``events`` or ``labels``.
        horizon_ms: How long an entry is kept.
        keys: How many were filled.
        entries: How many entries they keep in all.
        packed_bytes: Of all of them as Flink's state has them, names not counted.
        unpacked_bytes: Of the operator's array, with its room to grow.
        entry_words: Words of an unpacked entry, blocks included, 8 bytes each.
        formula_bytes: What the formula of udfs/README.md gives for so many keys at this rate.
    """

    stage: str
    stream: Stream
    horizon_ms: int
    keys: int
    entries: int
    packed_bytes: int
    unpacked_bytes: int
    entry_words: int
    formula_bytes: int


@dataclass(frozen=True, slots=True)
class Journal:
    """A stage's journal.

    Attributes:
        stage: Its name.
        event_bytes: Of an event in it, with its key's name, on average.
        limit_events: At most so many per bucket.
        buckets: So many.
    """

    stage: str
    event_bytes: float
    limit_events: int
    buckets: int

    @property
    def most_bytes(self) -> int:
        """Of all buckets' journals when they are full."""
        return round(self.event_bytes * self.limit_events * self.buckets)


class _Memory(dict[str, bytes]):
    """Flink's map state, as far as ``BucketStates`` uses it."""

    def put(self, name: str, value: bytes) -> None:
        self[name] = value

    def is_empty(self) -> bool:
        return not self

    def put_all(self, values: dict[str, bytes]) -> None:
        self.update(values)

    def remove(self, name: str) -> None:
        self.pop(name, None)


def measure(
    settings: Settings, per_day: float, progress: Progress
) -> tuple[list[Size], list[Journal]]:
    """Fill and measure every stage.

    Args:
        settings: The job's.
        per_day: Events, and labels, per day and key.
        progress: Shown while they are filled.
    """
    schema, sizes, journals = settings.schema_, [], []
    for name in schema.stages:
        stage = KeyedStage(schema, name)
        size, event_bytes = _fill_events(stage, per_day, progress)
        sizes.append(size)
        flink = settings.flink
        buckets = settings.batch.buckets
        journals.append(Journal(name, event_bytes, flink.journal_events, buckets))
        if stage.reads_labels:
            sizes.append(_fill_labels(stage, per_day, progress))
    return sizes, journals


def _fill_events(stage: KeyedStage, per_day: float, progress: Progress) -> tuple[Size, float]:
    memory: Any = _Memory()
    names, codes, times = _traffic(stage, "events", per_day)
    states = BucketStates(stage, memory, 1 << 62, _BATCH_ROWS)
    rng, state = np.random.default_rng(1), states.of(0)
    for start in range(0, len(times), _BATCH_ROWS):
        rows = slice(start, start + _BATCH_ROWS)
        entities = [names[code] for code in codes[rows].tolist()]
        ids = [f"{start + n:015d}" for n in range(len(entities))]
        identities = (
            Identities.of_events(ids, [i.encode() for i in ids])
            if stage.dedupes
            else Identities.none(len(ids))
        )
        values = {s.name: rng.uniform(1, 1_000, len(ids)) for s in stage.series}
        observed = stage.observe(state, entities, times[rows], values, identities)
        states.add(0, entities, observed.entries)
        progress(f"filling {stage.name} events", min(1.0, (start + _BATCH_ROWS) / len(times)))
    journal = [len(value) for name, value in memory.items() if name.startswith("j")]
    starts = range(0, len(times), _BATCH_ROWS)
    events = sum(min(_BATCH_ROWS, len(times) - start) for start in starts[-len(journal) :])
    packed = state.events.pack(state.events.slots(names))
    newest = np.zeros(len(names), np.int64)
    np.maximum.at(newest, codes, times)
    filled = _Filled(newest[codes] - times, packed, state.events.capacity_bytes)
    return _size(stage, "events", per_day, filled), sum(journal) / events


def _fill_labels(stage: KeyedStage, per_day: float, progress: Progress) -> Size:
    names, codes, times = _traffic(stage, "labels", per_day)
    state = stage.new_state()
    for start in range(0, len(times), _BATCH_ROWS):
        rows = slice(start, start + _BATCH_ROWS)
        entities = [names[code] for code in codes[rows].tolist()]
        values: FloatArray = np.zeros(len(entities))
        ids = [f"{start + n:015d}" for n in range(len(entities))]
        stage.learn(state, entities, times[rows], values, Identities.of_labels(ids, values))
        _forget(stage, names, int(times[rows][-1]), state)
        progress(f"filling {stage.name} labels", min(1.0, (start + _BATCH_ROWS) / len(times)))
    packed = state.labels.pack(state.labels.slots(names))
    filled = _Filled(times[-1] - times, packed, state.labels.capacity_bytes)
    return _size(stage, "labels", per_day, filled)


def _forget(stage: KeyedStage, names: list[str], now_ms: int, state: Any) -> None:
    """Labels expire when an event of their key looks at them."""
    state.labels.measure(state.labels.slots(names), np.full(len(names), now_ms, np.int64))


def _traffic(
    stage: KeyedStage, stream: Stream, per_day: float
) -> tuple[list[str], IntArray, IntArray]:
    """Names of keys, and the key and time of each event, in time order."""
    span_ms = round(_OVERFILL * stage.plans[stream].plan.horizon_ms)
    per_key = max(1, round(per_day * span_ms / DAY_MS))
    keys = max(1, min(_MOST_KEYS, _MOST_EVENTS // per_key))
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, span_ms, (keys, per_key)), axis=1).ravel()
    codes = np.repeat(np.arange(keys), per_key)
    order = np.argsort(times, kind="stable")
    return [f"k{n:08d}" for n in range(keys)], codes[order], times[order]


@dataclass(frozen=True, slots=True)
class _Filled:
    """What was filled in, and what became of it.

    Attributes:
        ages: Of each event when the last one that makes its key forget had come, ms; int64 (n,).
        packed: The history of each key.
        capacity_bytes: Of the unpacked ones.
    """

    ages: IntArray
    packed: list[bytes]
    capacity_bytes: int


def _size(stage: KeyedStage, stream: Stream, per_day: float, filled: _Filled) -> Size:
    plan, keys = stage.plans[stream], len(filled.packed)
    horizon_ms = plan.plan.horizon_ms
    with_id = stream == "labels" or stage.dedupes
    entry_bytes = 8 + 16 * with_id + 8 * len(plan.series)
    return Size(
        stage=stage.name,
        stream=stream,
        horizon_ms=horizon_ms,
        keys=keys,
        entries=int(np.count_nonzero(filled.ages < horizon_ms)),
        packed_bytes=sum(map(len, filled.packed)),
        unpacked_bytes=filled.capacity_bytes,
        entry_words=plan.words,
        formula_bytes=round(keys * (HEADER_BYTES + entry_bytes * per_day * horizon_ms / DAY_MS)),
    )
