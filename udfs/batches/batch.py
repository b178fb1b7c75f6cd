"""What travels between the operators: a micro-batch of events with their features so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from udfs.batches.events import Events, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """``n`` events on their way to a score.

    Attributes:
        keys: The record key of each event: what every output is keyed by.
        ids: The events' ids.
        raw: The records' bytes.
        positions: Partition, offset, Kafka time in ms; int64 (n, 3).
        times: Event times in epoch ms; int64 (n,).
        entities: The entities of later stages by the stage's name, the keys of look-ups by the
            field's; None where the event has none to look up.
        values: The series that later stages keep, and the fields that formulas read, by name.
        features: The features so far, float64 (n, columns); NaN is missing.
        order: Place in each stage's order of arrival, int64 (n, stages so far).
        late: Which events came too late for exact features, bool (n,).
        dead_letters: Key and JSON text of records refused on the way.
        duplicates: Key and JSON text of records dropped as duplicates.
        silences: Key and JSON text of alerts that no event made: keys gone silent.
        lookup_fallbacks: Names in JSON, commas between, of the look-ups that gave an event no
            answer; empty before they are asked.
        warming: By feature, int64 (n,): since when its history is kept, epoch ms, or 0 where it is
            complete; features that are complete for all events are absent.
    """

    keys: list[str]
    ids: list[str]
    raw: list[bytes]
    positions: IntArray
    times: IntArray
    entities: dict[str, list[str]]
    values: dict[str, FloatArray]
    features: FloatArray
    order: IntArray
    late: npt.NDArray[np.bool_]
    dead_letters: list[tuple[str, bytes]] = field(default_factory=list)
    duplicates: list[tuple[str, bytes]] = field(default_factory=list)
    silences: list[tuple[str, bytes]] = field(default_factory=list)
    lookup_fallbacks: list[str] = field(default_factory=list)
    warming: dict[str, IntArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_empty(self) -> bool:
        """Whether it carries nothing at all, not even a refused record."""
        return not (self.ids or self.dead_letters or self.duplicates or self.silences)

    @classmethod
    def empty(cls, entities: Sequence[str], values: Sequence[str]) -> FeatureBatch:
        """A batch without events, to carry refused records."""
        return cls(
            keys=[],
            ids=[],
            raw=[],
            positions=np.empty((0, 3), np.int64),
            times=np.empty(0, np.int64),
            entities={k: [] for k in entities},
            values={k: np.empty(0) for k in values},
            features=np.empty((0, 0)),
            order=np.empty((0, 0), np.int64),
            late=np.zeros(0, np.bool_),
        )

    def select(self, rows: Sequence[int] | npt.NDArray[np.intp]) -> FeatureBatch:
        """These rows alone, without the refused records."""
        at = np.asarray(rows, dtype=np.intp)
        rows = at.tolist()
        return FeatureBatch(
            keys=[self.keys[i] for i in rows],
            ids=[self.ids[i] for i in rows],
            raw=[self.raw[i] for i in rows],
            positions=self.positions[at],
            times=self.times[at],
            entities={k: [v[i] for i in rows] for k, v in self.entities.items()},
            values={k: v[at] for k, v in self.values.items()},
            features=self.features[at],
            order=self.order[at],
            late=self.late[at],
            lookup_fallbacks=[self.lookup_fallbacks[i] for i in rows if self.lookup_fallbacks],
            warming={k: v[at] for k, v in self.warming.items()},
        )

    def with_stage(
        self, features: FloatArray, late: npt.NDArray[np.bool_], first: int
    ) -> FeatureBatch:
        """The same events with a stage's features and its order of arrival appended."""
        n = len(self)
        place = np.arange(first, first + n, dtype=np.int64).reshape(n, 1)
        return replace(
            self,
            features=np.concatenate([self.features, features], axis=1),
            order=np.concatenate([self.order, place], axis=1),
            late=self.late | late,
        )

    def split(self, groups: Sequence[int]) -> dict[int, FeatureBatch]:
        """Cut by a group per row; the refused records stay with the first part.

        Rows keep their order. A batch without rows goes to group -1.
        """
        rows: dict[int, list[int]] = {}
        for index, group in enumerate(groups):
            rows.setdefault(group, []).append(index)
        if len(rows) <= 1:
            return {next(iter(rows), -1): self}
        parts = {group: self.select(indices) for group, indices in rows.items()}
        first = next(iter(parts))
        parts[first] = self.with_records(parts[first])
        return parts

    @classmethod
    def merged(cls, batches: Sequence[FeatureBatch]) -> FeatureBatch:
        """All rows of batches that have been through the same stages, in their order."""
        if len(batches) == 1:
            return batches[0]
        first = batches[0]
        return cls(
            keys=[key for batch in batches for key in batch.keys],
            ids=[event_id for batch in batches for event_id in batch.ids],
            raw=[raw for batch in batches for raw in batch.raw],
            positions=np.concatenate([batch.positions for batch in batches]),
            times=np.concatenate([batch.times for batch in batches]),
            entities={k: [v for b in batches for v in b.entities[k]] for k in first.entities},
            values={k: np.concatenate([b.values[k] for b in batches]) for k in first.values},
            features=np.concatenate([batch.features for batch in batches]),
            order=np.concatenate([batch.order for batch in batches]),
            late=np.concatenate([batch.late for batch in batches]),
            dead_letters=[record for batch in batches for record in batch.dead_letters],
            duplicates=[record for batch in batches for record in batch.duplicates],
            silences=[record for batch in batches for record in batch.silences],
            warming=_merged_warming(batches),
        )

    def chunks(self, rows: int) -> list[FeatureBatch]:
        """Cut into parts of at most ``rows`` events; one Predict call each."""
        if len(self) <= rows:
            return [self]
        starts = range(0, len(self), rows)
        parts = [self.select(range(s, min(s + rows, len(self)))) for s in starts]
        parts[0] = self.with_records(parts[0])
        return parts

    def with_records(self, part: FeatureBatch) -> FeatureBatch:
        """A part, with the records that belong to no event."""
        return replace(
            part,
            dead_letters=self.dead_letters,
            duplicates=self.duplicates,
            silences=self.silences,
        )


@dataclass(frozen=True, slots=True)
class ClosedWindows:
    """What a roll-up makes of a micro-batch of readings.

    Attributes:
        events: The windows that have closed, or none.
        dead_letters: Key and JSON text of readings refused.
        duplicates: Key and JSON text of readings dropped as duplicates.
        silences: Key and JSON text of keys gone silent.
    """

    events: Events | None
    dead_letters: list[tuple[str, bytes]] = field(default_factory=list)
    duplicates: list[tuple[str, bytes]] = field(default_factory=list)
    silences: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it carries nothing at all."""
        return not (self.events or self.dead_letters or self.duplicates or self.silences)


def _merged_warming(batches: Sequence[FeatureBatch]) -> dict[str, IntArray]:
    names = dict.fromkeys(name for batch in batches for name in batch.warming)
    return {
        name: np.concatenate(
            [batch.warming.get(name, np.zeros(len(batch), np.int64)) for batch in batches]
        )
        for name in names
    }


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """Late labels of one bucket, as columns of equal length.

    Attributes:
        entities: The keys' values.
        ids: The labelled events' ids.
        times: The labelled events' own times, epoch ms, int64 (n,).
        values: The labels, float64 (n,).
    """

    entities: list[str]
    ids: list[str]
    times: IntArray
    values: FloatArray

    def select(self, rows: Sequence[int]) -> LabelBatch:
        """These rows alone."""
        at = np.asarray(rows, dtype=np.intp)
        return LabelBatch(
            [self.entities[i] for i in rows],
            [self.ids[i] for i in rows],
            self.times[at],
            self.values[at],
        )
