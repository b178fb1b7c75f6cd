"""The features of one key: what a keyed stage does to a batch, without any engine.

The Flink operator and the training both call ``KeyedStage.observe``; they differ only in where an
unknown entity's history is read from (Flink's map state, or nowhere). That is why a training
feature and a live feature cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from udfs import kernels
from udfs.events import FloatArray, IntArray
from udfs.spec import Schema
from udfs.windows import Entries, Histories, WindowPlan, as_matrix


@dataclass(frozen=True, slots=True)
class Identities:
    """What names an entry: a hash of its id, and one of its content.

    Attributes:
        ids: xxh3 of the id's UTF-8, int64 (n,).
        checks: xxh3 of the record (events) or the bits of the value (labels), int64 (n,).
    """

    ids: IntArray
    checks: IntArray

    @classmethod
    def of_events(cls, ids: Sequence[str], raw: Sequence[bytes]) -> Identities:
        """The identities of events: two records of one id and other bytes differ in the check."""
        return cls(_hash(map(str.encode, ids), len(ids)), _hash(raw, len(raw)))

    @classmethod
    def of_labels(cls, ids: Sequence[str], values: FloatArray) -> Identities:
        """The identities of labels: a corrected label differs in the check."""
        return cls(_hash(map(str.encode, ids), len(ids)), values.astype(np.float64).view(np.int64))

    @classmethod
    def none(cls, n: int) -> Identities:
        """For stages that need none."""
        zeros = np.zeros(n, np.int64)
        return cls(zeros, zeros)


def _hash(texts: Iterable[bytes], n: int) -> IntArray:
    return np.fromiter(map(xxh3_64_intdigest, texts), np.uint64, n).view(np.int64)


@dataclass(frozen=True, slots=True)
class Observed:
    """What a stage made of a batch.

    Attributes:
        features: float64 (kept rows, columns of the stage).
        kept: Indices of the rows that are not duplicates, in order.
        duplicates: Indices of the rows whose id and content were seen before.
        conflicts: Indices of the rows whose id was seen with another content.
        entries: What was added to the histories, an entry per kept row.
    """

    features: FloatArray
    kept: npt.NDArray[np.intp]
    duplicates: list[int]
    conflicts: list[int]
    entries: Entries


@dataclass(frozen=True, slots=True)
class StageState:
    """The histories of one bucket of a stage."""

    events: Histories
    labels: Histories


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
        self._dedupe_within_ms = schema.event.dedupe_within if self.dedupes else 0
        self._events = _plan(schema, key, "events")
        self._labels = _plan(schema, key, "labels")
        measured = self._events.columns + self._labels.columns
        self._order = np.array([measured.index(c) for c in self.columns], np.intp)

    @property
    def reads_labels(self) -> bool:
        """Whether late labels enter this stage."""
        return bool(self._labels.columns)

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

    def warm_up(self) -> None:
        """Compile the loops, or load them from Numba's cache: the first call takes seconds."""
        zero, one = np.zeros(1, np.int64), np.ones(1)
        state, nobody = self.new_state(), [""]
        self.observe(state, nobody, zero, {v: one for v in self.event_values}, Identities.none(1))
        self.learn(state, nobody, zero, one, Identities.none(1))

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
        entries = Entries(
            state.events.slots(entities),
            times,
            as_matrix([values[v] for v in self._events.values], len(times)),
            identities.ids,
            identities.checks,
        )
        features, verdicts = state.events.observe(entries, self._events, self._dedupe_within_ms)
        kept = np.flatnonzero(verdicts == kernels.NEW)
        if len(kept) < len(times):
            features, times, entries = features[kept], times[kept], entries.select(kept)
            entities = [entities[i] for i in kept.tolist()]
        if self.reads_labels:
            slots = state.labels.slots(entities)
            measured = state.labels.measure(slots, times, self._labels)
            features = np.concatenate([features, measured], axis=1)[:, self._order]
        return Observed(
            features,
            kept,
            np.flatnonzero(verdicts == kernels.DUPLICATE).tolist(),
            np.flatnonzero(verdicts == kernels.CONFLICT).tolist(),
            entries,
        )

    def add_again(self, state: StageState, entries: Entries) -> None:
        """Add events that ``observe`` kept once, in the same order: the histories become the same.

        Args:
            state: The bucket's histories.
            entries: As ``observe`` gave them.
        """
        state.events.observe(entries, self._events)

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
        entries = Entries(
            state.labels.slots(entities),
            times,
            np.repeat(values[:, None], state.labels.values, axis=1),
            identities.ids,
            identities.checks,
        )
        verdicts = state.labels.learn(entries)
        return int(np.count_nonzero(verdicts == kernels.DUPLICATE))


def _plan(schema: Schema, key: str, stream: str) -> WindowPlan:
    windows = tuple(w for w in schema.features.of_key(key) if w.stream == stream)
    return WindowPlan(windows, schema.horizon_ms(key, stream))
