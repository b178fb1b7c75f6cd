"""Late labels, on their way to the stages that learn them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyflink.common import Row
from pyflink.datastream import FlatMapFunction, RuntimeContext

from udfs.batches.batch import FeatureBatch, LabelBatch
from udfs.batches.events import Decoder, Events, split_batch
from udfs.batches.privacy import Privacy
from udfs.batches.records import dead_letter
from udfs.batches.routing import Routing
from udfs.definition.schema import Schema
from udfs.overload.pacing import limit_of
from udfs.stages.base import Routed


class LabelReader(FlatMapFunction):
    """Checks raw label records and sends each to the bucket of its key.

    Input: ``(bucket, records)``. Output: ``Row(bucket, LabelBatch)``; a refused label leaves as a
    dead letter in a ``FeatureBatch`` without rows.

    Args:
        schema: The job's schema.
        routing: The buckets.
        topic: The labels topic.
        rate: Records per second that are taken at most; none takes what comes.
    """

    def __init__(
        self, schema: Schema, routing: Routing, topic: str, rate: float | None = None
    ) -> None:
        self._rate = rate
        self._schema = schema
        self._routing = routing
        self._topic = topic

    def open(self, runtime_context: RuntimeContext) -> None:
        """Build the decoder."""
        assert self._schema.labels is not None
        self._labels = self._schema.labels
        privacy = Privacy.of_events(self._schema)
        self._privacy = privacy and privacy.of_labels(self._labels, self._schema.event.id)
        self._decoder = Decoder.for_labels(self._labels, self._schema.event)
        self._limit = limit_of(self._rate)
        self._dead_letters_counter = runtime_context.get_metrics_group().counter("dead_letters")

    def flat_map(self, value: Any) -> Iterator[Routed]:
        """One micro-batch of raw labels."""
        raw, positions = split_batch(value[1])
        if self._limit is not None:
            self._limit.wait(len(raw))
        decoded = self._decoder.decode(raw, positions)
        if decoded.rejects:
            self._dead_letters_counter.inc(len(decoded.rejects))
            refused = FeatureBatch.empty((), ())
            refused.dead_letters.extend(
                (f"{r.partition}-{r.offset}", dead_letter(self._topic, r, self._privacy))
                for r in decoded.rejects
            )
            yield Row(self._routing.labels[0], refused)
        for part in decoded.parts:
            yield from self._split(part)

    def _split(self, events: Events) -> Iterator[Routed]:
        labels = LabelBatch(
            entities=events.texts[self._labels.key],
            ids=events.texts[self._labels.id],
            times=events.times,
            values=events.numbers[self._labels.value],
        )
        groups: dict[int, list[int]] = {}
        for index, entity in enumerate(labels.entities):
            groups.setdefault(self._routing.of(entity), []).append(index)
        for group, rows in groups.items():
            yield Row(group, labels.select(rows))
