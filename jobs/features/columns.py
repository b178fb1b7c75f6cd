"""The records of a job's topics as columns.

A million events are arrays here: a dictionary each would take ten times the memory. A text that is
asked for seldom lies in one block of bytes, an entity is a number that a list of names explains.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from udfs.batches.events import FloatArray, IntArray
from udfs.features.identities import Identities

PREDICTED_EVENT, PREDICTED_INGEST, PREDICTED_SCORED = range(3)
"""Columns of ``Predictions.times``."""


class Texts:
    """Many texts in one block of bytes."""

    def __init__(self) -> None:
        self._block, self._ends = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        return self._block[self._ends[number] : self._ends[number + 1]].decode()

    def extend(self, texts: Iterable[str]) -> None:
        """Append texts."""
        for text in texts:
            self._block += text.encode()
            self._ends.append(len(self._block))

    def find(self, text: str) -> list[int]:
        """The numbers of those that are this text."""
        encoded, ends = text.encode(), np.frombuffer(self._ends, np.int64)
        lengths = np.diff(ends)
        rows = np.flatnonzero(lengths == len(encoded)).tolist()
        return [row for row in rows if self._block[ends[row] : ends[row + 1]] == encoded]


class Entities:
    """The entities of many events: a name each, kept once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._codes = array("i")

    def extend(self, entities: Iterable[str]) -> None:
        """Append the entity of further events."""
        for entity in entities:
            number = self._numbers.setdefault(entity, len(self.names))
            if number == len(self.names):
                self.names.append(entity)
            self._codes.append(number)

    @property
    def codes(self) -> npt.NDArray[np.int32]:
        """The number of each event's entity, int32 (n,)."""
        return np.frombuffer(self._codes, np.int32)

    def code(self, entity: str) -> int:
        """The number of an entity; -1 if no event has it."""
        return self._numbers.get(entity, -1)

    def of(self, rows: npt.NDArray[np.intp]) -> list[str]:
        """The names of some events' entities."""
        return [self.names[code] for code in self.codes[rows].tolist()]


class Growing:
    """Arrays that grow chunk by chunk."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[npt.NDArray[Any]]] = {}

    def add(self, **chunk: npt.NDArray[Any]) -> None:
        """Append to columns by name; a chunk's first length is its number of rows."""
        for name, part in chunk.items():
            self._chunks.setdefault(name, []).append(part)

    def take(self, name: str, empty: npt.NDArray[Any]) -> Any:
        """A whole column; its parts are freed."""
        return np.concatenate([empty, *self._chunks.pop(name, [])])


@dataclass(frozen=True, slots=True)
class Range:
    """What a partition holds: offsets ``first`` to ``end - 1``."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class EventColumns:
    """The accepted records of the events topic.

    Attributes:
        positions: Partition, offset, Kafka time in ms; int64 (n, 3).
        times: Event times, epoch ms, int64 (n,).
        ids: The events' ids.
        entities: By stage.
        values: The series and fields that stages and formulas read, by name; float64 (n,) each.
        expressions: float64 (n, columns of the expressions).
        identities: What the first stage compares.
        refused: Partition, offset and number of the code in ``codes`` of refused records, (m, 3).
        codes: Error codes.
        ranges: By partition.
    """

    positions: IntArray
    times: IntArray
    ids: Texts
    entities: dict[str, Entities]
    values: dict[str, FloatArray]
    expressions: FloatArray
    identities: Identities
    refused: IntArray
    codes: list[str]
    ranges: dict[int, Range]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """The accepted records of the labels topic, by Kafka time.

    Attributes:
        positions: Partition, offset, Kafka time in ms; int64 (n, 3).
        times: The labelled events' times, int64 (n,).
        values: The labels, float64 (n,).
        ids: The labelled events' ids.
        entities: The labels' keys.
        identities: Hashes of id and value.
        ranges: By partition.
    """

    positions: IntArray
    times: IntArray
    values: FloatArray
    ids: Texts
    entities: Entities
    identities: Identities
    ranges: dict[int, Range]


@dataclass(frozen=True, slots=True)
class Predictions:
    """The last prediction of each event.

    Attributes:
        places: Partition and offset of the event, int64 (n, 2), in that order.
        features: float64 (n, columns of the schema); NaN is missing.
        order: Place in each stage's order of arrival, int64 (n, stages); -1 where not recorded.
        times: Event time, Kafka time and time of the score, epoch ms; int64 (n, 3).
        versions: Of the model; 0 for none; int64 (n,).
        late: Which say so.
        foreign: Which have other features or stages than the settings.
        keys: Of the first stage.
        extra: Names of features that the settings do not have.
        absent: Names of features that some prediction lacks.
        records: How many were read, repeats included.
        elsewhere: How many are of another events topic.
    """

    places: IntArray
    features: FloatArray
    order: IntArray
    times: IntArray
    versions: IntArray
    late: npt.NDArray[np.bool_]
    foreign: npt.NDArray[np.bool_]
    keys: list[str]
    extra: list[str]
    absent: list[str]
    records: int
    elsewhere: int

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True, slots=True)
class ShedColumns:
    """Events without a prediction that the features know of: those shed before scoring.

    Attributes:
        places: Partition and offset, int64 (n, 2), in that order.
        order: Place in each stage's order of arrival, int64 (n, stages); -1 where not recorded.
    """

    places: IntArray
    order: IntArray


@dataclass(frozen=True, slots=True)
class Source:
    """All that was read.

    Attributes:
        events: The events.
        labels: The labels; none if no feature reads them.
        predictions: The predictions.
        shed: What was shed before scoring and has no prediction; none if the job sheds no such.
    """

    events: EventColumns
    labels: LabelColumns | None
    predictions: Predictions
    shed: ShedColumns | None = None
