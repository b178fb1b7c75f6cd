"""What the keyed stages share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from pyflink.common import Row
from pyflink.datastream import KeyedProcessFunction, RuntimeContext

from udfs.batches.batch import FeatureBatch
from udfs.batches.routing import Routing
from udfs.definition.overload import OverloadSpec
from udfs.definition.schema import Schema
from udfs.features.coverage import of_formulas
from udfs.features.formula_columns import FormulaColumns
from udfs.features.keyed import KeyedStage
from udfs.features.states import BucketStates
from udfs.lifetime import close_at_end
from udfs.overload.valve import Teller, Valve
from udfs.runtime import calm_garbage_collector, share_interpreter_fairly
from udfs.scoring.base import Scoring
from udfs.stages.state import first_events, histories

Routed: TypeAlias = Row
"""Bucket and ``FeatureBatch`` or ``LabelBatch``."""


class KeyedOperator(KeyedProcessFunction):
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
        close_at_end(self.close)
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
        """Close what scores, if it was opened; a second time it does nothing."""
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
