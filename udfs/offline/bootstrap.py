"""Keyed state made from a history, as the job would have left it had it read all of it.

The job's own ``KeyedStage`` and ``BucketStates`` write it, an entity after the other, into a
dictionary in place of Flink's map state; each event counts as if it had arrived at its own time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from udfs.batches.events import FloatArray, IntArray
from udfs.definition.schema import Schema
from udfs.features.coverage import Coverage
from udfs.features.fingerprint import fingerprint
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage
from udfs.features.states import BucketStates

Rows = npt.NDArray[np.intp]
BucketsOf = Callable[[str, list[str]], IntArray]
"""Gives, of a stage, the label of the bucket of each entity."""

CHUNK_EVENTS = 50_000
_CACHED_ENTRIES = 4 * CHUNK_EVENTS


@dataclass(frozen=True, slots=True)
class Coded:
    """A column of entities.

    Attributes:
        codes: Of each row, a place in ``names``; int64 (n,).
        names: The different entities.
    """

    codes: IntArray
    names: list[str]

    def of(self, rows: Rows) -> list[str]:
        """The entities of some rows."""
        return [self.names[code] for code in self.codes[rows].tolist()]


@dataclass(frozen=True, slots=True)
class PastEvents:
    """Accepted events.

    Attributes:
        times: Epoch ms, int64 (n,).
        entities: By stage.
        values: The stages' series by name, float64 (n,) each.
        identities: What the first stage compares.
    """

    times: IntArray
    entities: dict[str, Coded]
    values: dict[str, FloatArray]
    identities: Identities


@dataclass(frozen=True, slots=True)
class PastLabels:
    """Labels in their order of arrival.

    Attributes:
        entities: Their keys.
        times: The labelled events' times, int64 (n,).
        values: float64 (n,).
        identities: Hashes of id and value.
    """

    entities: Coded
    times: IntArray
    values: FloatArray
    identities: Identities


@dataclass(frozen=True, slots=True)
class Block:
    """Entries of the map state of a stage's bucket; no two blocks share one.

    Attributes:
        stage: The stage's name.
        bucket: The bucket's label.
        entries: Strings to bytes.
        events: How many events of the history are in it.
    """

    stage: str
    bucket: int
    entries: dict[str, bytes]
    events: int


@dataclass(slots=True)
class Made:
    """What became of the events, once all blocks are taken.

    Attributes:
        events: How many are in the histories, or were and have expired.
        repeats: How many had an id seen before.
    """

    events: int = 0
    repeats: int = 0


class _MapState:
    """A bucket's map state as far as ``BucketStates`` and ``Coverage`` use it."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        return self.entries.get(name)

    def is_empty(self) -> bool:
        return not self.entries

    def put(self, name: str, value: bytes) -> None:
        self.entries[name] = value

    def put_all(self, entries: dict[str, bytes]) -> None:
        self.entries |= entries

    def remove(self, name: str) -> None:
        self.entries.pop(name, None)

    def items(self) -> Iterable[tuple[str, bytes]]:
        return [*self.entries.items()]

    def take(self) -> dict[str, bytes]:
        """The histories so far, which are complete; they are not kept here."""
        done = {name: value for name, value in self.entries.items() if name[0] in "elf"}
        for name in done:
            del self.entries[name]
        return done


@dataclass(slots=True)
class Bootstrap:
    """Makes the state of all stages.

    Attributes:
        schema: The job's schema.
        buckets: Their labels.
        bucket_of: Where an entity's history lies.
        events: The history.
        labels: Its labels; none if no feature reads them.
        made: Filled while the blocks are taken.
    """

    schema: Schema
    buckets: tuple[int, ...]
    bucket_of: BucketsOf
    events: PastEvents
    labels: PastLabels | None
    made: Made = field(default_factory=Made)

    def blocks(self) -> Iterator[Block]:
        """The state, stage by stage and bucket by bucket."""
        kept = np.ones(len(self.events.times), np.bool_)
        for name in self.schema.stages:
            stage, coded = KeyedStage(self.schema, name), self.events.entities[name]
            rows = np.flatnonzero(kept)
            rows = rows[np.lexsort((self.events.times[rows], coded.codes[rows]))]
            entity_buckets = self.bucket_of(name, coded.names)
            for bucket in self.buckets:
                own = rows[entity_buckets[coded.codes[rows]] == bucket]
                yield from self._bucket(stage, bucket, own, kept)
        self.made.events = int(np.count_nonzero(kept))
        self.made.repeats = len(kept) - self.made.events

    def _bucket(
        self, stage: KeyedStage, bucket: int, rows: Rows, kept: npt.NDArray[np.bool_]
    ) -> Iterator[Block]:
        state = _MapState()
        states = BucketStates(stage, state, _CACHED_ENTRIES, journal_events=0)
        states.of(bucket)
        for chunk in _by_entities(self.events.entities[stage.name].codes, rows):
            self._observe(stage, states, bucket, chunk, kept)
            yield Block(stage.name, bucket, state.take(), len(chunk))
        self._learn(stage, states, bucket)
        if stage.dedupes:
            self._begin(state, bucket)
        yield Block(stage.name, bucket, state.entries, 0)

    def _observe(
        self,
        stage: KeyedStage,
        states: BucketStates,
        bucket: int,
        rows: Rows,
        kept: npt.NDArray[np.bool_],
    ) -> None:
        entities = self.events.entities[stage.name].of(rows)
        identities = self.events.identities.select(rows)
        observed = stage.observe(
            states.of(bucket),
            entities,
            self.events.times[rows],
            {s.name: self.events.values[s.name][rows] for s in stage.series},
            identities if stage.dedupes else Identities.none(len(rows)),
        )
        kept[rows] = False
        kept[rows[observed.kept]] = True
        states.add(bucket, [entities[n] for n in observed.kept.tolist()], observed.entries)

    def _learn(self, stage: KeyedStage, states: BucketStates, bucket: int) -> None:
        labels = self.labels
        if labels is None or not stage.reads_labels:
            return
        oldest_ms = self._newest_ms - self.schema.horizon_ms(stage.name, "labels")
        buckets = self.bucket_of(stage.name, labels.entities.names)
        own = (buckets[labels.entities.codes] == bucket) & (labels.times > oldest_ms)
        rows = np.flatnonzero(own)
        if len(rows):
            entities = labels.entities.of(rows)
            state, identities = states.of(bucket), labels.identities.select(rows)
            stage.learn(state, entities, labels.times[rows], labels.values[rows], identities)
            states.write_labels(bucket, entities)

    def _begin(self, state: _MapState, bucket: int) -> None:
        known = fingerprint(self.schema, len(self.buckets))
        since_ms = int(self.events.times.min())
        Coverage(self.schema, known, state).begin(bucket, since_ms, self._newest_ms)

    @property
    def _newest_ms(self) -> int:
        return int(self.events.times.max())


def _by_entities(codes: IntArray, rows: Rows) -> Iterator[Rows]:
    """Cut rows, which are in the order of their entities, where an entity ends."""
    if not len(rows):
        return
    ends = np.flatnonzero(np.diff(codes[rows])) + 1
    wanted = np.arange(CHUNK_EVENTS, len(rows), CHUNK_EVENTS)
    at = np.minimum(np.searchsorted(ends, wanted), len(ends))
    cuts = np.unique(np.concatenate([[0], np.append(ends, len(rows))[at], [len(rows)]]))
    for start, end in pairwise(cuts.tolist()):
        yield rows[start:end]
