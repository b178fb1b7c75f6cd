"""The keyed stages after the first: events of another key, and late labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyflink.datastream import KeyedProcessFunction, RuntimeContext

from udfs.batches.batch import FeatureBatch, LabelBatch
from udfs.features.identities import Identities
from udfs.stages.base import KeyedOperator


class NextStage(KeyedOperator):
    """Adds the features of a further key; late labels enter here too.

    Input: ``FeatureBatch`` or ``LabelBatch``, keyed by bucket. Output as ``FirstStage``.
    """

    def open(self, runtime_context: RuntimeContext) -> None:
        """See the base class."""
        super().open(runtime_context)
        metrics = runtime_context.get_metrics_group()
        self._labels_counter = metrics.counter("labels")
        self._repeats_counter = metrics.counter("label_repeats")

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        """One micro-batch of events, or of labels."""
        bucket = ctx.get_current_key()
        if isinstance(value, LabelBatch):
            self._learn(bucket, value)
            return
        batch = self._observe(bucket, value) if len(value) else value
        yield from self._pass_on(bucket, batch, ctx)

    def _observe(self, bucket: int, batch: FeatureBatch) -> FeatureBatch:
        entities = batch.entities[self._key]
        observed = self._stage.observe(
            self._states.of(bucket),
            entities,
            batch.times,
            batch.values,
            Identities.none(len(batch)),
        )
        first = self._states.add(bucket, entities, observed.entries)
        return batch.with_stage(observed.features, observed.late, first)

    def _learn(self, bucket: int, labels: LabelBatch) -> None:
        repeats = self._stage.learn(
            self._states.of(bucket),
            labels.entities,
            labels.times,
            labels.values,
            Identities.of_labels(labels.ids, labels.values),
        )
        self._labels_counter.inc(len(labels.ids))
        self._repeats_counter.inc(repeats)
        self._states.write_labels(bucket, labels.entities)
