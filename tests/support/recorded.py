"""A job's topics without a broker: its classes over arrays, in micro-batches, with buckets.

What the operators do to a batch, in the same order, but for Flink around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import orjson

from jobs.features.columns import Range
from jobs.settings import Settings
from udfs.batches.batch import FeatureBatch
from udfs.batches.events import Decoder, Events, IntArray
from udfs.batches.records import RecordWriter, Verdict
from udfs.features.expressions import evaluate
from udfs.features.formula_columns import FormulaColumns
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage
from udfs.features.series import kinds_of
from udfs.features.stage_inputs import StageInputs


class Message(NamedTuple):
    """As much of confluent_kafka's message as is used; the methods are its."""

    raw: bytes
    place: tuple[int, int]
    time_ms: int = 0

    def value(self) -> bytes:
        return self.raw

    def partition(self) -> int:
        return self.place[0]

    def offset(self) -> int:
        return self.place[1]

    def timestamp(self) -> tuple[int, int]:
        return 1, self.time_ms


@dataclass
class Topics:
    """Records by topic; a ``Reader``."""

    records: dict[str, list[Message]] = field(default_factory=dict)
    first: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def ranges(self) -> dict[str, dict[int, Range]]:
        return {t: self._ranges(t, messages) for t, messages in self.records.items()}

    def _ranges(self, topic: str, messages: Sequence[Message]) -> dict[int, Range]:
        ends: dict[int, int] = {}
        for message in messages:
            ends[message.partition()] = message.offset() + 1
        return {p: Range(self.first.get((topic, p), 0), end) for p, end in ends.items()}

    def append(self, topic: str, partition: int, raw: bytes, time_ms: int = 0) -> Message:
        """Write a record."""
        messages = self.records.setdefault(topic, [])
        offset = sum(m.partition() == partition for m in messages)
        messages.append(Message(raw, (partition, offset), time_ms))
        return messages[-1]

    def read(self, topic: str) -> Iterator[list[Message]]:
        """In chunks of an odd size."""
        messages = self.records.get(topic, [])
        for start in range(0, len(messages), 97):
            yield messages[start : start + 97]


class ArrayJob:
    """Scores what it is given, in micro-batches.

    Args:
        settings: The job's.
        topics: Where predictions go.
    """

    def __init__(self, settings: Settings, topics: Topics) -> None:
        self.settings, self.topics = settings, topics
        schema = self.schema = settings.schema_
        self._decoder = Decoder.for_events(schema.event, schema.key_fields)
        self._inputs, self._formulas = StageInputs(schema), FormulaColumns(schema)
        self._stages = [KeyedStage(schema, name) for name in schema.stages]
        count = settings.batch.buckets
        self._states = [[stage.new_state() for _ in range(count)] for stage in self._stages]
        self._places: IntArray = np.zeros((len(self._stages), count), np.int64)
        topic = settings.topics.events
        self._writer = RecordWriter(topic, schema.columns, schema.stages, 0.5)

    def take(self, messages: Sequence[Message], scored_ms: int) -> None:
        """A micro-batch of one bucket of the first stage."""
        places = [(*m.place, m.time_ms) for m in messages]
        decoded = self._decoder.decode([m.raw for m in messages], np.array(places, np.int64))
        for events in decoded.parts:
            self.take_events(events, scored_ms)

    def take_events(self, events: Events, scored_ms: int) -> None:
        """Checked events, or windows of a roll-up."""
        batch = self._first(events)
        for number in range(1, len(self._stages)):
            batch = self._next(number, batch)
        features = self._formulas.append(batch.features, batch.values)
        self._write(replace(batch, features=features), scored_ms)

    def learn(self, message: Message) -> None:
        """A label."""
        labels = self.settings.labels
        assert labels is not None
        document = orjson.loads(message.raw)
        entity, value = document[labels.key], np.array([float(document[labels.value])])
        number = self.schema.stages.index(labels.key)
        identities = Identities.of_labels([document[labels.id]], value)
        times = np.array([document[labels.time]], np.int64)
        state = self._states[number][self._bucket(number, entity)]
        self._stages[number].learn(state, [entity], times, value, identities)

    def _bucket(self, number: int, entity: str) -> int:
        from zlib import crc32

        from udfs.batches.buckets import sql_buckets

        count = self.settings.batch.buckets
        if number == 0:
            return int(sql_buckets([entity], count)[0])
        return crc32(entity.encode()) % count

    def _first(self, events: Events) -> FeatureBatch:
        schema = self.schema
        batch = FeatureBatch(
            keys=events.texts[schema.key],
            ids=events.texts[schema.event.id],
            raw=events.raw,
            positions=events.positions,
            times=events.times,
            entities=self._inputs.entities(events),
            values=self._inputs.values(events),
            features=evaluate(schema.features.expressions, events, kinds_of(schema.known)),
            order=np.empty((len(events), 0), np.int64),
            late=np.zeros(len(events), np.bool_),
        )
        identities = Identities.of_events(batch.ids, batch.raw)
        return self._observe(0, batch, batch.keys, identities)

    def _next(self, number: int, batch: FeatureBatch) -> FeatureBatch:
        entities = batch.entities[self._stages[number].name]
        return self._observe(number, batch, entities, Identities.none(len(batch)))

    def _observe(
        self, number: int, batch: FeatureBatch, entities: list[str], identities: Identities
    ) -> FeatureBatch:
        groups = [self._bucket(number, entity) for entity in entities]
        parts = []
        for bucket in sorted(set(groups)):
            rows = [n for n, group in enumerate(groups) if group == bucket]
            part, at = batch.select(rows), np.array(rows, np.intp)
            observed = self._stages[number].observe(
                self._states[number][bucket],
                [entities[n] for n in rows],
                part.times,
                part.values,
                Identities(identities.ids[at], identities.checks[at]),
            )
            kept = part.select(observed.kept)
            first = int(self._places[number, bucket])
            self._places[number, bucket] += len(kept)
            parts.append(kept.with_stage(observed.features, observed.late, first))
        return FeatureBatch.merged(parts)

    def _write(self, batch: FeatureBatch, scored_ms: int) -> None:
        verdict: Any = Verdict(np.full(len(batch), 0.25), "fraud", 1)
        for raw in self._writer.predictions(batch, verdict, scored_ms):
            self.topics.append(self.settings.topics.predictions, 0, raw)
