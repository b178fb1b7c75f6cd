"""The first keyed stage: events are read, checked and believed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pyflink.datastream import KeyedProcessFunction, RuntimeContext

from udfs.batches.batch import ClosedWindows, FeatureBatch
from udfs.batches.events import Decoder, Events, Reject, split_batch
from udfs.batches.privacy import Privacy
from udfs.batches.records import dead_letter, duplicate
from udfs.batches.routing import conflict, stray
from udfs.enrichment.table_readers import OpenTables, Tables
from udfs.features.coverage import Coverage
from udfs.features.expressions import evaluate
from udfs.features.fingerprint import fingerprint
from udfs.features.identities import Identities
from udfs.features.series import kinds_of
from udfs.features.stage_inputs import StageInputs
from udfs.overload.pacing import limit_of
from udfs.stages.base import KeyedOperator

NO_TABLES = Tables()


class FirstStage(KeyedOperator):
    """Checks raw records, joins tables, drops duplicates, computes the record key's features.

    Input: records as the JVM's micro-batch joins them (see ``split_batch``), or ``ClosedWindows``
    of a roll-up; keyed by bucket.
    Output: ``Row(next bucket, FeatureBatch)``, or the records of ``Output.rows`` if it scores.

    Args:
        stage: See the base class.
        tables: The reference tables; no event is read before they are loaded.
        begins_ms: See ``Coverage``.
        carried: String fields that a batch keeps to its end, beside those that stages need.
        rate: Records per second that are taken at most; none takes what comes.
    """

    def __init__(
        self,
        *stage: Any,
        tables: Tables = NO_TABLES,
        carried: tuple[str, ...] = (),
        begins_ms: int | None = None,
        rate: float | None = None,
        **named: Any,
    ) -> None:
        super().__init__(*stage, **named)
        self._rate = rate
        self._carried = carried
        self._begins_ms = begins_ms
        self._declared_tables = tables
        self._tables: OpenTables | None = None

    def open(self, runtime_context: RuntimeContext) -> None:
        """See the base class. Blocks until the reference tables are loaded."""
        super().open(runtime_context)
        self._tables = self._declared_tables.open()
        self._decoder = Decoder.for_events(self._schema.event, self._schema.key_fields)
        split_batch("")
        metrics = runtime_context.get_metrics_group()
        self._events_counter = metrics.counter("events")
        self._duplicates_counter = metrics.counter("duplicates")
        self._dead_letters_counter = metrics.counter("dead_letters")
        self._table_records_counter = metrics.counter("table_records")
        self._table_rejects_counter = metrics.counter("table_rejects")
        self._privacy = Privacy.of_events(self._schema)
        known = fingerprint(self._schema, len(self._routing.labels))
        self._coverage = Coverage(self._schema, known, self._state, self._begins_ms)
        self._inputs = StageInputs(self._schema)
        self._kinds = kinds_of(self._schema.known)
        looked_up = (lookup.key for lookup in self._schema.lookups)
        self._kept = tuple(dict.fromkeys([*looked_up, *self._carried]))
        self._limit = limit_of(self._rate)

    def close(self) -> None:
        """See the base class."""
        try:
            super().close()
        finally:
            if self._tables is not None:
                self._tables.close()

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        """One micro-batch of raw records, or of windows."""
        bucket = ctx.get_current_key()
        if isinstance(value, ClosedWindows):
            yield from self._pass_on(bucket, self._of_windows(bucket, value), ctx)
            return
        raw, positions = split_batch(value)
        if self._limit is not None:
            self._limit.wait(len(raw))
        if (valve := self._valve_before("features")) is not None:
            raw, positions, gone = valve.of_records(raw, positions, self._queue(bucket))
            yield from gone
        decoded = self._decoder.decode(raw, positions)
        batch = self._of_events(bucket, decoded.merged(), decoded.rejects)
        yield from self._pass_on(bucket, batch, ctx)

    def _of_windows(self, bucket: int, windows: ClosedWindows) -> FeatureBatch:
        """Windows, with the records that the roll-up has refused and counted."""
        batch = self._of_events(bucket, windows.events, [])
        batch.dead_letters.extend(windows.dead_letters)
        batch.duplicates.extend(windows.duplicates)
        batch.silences.extend(windows.silences)
        return batch

    def _of_events(self, bucket: int, events: Events | None, rejects: list[Reject]) -> FeatureBatch:
        if events is None:
            return self._refused(rejects)
        assert self._tables is not None
        batch, strays = self._of_bucket(bucket, self._batch(self._tables.join(events)))
        return self._observe(bucket, batch, rejects + strays)

    def _of_bucket(self, bucket: int, batch: FeatureBatch) -> tuple[FeatureBatch, list[Reject]]:
        """Refuse records whose Kafka key led them to another bucket than their key field."""
        strays = self._routing.strays(bucket, batch.keys)
        if not strays.any():
            return batch, []
        rejects = [stray(batch, row, self._key) for row in np.flatnonzero(strays).tolist()]
        return batch.select(np.flatnonzero(~strays)), rejects

    def _observe(self, bucket: int, batch: FeatureBatch, rejects: list[Reject]) -> FeatureBatch:
        # Before the histories are read: it refuses those of other settings.
        if warming := self._coverage.warming(bucket, batch.times):
            batch = replace(batch, warming=warming)
        observed = self._stage.observe(
            self._states.of(bucket),
            batch.keys,
            batch.times,
            batch.values,
            Identities.of_events(batch.ids, batch.raw),
        )
        kept = batch if len(observed.kept) == len(batch) else batch.select(observed.kept)
        first = self._states.add(bucket, kept.keys, observed.entries)
        kept = kept.with_stage(observed.features, observed.late, first)
        rejects = rejects + [conflict(batch, row) for row in observed.conflicts]
        kept.dead_letters.extend(self._dead_letters(rejects))
        kept.duplicates.extend(
            (key, duplicate(self._topic, event_id, batch.positions[i].tolist()))
            for i, key, event_id in self._shown(batch, observed.duplicates)
        )
        self._count(len(kept), len(observed.duplicates), len(rejects))
        return kept

    def _shown(self, batch: FeatureBatch, rows: Sequence[int]) -> Iterator[tuple[int, str, str]]:
        """Rows with their key and id, as outputs show them."""
        keys, ids = [batch.keys[i] for i in rows], [batch.ids[i] for i in rows]
        if self._privacy is not None:
            keys, ids = self._privacy.keys(keys), self._privacy.ids(ids)
        return zip(rows, keys, ids, strict=True)

    def _batch(self, events: Events) -> FeatureBatch:
        return FeatureBatch(
            keys=events.texts[self._schema.key],
            ids=events.texts[self._schema.event.id],
            raw=events.raw,
            positions=events.positions,
            times=events.times,
            entities={key: events.texts[key] for key in self._kept} | self._inputs.entities(events),
            values=self._inputs.values(events),
            features=evaluate(self._schema.features.expressions, events, self._kinds),
            order=np.empty((len(events), 0), dtype=np.int64),
            late=np.zeros(len(events), np.bool_),
        )

    def _refused(self, rejects: list[Reject]) -> FeatureBatch:
        self._count(0, 0, len(rejects))
        entities = (*self._kept, *self._inputs.stages)
        empty = FeatureBatch.empty(entities, self._inputs.names)
        empty.dead_letters.extend(self._dead_letters(rejects))
        return empty

    def _dead_letters(self, rejects: list[Reject]) -> list[tuple[str, bytes]]:
        return [
            (f"{r.partition}-{r.offset}", dead_letter(self._topic, r, self._privacy))
            for r in rejects
        ]

    def _count(self, events: int, duplicates: int, dead_letters: int) -> None:
        self._events_counter.inc(events)
        self._duplicates_counter.inc(duplicates)
        self._dead_letters_counter.inc(dead_letters)
        assert self._tables is not None
        read = self._tables.take_counts()
        self._table_records_counter.inc(read.records)
        self._table_rejects_counter.inc(read.refused)
