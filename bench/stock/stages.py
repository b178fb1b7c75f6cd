"""The baseline's operators before the model: records are parsed, windows kept by key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pyflink.common import Types
from pyflink.datastream import (
    FlatMapFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    RuntimeContext,
)
from pyflink.datastream.state import ValueStateDescriptor

from bench.stock.features import Event, EventHistory, LabelHistory, expression, parse_event
from udfs.definition.event import FieldSpec, LabelSpec
from udfs.definition.schema import Schema


class ParseEvents(FlatMapFunction):
    """JSON text to an event with its expression features; invalid records are counted."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def open(self, runtime_context: RuntimeContext) -> None:
        event = self._schema.event
        self._expressions = [
            (spec.columns, expression(spec, event.time.field))
            for spec in self._schema.features.expressions
        ]
        self._invalid = runtime_context.get_metrics_group().counter("invalid")

    def flat_map(self, value: str) -> Iterator[Event]:
        spec = self._schema.event
        event = parse_event(value, spec.fields)
        if event is None or not self._is_believed(event[spec.time.field]):
            self._invalid.inc()
            return
        features: dict[str, Any] = {}
        for columns, compute in self._expressions:
            features.update(zip(columns, compute(event), strict=True))
        event["features"] = features
        yield event

    def _is_believed(self, time_ms: int) -> bool:
        spec = self._schema.event.time
        return spec.earliest_ms <= time_ms <= time.time() * 1_000 + spec.max_future


class ParseLabels(FlatMapFunction):
    """JSON text to a label; invalid records are counted."""

    def __init__(self, labels: LabelSpec) -> None:
        self._fields = (
            FieldSpec(name=labels.id, type="string"),
            FieldSpec(name=labels.time, type="int"),
            FieldSpec(name=labels.key, type="string"),
            FieldSpec(name=labels.value, type="int", min=0, max=1),
        )

    def open(self, runtime_context: RuntimeContext) -> None:
        self._invalid = runtime_context.get_metrics_group().counter("invalid")

    def flat_map(self, value: str) -> Iterator[Event]:
        label = parse_event(value, self._fields)
        if label is None:
            self._invalid.inc()
        else:
            yield label


class CardFeatures(KeyedProcessFunction):
    """Drops duplicates and adds the windows of the event's card."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def open(self, runtime_context: RuntimeContext) -> None:
        self._history = EventHistory(self._schema, self._schema.key)
        self._entries = runtime_context.get_state(_list_state("entries"))
        self._duplicates = runtime_context.get_metrics_group().counter("duplicates")

    def process_element(self, value: Event, ctx: KeyedProcessFunction.Context) -> Iterator[Event]:
        entries = self._entries.value() or []
        if self._history.is_duplicate(entries, value):
            self._duplicates.inc()
            return
        value["ingest_time_ms"] = ctx.timestamp()
        self._entries.update(self._history.add(entries, value))
        yield value


class TerminalFeatures(KeyedCoProcessFunction):
    """Adds the windows of the event's terminal, over its transactions and its late labels."""

    def __init__(self, schema: Schema, key: str) -> None:
        self._schema = schema
        self._key = key

    def open(self, runtime_context: RuntimeContext) -> None:
        self._event_history = EventHistory(self._schema, self._key)
        self._label_history = LabelHistory(self._schema, self._key)
        self._events = runtime_context.get_state(_list_state("events"))
        self._labels = runtime_context.get_state(_list_state("labels"))

    def process_element1(
        self, value: Event, ctx: KeyedCoProcessFunction.Context
    ) -> Iterator[Event]:
        self._events.update(self._event_history.add(self._events.value() or [], value))
        labels = self._labels.value() or []
        kept = self._label_history.add_features(labels, value)
        if len(kept) != len(labels):
            self._labels.update(kept)
        yield value

    def process_element2(
        self, value: Event, ctx: KeyedCoProcessFunction.Context
    ) -> Iterator[Event]:
        self._labels.update(self._label_history.learn(self._labels.value() or [], value))
        return iter(())


def _list_state(name: str) -> ValueStateDescriptor:
    return ValueStateDescriptor(name, Types.PICKLED_BYTE_ARRAY())
