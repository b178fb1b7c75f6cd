"""The features of one key: what a keyed stage does to a batch, without any engine.

The Flink operator and the training both call ``KeyedStage.observe``; they differ only in where an
unknown entity's history is read from (Flink's map state, or nowhere). That is why a training
feature and a live feature cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from udfs.events import FloatArray, IntArray
from udfs.spec import Schema, WindowFeature
from udfs.windows import CheckArray, Histories, IdArray, among_rows

_FOREVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Identities:
    """What names an entry: a hash of its id, and a check of its content.

    Attributes:
        ids: xxh3 of the id's UTF-8, uint64 (n,).
        checks: CRC-32 of the record (events) or the value itself (labels), uint32 (n,).
    """

    ids: IdArray
    checks: CheckArray

    @classmethod
    def of_events(cls, ids: Sequence[str], raw: Sequence[bytes]) -> Identities:
        """The identities of events: two records of one id and other bytes differ in the check."""
        return cls(_hash(ids), np.array([*map(crc32, raw)], np.uint32))

    @classmethod
    def of_labels(cls, ids: Sequence[str], values: FloatArray) -> Identities:
        """The identities of labels: a corrected label differs in the check."""
        return cls(_hash(ids), values.astype(np.uint32))

    @classmethod
    def none(cls, n: int) -> Identities:
        """For stages that need none."""
        return cls(np.zeros(n, np.uint64), np.zeros(n, np.uint32))

    def select(self, rows: npt.NDArray[np.intp]) -> Identities:
        """The identities of these rows."""
        return Identities(self.ids[rows], self.checks[rows])


def _hash(ids: Sequence[str]) -> IdArray:
    return np.array([xxh3_64_intdigest(i.encode()) for i in ids], np.uint64)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a stage made of a batch.

    Attributes:
        features: float64 (kept rows, columns of the stage).
        kept: Indices of the rows that are not duplicates, in order.
        duplicates: Indices of the rows whose id and content were seen before.
        conflicts: Indices of the rows whose id was seen with another content.
    """

    features: FloatArray
    kept: npt.NDArray[np.intp]
    duplicates: list[int]
    conflicts: list[int]


@dataclass(frozen=True, slots=True)
class StageState:
    """The histories of one bucket of a stage."""

    events: Histories
    labels: Histories


class _Plan:
    """The windows of one key over one stream: what to measure and how to name it."""

    def __init__(self, windows: Sequence[WindowFeature], horizon_ms: int) -> None:
        self.windows = windows
        self.horizon_ms = horizon_ms
        self.values = tuple(dict.fromkeys(w.value for w in windows if w.value is not None))
        self.spans = tuple(dict.fromkeys((span, w.delay) for w in windows for span in w.windows))

    def columns(self, cube: FloatArray, own: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Name what ``Histories.measure`` gave; ``own`` holds the events' own values."""
        named: dict[str, FloatArray] = {}
        for window in self.windows:
            names = iter(window.columns)
            for span in window.windows:
                at = cube[:, self.spans.index((span, window.delay)), :]
                for aggregate in window.aggregates:
                    named[next(names)] = self._aggregate(aggregate, window.value, at, own)
        return named

    def _aggregate(
        self, aggregate: str, value: str | None, at: FloatArray, own: dict[str, FloatArray]
    ) -> FloatArray:
        count = at[:, 0]
        if aggregate == "count" or value is None:
            return count
        total = at[:, 1 + self.values.index(value)]
        if aggregate == "sum":
            return total
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total / count  # 0 / 0 is NaN: an empty window has no mean
            return mean if aggregate == "mean" else np.where(mean != 0, own[value] / mean, np.nan)


class KeyedStage:
    """All window features of one key.

    Args:
        schema: The job's schema.
        key: One of ``schema.stages``; the first also finds duplicates.
    """

    def __init__(self, schema: Schema, key: str) -> None:
        windows = schema.features.of_key(key)
        self.key = key
        self.dedupes = key == schema.key
        self.columns = tuple(c for w in windows for c in w.columns)
        self._dedupe_within_ms = schema.event.dedupe_within
        self._events = _plan(schema, key, "events")
        self._labels = _plan(schema, key, "labels")

    @property
    def reads_labels(self) -> bool:
        """Whether late labels enter this stage."""
        return bool(self._labels.windows)

    @property
    def event_values(self) -> tuple[str, ...]:
        """The numeric event fields this stage aggregates."""
        return self._events.values

    def new_state(
        self,
        read: Callable[[str, str], bytes | None] = lambda _stream, _entity: None,
        max_entries: int = 1 << 62,
    ) -> StageState:
        """Histories for a bucket.

        Args:
            read: Gives the packed history of a stream and an entity, or none.
            max_entries: How many entries of each stream stay unpacked.
        """
        return StageState(
            Histories(len(self._events.values), lambda e: read("events", e), max_entries),
            Histories(len(self._labels.values), lambda e: read("labels", e), max_entries),
        )

    def observe(
        self,
        state: StageState,
        entities: Sequence[str],
        times: IntArray,
        values: dict[str, FloatArray],
        identities: Identities,
    ) -> Observed:
        """Add each event to its entity's history and measure its windows, itself included.

        Rows are taken in the order given: a row sees those of the same entity before it.

        Args:
            state: The bucket's histories.
            entities: The key's value of each event, n of them.
            times: Event times, epoch ms, int64 (n,).
            values: The aggregated fields, float64 (n,) each.
            identities: Compared with those seen, on the first stage only.
        """
        slots = state.events.slots(entities)
        kept = np.arange(len(slots))
        duplicates: list[int] = []
        conflicts: list[int] = []
        if self.dedupes:
            seen = self._seen(state.events, slots, times, identities)
            for row, same in seen.items():
                (duplicates if same else conflicts).append(row)
            kept = np.delete(kept, list(seen))
        rows = _Rows(
            slots[kept],
            times[kept],
            _matrix([values[v][kept] for v in self._events.values], len(kept)),
            identities.select(kept),
        )
        spans = self._events.spans
        cube = state.events.measure(rows.slots, rows.times, spans)
        cube += among_rows(rows.slots, rows.times, rows.values, spans)
        rows.add_to(state.events)
        named = self._events.columns(cube, {n: v[kept] for n, v in values.items()})
        state.events.expire(rows.slots, self._events.horizon_ms)
        if self.reads_labels:
            named |= self._label_columns(state, [entities[i] for i in kept.tolist()], rows)
        features = [named[c] for c in self.columns]
        return Observed(_matrix(features, len(kept)), kept, duplicates, conflicts)

    def _seen(
        self, histories: Histories, slots: IntArray, times: IntArray, identities: Identities
    ) -> dict[int, bool]:
        """The rows whose id was seen before, and whether their content was the same."""
        ids, checks = identities.ids, identities.checks
        found = histories.find(slots, ids, times - self._dedupe_within_ms)
        hits = np.flatnonzero(found >= 0)
        same = histories.check_at(found[hits]) == checks[hits]
        seen = dict(zip(hits.tolist(), same.tolist(), strict=True))
        if len(np.unique(ids)) == len(ids):
            return seen
        first: dict[tuple[int, int], int] = {}
        for row, key in enumerate(zip(slots.tolist(), ids.tolist(), strict=True)):
            if row not in seen and first.setdefault(key, row) != row:
                seen[row] = bool(checks[first[key]] == checks[row])
        return dict(sorted(seen.items()))

    def _label_columns(
        self, state: StageState, entities: Sequence[str], rows: _Rows
    ) -> dict[str, FloatArray]:
        slots = state.labels.slots(entities)
        cube = state.labels.measure(slots, rows.times, self._labels.spans)
        state.labels.expire(slots, self._labels.horizon_ms, rows.times)
        return self._labels.columns(cube, {})

    def learn(
        self,
        state: StageState,
        entities: Sequence[str],
        times: IntArray,
        values: FloatArray,
        identities: Identities,
    ) -> int:
        """Add late labels to their entities' histories.

        A label that is repeated changes nothing; one that differs replaces the earlier one.

        Returns:
            How many were repeats.
        """
        histories = state.labels
        rows = _Rows(
            histories.slots(entities),
            times,
            np.repeat(values[:, None], histories.values, axis=1),
            identities,
        )
        known = histories.find(rows.slots, identities.ids, np.full(len(times), -_FOREVER)) >= 0
        first = np.zeros(len(times), np.bool_)
        first[np.unique(identities.ids, return_index=True)[1]] = True
        rows.select(np.flatnonzero(first & ~known)).add_to(histories)
        others = np.flatnonzero(known | ~first).tolist()
        return sum(_relearn(histories, rows.select(np.array([row]))) for row in others)


@dataclass(frozen=True, slots=True)
class _Rows:
    slots: IntArray
    times: IntArray
    values: FloatArray
    identities: Identities

    def add_to(self, histories: Histories) -> None:
        histories.add(
            self.slots, self.times, self.values, self.identities.ids, self.identities.checks
        )

    def select(self, rows: npt.NDArray[np.intp]) -> _Rows:
        return _Rows(
            self.slots[rows], self.times[rows], self.values[rows], self.identities.select(rows)
        )


def _plan(schema: Schema, key: str, stream: str) -> _Plan:
    windows = tuple(w for w in schema.features.of_key(key) if w.stream == stream)
    return _Plan(windows, schema.horizon_ms(key, stream))


def _matrix(columns: Sequence[FloatArray], n: int) -> FloatArray:
    return np.stack(columns, axis=1) if columns else np.empty((n, 0))


def _relearn(histories: Histories, row: _Rows) -> bool:
    """Take in one label of an id already known; returns whether it was a mere repeat."""
    found = histories.find(row.slots, row.identities.ids, np.array([-_FOREVER]))
    if found[0] >= 0:
        if histories.check_at(found)[0] == row.identities.checks[0]:
            return True
        histories.remove(int(row.slots[0]), int(found[0]))
    row.add_to(histories)
    return False
