"""Flink operators that compute features: one Python call per micro-batch.

Every operator here runs in thread mode, keyed by bucket, and keeps its histories in map state:
entity -> packed bytes. Flink checkpoints, restores and rescales that state; the operator holds no
buffer that a checkpoint could miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from pyflink.common import Row, Types
from pyflink.datastream import FlatMapFunction, KeyedProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor

from udfs.batches.batch import ClosedWindows, FeatureBatch, LabelBatch
from udfs.batches.events import Decoder, Events, Reject, split_batch
from udfs.batches.privacy import Privacy
from udfs.batches.records import dead_letter, duplicate
from udfs.batches.routing import Routing, conflict, stray
from udfs.definition.overload import OverloadSpec
from udfs.definition.schema import Schema
from udfs.enrichment.table_readers import OpenTables, Tables
from udfs.features.coverage import Coverage, of_formulas
from udfs.features.expressions import evaluate
from udfs.features.fingerprint import fingerprint
from udfs.features.keyed import FormulaColumns, Identities, KeyedStage, StageInputs
from udfs.features.series import kinds_of
from udfs.features.states import BucketStates
from udfs.overload.pacing import limit_of
from udfs.overload.valve import Teller, Valve
from udfs.runtime import calm_garbage_collector, share_interpreter_fairly
from udfs.scoring.base import Scoring
from udfs.state_ttl import state_ttl

__all__ = ["FirstStage", "LabelReader", "NextStage", "Routing"]

NO_TABLES = Tables()
_BACKSTOP_S = 3_650 * 86_400
"""Flink's own time to live goes by the wall clock, which says nothing of a replay or of a paused
job: ``idle`` removes histories long before. Without one, state of earlier releases is not read."""

_FIRST_TTL_S = 365 * 86_400
"""How long the first events of a key live after the last of them came."""

Routed: TypeAlias = Row
"""Bucket and ``FeatureBatch`` or ``LabelBatch``."""


class _KeyedOperator(KeyedProcessFunction):
    """What both stages share: the stage, its state, and the way to the next one or to a score.

    Args:
        schema: The job's schema.
        key: The stage's key.
        routing: The buckets.
        topic: The events' topic.
        idle_ms: How long an idle key's history is kept, in event time.
        cached_entries: See ``BucketStates``.
        journal_events: See ``BucketStates``.
        scoring: What the last stage does with its batches; none for the others.
        overload: When events are shed; none sheds nothing.
        job: The job's name: the operators of one tell each other of an overload.
    """

    def __init__(
        self,
        schema: Schema,
        key: str,
        routing: Routing,
        topic: str,
        idle_ms: int,
        cached_entries: int,
        journal_events: int,
        scoring: Scoring | None = None,
        overload: OverloadSpec | None = None,
        job: str = "",
    ) -> None:
        self._schema = schema
        self._key = key
        self._routing = routing
        self._topic = topic
        self._idle_ms = idle_ms
        self._cached_entries = cached_entries
        self._journal_events = journal_events
        later = schema.stages[schema.stages.index(key) + 1 :]
        self._next_stage = later[0] if later else None
        assert (scoring is None) == bool(later), "the last stage scores, no other"
        self._scoring = scoring
        self._overload = overload
        self._job = job
        self._valve: Valve | None = None
        self._teller: Teller | None = None

    def open(self, runtime_context: RuntimeContext) -> None:
        """Build the stage and its empty cache; Flink has restored the state by now."""
        self._stage = KeyedStage(self._schema, self._key)
        self._state = runtime_context.get_map_state(histories(self._key))
        self._states = BucketStates(
            self._stage,
            self._state,
            self._cached_entries,
            self._journal_events,
            self._idle_ms,
            runtime_context.get_map_state(first_events(self._key, self._idle_ms))
            if "first" in self._stage.plans
            else None,
        )
        self._stage.warm_up()
        self._formulas = FormulaColumns(self._schema)
        if self._overload is not None:
            self._open_overload(self._overload, runtime_context)
        if self._scoring is not None:
            self._late_counter = runtime_context.get_metrics_group().counter("late")
            self._scoring.open(runtime_context)
        calm_garbage_collector()
        share_interpreter_fairly()

    def _open_overload(self, spec: OverloadSpec, runtime_context: RuntimeContext) -> None:
        scores, is_first = self._scoring is not None, self._key == self._schema.stages[0]
        if is_first if spec.before == "features" else scores:
            self._valve = Valve(spec, self._schema, self._topic, self._job, runtime_context)
        elif scores:
            self._teller = Teller(spec.lag, self._job)

    def close(self) -> None:
        """Close what scores."""
        if self._scoring is not None:
            self._scoring.close()

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Row]:
        """Only what scores sets timers."""
        assert self._scoring is not None
        return self._scoring.on_timer(ctx.get_current_key(), timestamp, ctx.timer_service())

    def _pass_on(
        self, bucket: int, batch: FeatureBatch, ctx: KeyedProcessFunction.Context
    ) -> Iterator[Any]:
        if self._scoring is None:
            if not batch.is_empty:
                yield from self._route(batch)
            return
        if (valve := self._valve_before("scoring")) is not None:
            batch, gone = valve.of_batch(batch, self._queue(bucket))
            yield from gone
        if self._teller is not None:
            self._teller.tell(batch, self._queue(bucket))
        if batch.is_empty:
            return
        if len(batch):
            self._late_counter.inc(int(np.count_nonzero(batch.late)))
            features = self._formulas.append(batch.features, batch.values)
            warming = batch.warming and of_formulas(batch.warming, self._formulas.reads)
            batch = replace(batch, features=features, warming=warming)
        yield from self._scoring.take(bucket, batch, ctx.timer_service())

    def _valve_before(self, what: str) -> Valve | None:
        """What sheds before the features, or before the scoring; none if nothing is shed there."""
        return self._valve if self._overload is not None and self._overload.before == what else None

    def _queue(self, bucket: int) -> float:
        return 0.0 if self._scoring is None else self._scoring.queue(bucket)

    def _route(self, batch: FeatureBatch) -> Iterator[Routed]:
        """To the buckets of the next stage."""
        if len(self._routing.labels) == 1:
            yield Row(self._routing.labels[0], batch)
            return
        assert self._next_stage is not None
        groups = [self._routing.of(entity) for entity in batch.entities[self._next_stage]]
        for group, part in batch.split(groups).items():
            yield Row(group if len(part) else self._routing.labels[0], part)


class FirstStage(_KeyedOperator):
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
        super().close()
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


class NextStage(_KeyedOperator):
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


def histories(key: str) -> MapStateDescriptor[str, bytes]:
    """The state of a stage: what reads a savepoint must name it as what wrote it did."""
    return _map_state(f"histories-{key}", _BACKSTOP_S)


def first_events(key: str, idle_ms: int) -> MapStateDescriptor[str, bytes]:
    """Where each key's first events lie; they are written once, so that they live longer."""
    return _map_state(f"first-{key}", max(idle_ms // 1_000, _FIRST_TTL_S))


def _map_state(name: str, ttl_s: int) -> MapStateDescriptor[str, bytes]:
    descriptor = MapStateDescriptor(name, Types.STRING(), Types.PICKLED_BYTE_ARRAY())
    descriptor.enable_time_to_live(state_ttl(ttl_s))
    return descriptor
