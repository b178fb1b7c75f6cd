"""The baseline: the fraud job as PyFlink's own documentation would write it.

DataStream API, one Python call per record and operator; the features, the model and the fields of
a prediction are those of ``conf/fraud.yaml``, so that only the arrangement differs from ours::

    KafkaSource -> parse, expressions -> key_by(card) -> windows -> key_by(terminal) -> windows
                                                   labels -> parse -> key_by(terminal) ^
                -> score, JSON -> KafkaSink

What was chosen, and why it is fair:

* Python's ``json``, keyed state, ``KeyedCoProcessFunction`` and ``AsyncDataStream`` as in the
  documentation. Flink's options stay at their defaults (bundles of 1,000 records or 1 s, buffer
  timeout 100 ms, heap state) except: a checkpoint every 60 s to a folder, as the default keeps no
  more than 5 MB; and no restarts, so that a fault ends the benchmark.
* As few Python operators as the exchanges allow: the expressions are computed while parsing, the
  JSON is written while scoring. One more map would cost an unpickling and a pickling per record.
* A key's history is one Python list in a ``ValueState``: one read and one write per record. The
  same job with a ``ListState`` of tuples, pruned and rewritten per record, needed the same CPU time
  per record within the noise, in both modes. The id of each entry is in the list too, so that
  duplicates need no second state.
* Windows are exact and recounted from the list, which is short (about 14 transactions per card
  in 7 days, 75 labels per terminal in the demo data).
* Served scoring calls the stub of a plain ``grpc.aio`` channel, one row per call, deadline 200 ms,
  100 calls in flight (PyFlink's default). A call that fails gives the fallback score and its
  reason; a benchmark must count those, as they are not scores.

It does less than our job, in its own favour: no alerts and explanations, no dead letter and
duplicate topics (it only counts such records), no Kafka keys on its output. SimpleStringSchema
gives no partition and offset, so ``source`` holds nulls, ``prediction_id`` is the event's id and
``order`` is empty.

Delivery is at least once. The sink gives a record its event's Kafka time: to measure by the output
topic's timestamps, make that topic with ``message.timestamp.type=LogAppendTime``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import numpy as np
import xgboost
from pyflink.common import Configuration, SimpleStringSchema, Time, Types, WatermarkStrategy
from pyflink.datastream import (
    AsyncDataStream,
    AsyncFunction,
    DataStream,
    FlatMapFunction,
    KeyedCoProcessFunction,
    KeyedProcessFunction,
    MapFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
)
from pyflink.datastream.state import ValueStateDescriptor

from jobs.environment import BUILD, ROOT, thread_mode_env
from jobs.jars import flink_jars
from jobs.settings import ModelSettings, Settings, load
from model_server.protos import ModelSpec, PredictionServiceStub, PredictRequest
from model_server.repository import find_version, load_features, model_file
from model_server.tensors import from_proto, to_proto
from udfs.definition.event import FieldSpec, LabelSpec
from udfs.definition.expression import ExpressionFeature
from udfs.definition.schema import Schema
from udfs.features.expressions import EARTH_RADIUS_KM

CHECKPOINT_INTERVAL_MS = 60_000
PREDICT_TIMEOUT_MS = 200
GROUP_ID = "streamscore-stock"

Event = dict[str, Any]
Entry = tuple[int, float, str]
"""One line of a key's history: event time in ms, value, id."""

_PYTHON_TYPES = {"string": (str,), "float": (float, int), "int": (int,), "bool": (bool,)}


# -- features, without Flink --------------------------------------------------------------------


def parse_event(text: str, fields: Sequence[FieldSpec]) -> Event | None:
    """The declared fields of a JSON record; None if it is not a valid event."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    event = {}
    for field in fields:
        value = document.get(field.name)
        if value is None:
            value = field.default
        if not _is_valid(field, value):
            return None
        event[field.name] = value
    return event


def _is_valid(field: FieldSpec, value: Any) -> bool:
    if value is None:
        return not field.required
    if type(value) not in _PYTHON_TYPES[field.type]:
        return False
    if field.min is not None and not value >= field.min:  # not-a-number fails every comparison
        return False
    return field.max is None or value <= field.max


def distance_km(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Great-circle distance by the haversine formula; degrees to kilometres."""
    lat1, lon1, lat2, lon2 = map(math.radians, (lat1, lon1, lat2, lon2))
    square = (
        math.sin((lat2 - lat1) / 2) ** 2
        + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(square, 1.0)))


def expression(spec: ExpressionFeature, time_field: str) -> Callable[[Event], list[Any]]:
    """A function that computes the columns of an expression feature of one event."""
    fields, categories, zone = spec.fields, spec.categories, ZoneInfo(spec.timezone)

    def distance(event: Event) -> list[Any]:
        points = [event[name] for name in fields]
        return [None if None in points else distance_km(*points)]

    def local_time(event: Event) -> datetime:
        return datetime.fromtimestamp(event[time_field] / 1_000, zone)

    return {
        "value": lambda event: [event[fields[0]]],
        "distance_km": distance,
        "hour_of_day": lambda event: [local_time(event).hour],
        "day_of_week": lambda event: [local_time(event).weekday()],
        "one_hot": lambda event: [int(event[fields[0]] == category) for category in categories],
    }[spec.type]


@dataclass(frozen=True)
class Window:
    """One sliding window: ``(t - delay - length, t - delay]``.

    Attributes:
        length_ms: Its length.
        delay_ms: How long before the event it ends.
        columns: Pairs of aggregate and feature name.
    """

    length_ms: int
    delay_ms: int
    columns: list[tuple[str, str]]

    def features(self, entries: list[Entry], time_ms: int, own: float) -> dict[str, Any]:
        """The window's features of an event at that time with that value of its own."""
        end_ms = time_ms - self.delay_ms
        start_ms = end_ms - self.length_ms
        values = [value for at_ms, value, _ in entries if start_ms < at_ms <= end_ms]
        count, total = len(values), sum(values)
        mean = total / count if count else None
        aggregates = {
            "count": count,
            "sum": total,
            "mean": mean,
            "ratio_to_mean": own / mean if mean else None,
        }
        return {name: aggregates[aggregate] for aggregate, name in self.columns}


def windows_of(schema: Schema, key: str, stream: str) -> list[Window]:
    """The windows that are kept by that key over ``events`` or ``labels``."""
    windows = []
    for spec in schema.features.of_stage(key):
        names = iter(spec.columns)
        if spec.stream == stream:
            for window in spec.windows:
                columns = [(aggregate, next(names)) for aggregate in spec.aggregates]
                windows.append(Window(window.reach_ms, spec.delay, columns))
    return windows


def value_field(schema: Schema, key: str) -> str:
    """The one event field that a key's windows aggregate.

    Raises:
        ValueError: there are several; this job keeps one.
    """
    windows = schema.features.of_stage(key)
    values = {str(w.value) for w in windows if w.stream == "events" and w.value}
    if len(values) != 1:
        raise ValueError(f"this job aggregates one field per key, {key} has {sorted(values)}")
    return values.pop()


class EventHistory:
    """What a key's operator does with an event and the key's history."""

    def __init__(self, schema: Schema, key: str) -> None:
        self._id = schema.event.id
        self._time = schema.event.time.field
        self._value = value_field(schema, key)
        self._windows = windows_of(schema, key, "events")
        self._horizon_ms = schema.horizon_ms(key, "events")
        self._dedupe_within_ms = schema.event.dedupe_within

    def is_duplicate(self, entries: list[Entry], event: Event) -> bool:
        """Whether the event's id was seen within the time in which repeats are dropped."""
        since_ms = event[self._time] - self._dedupe_within_ms
        event_id = event[self._id]
        return any(known == event_id and at_ms > since_ms for at_ms, _, known in entries)

    def add(self, entries: list[Entry], event: Event) -> list[Entry]:
        """Give the event its window features; returns the history with it, pruned."""
        time_ms, value = event[self._time], event[self._value]
        entries = [*entries, (time_ms, value, event[self._id])]
        for window in self._windows:
            event["features"].update(window.features(entries, time_ms, value))
        oldest_ms = max(at_ms for at_ms, _, _ in entries) - self._horizon_ms
        return [entry for entry in entries if entry[0] > oldest_ms]


class LabelHistory:
    """What the terminal's operator does with late labels."""

    def __init__(self, schema: Schema, key: str) -> None:
        assert schema.labels is not None
        self._labels: LabelSpec = schema.labels
        self._time = schema.event.time.field
        self._windows = windows_of(schema, key, "labels")
        self._horizon_ms = schema.horizon_ms(key, "labels")

    def learn(self, entries: list[Entry], label: Event) -> list[Entry]:
        """The history with a label; an earlier one of the same event is replaced."""
        spec = self._labels
        label_id = label[spec.id]
        others = [entry for entry in entries if entry[2] != label_id]
        return [*others, (label[spec.time], label[spec.value], label_id)]

    def add_features(self, entries: list[Entry], event: Event) -> list[Entry]:
        """Give the event its label features; returns the history without what is too old."""
        time_ms = event[self._time]
        for window in self._windows:
            event["features"].update(window.features(entries, time_ms, 0.0))
        return [entry for entry in entries if entry[0] > time_ms - self._horizon_ms]


# -- Flink functions ----------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Model:
    """The model folder and what a prediction needs of the settings.

    Attributes:
        schema: The job's schema.
        folder: ``<name>/<version>/`` with the model and its features.json; none without scoring.
        settings: Server, names and fallback score.
    """

    schema: Schema
    folder: Path | None
    settings: ModelSettings

    def impute(self) -> list[float]:
        """The value of each missing feature, in the order of the model's columns."""
        features = load_features(self.folder).features if self.folder else ()
        return [math.nan if f.impute is None else f.impute for f in features]

    def prediction(
        self, event: Event, score: float | None, version: int | None, reason: str | None
    ) -> str:
        """A prediction as JSON text, with the fields of our job's."""
        spec = self.schema.event
        event_id = event[spec.id]
        return json.dumps(
            {
                "schema_version": 1,
                "prediction_id": event_id,
                "event_id": event_id,
                "key": event[self.schema.key],
                "score": score,
                "model": {"name": self.settings.name, "version": version},
                "fallback_reason": reason,
                "event_time_ms": event[spec.time.field],
                "ingest_time_ms": event["ingest_time_ms"],
                "scored_time_ms": time.time_ns() // 1_000_000,
                "features": event["features"],
                "order": {},
                "source": {"topic": None, "partition": None, "offset": None},
            }
        )


def model_input(features: dict[str, Any], impute: Sequence[float]) -> np.ndarray:
    """One row for the model, float32 (1, columns); the features stand in the model's order."""
    pairs = zip(features.values(), impute, strict=True)
    return np.array([[other if v is None else v for v, other in pairs]], dtype=np.float32)


class WriteFeatures(MapFunction):
    """The features of one event as JSON text, without a score."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def map(self, value: Event) -> str:
        return self._model.prediction(value, None, None, None)


class EmbeddedScore(MapFunction):
    """Scores one event with a booster inside the operator."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def open(self, runtime_context: RuntimeContext) -> None:
        assert self._model.folder is not None
        self._booster = xgboost.Booster(model_file=model_file(self._model.folder))
        self._booster.set_param({"nthread": 1})
        self._impute = self._model.impute()
        self._version = int(self._model.folder.name)

    def map(self, value: Event) -> str:
        row = model_input(value["features"], self._impute)
        score = float(self._booster.inplace_predict(row, validate_features=False)[0])
        return self._model.prediction(value, score, self._version, None)


class ServedScore(AsyncFunction):
    """Scores one event by one call of the model server."""

    def __init__(self, model: Model, target: str) -> None:
        self._model = model
        self._target = target

    def open(self, runtime_context: RuntimeContext) -> None:
        self._impute = self._model.impute()
        self._stub = None

    async def async_invoke(self, value: Event) -> list[str]:
        if self._stub is None:  # only here does the event loop run that the channel needs
            self._stub = PredictionServiceStub(grpc.aio.insecure_channel(self._target))
        try:
            response = await self._stub.Predict(
                self._request(value), timeout=PREDICT_TIMEOUT_MS / 1_000
            )
        except grpc.RpcError as exc:
            return [self._fallback(value, exc.code().name.lower())]
        scores = from_proto(response.outputs[self._model.settings.output])
        version = response.model_spec.version.value
        return [self._model.prediction(value, float(scores.ravel()[0]), version, None)]

    def timeout(self, value: Event) -> list[str]:
        return [self._fallback(value, "timeout")]

    def _request(self, value: Event) -> Any:
        settings = self._model.settings
        spec = ModelSpec(name=settings.name, signature_name=settings.signature)
        row = to_proto(model_input(value["features"], self._impute))
        return PredictRequest(model_spec=spec, inputs={settings.input: row})

    def _fallback(self, value: Event, reason: str) -> str:
        return self._model.prediction(value, self._model.settings.fallback_score, None, reason)


# -- the job ------------------------------------------------------------------------------------


def build(env: StreamExecutionEnvironment, settings: Settings, options: argparse.Namespace) -> None:
    """Wire the job; ``env.execute()`` runs it.

    Args:
        env: An environment with ``configuration``.
        settings: What to compute.
        options: What ``parser`` gives.
    """
    schema = settings.schema_
    key, labels = schema.stages[1], schema.labels
    assert labels is not None and settings.topics.labels is not None
    id_of_card, id_of_terminal, label_key = schema.key, key, labels.key
    late = (
        _source(env, settings.topics.labels, options)
        .flat_map(ParseLabels(labels))
        .key_by(lambda label: label[label_key], Types.STRING())
    )
    stream = (
        _source(env, settings.topics.events, options)
        .flat_map(ParseEvents(schema))
        .key_by(lambda event: event[id_of_card], Types.STRING())
        .process(CardFeatures(schema))
        .key_by(lambda event: event[id_of_terminal], Types.STRING())
        .connect(late)
        .process(TerminalFeatures(schema, key))
    )
    texts = _scored(stream, settings, options)
    texts.sink_to(_sink(options.output_topic or settings.topics.predictions, options))


def _scored(stream: DataStream, settings: Settings, options: argparse.Namespace) -> DataStream:
    scoring = options.scoring
    folder = None if scoring == "none" else options.model_dir or _newest_model(settings)
    model = Model(settings.schema_, folder, settings.model)
    if scoring == "served":
        return AsyncDataStream.unordered_wait(
            stream,
            ServedScore(model, options.model_server or settings.model.server),
            Time.milliseconds(PREDICT_TIMEOUT_MS),
            output_type=Types.STRING(),
        )
    function = EmbeddedScore(model) if scoring == "embedded" else WriteFeatures(model)
    return stream.map(function, Types.STRING())


def _newest_model(settings: Settings) -> Path:
    model = settings.model
    return find_version(model.path, model.name, model.version).path


def _source(env: StreamExecutionEnvironment, topic: str, options: argparse.Namespace) -> DataStream:
    builder = (
        KafkaSource.builder()
        .set_bootstrap_servers(options.bootstrap)
        .set_topics(topic)
        .set_group_id(GROUP_ID)
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_value_only_deserializer(SimpleStringSchema())
    )
    if not options.unbounded:
        builder = builder.set_bounded(KafkaOffsetsInitializer.latest())
    return env.from_source(builder.build(), WatermarkStrategy.no_watermarks(), topic)


def _sink(topic: str, options: argparse.Namespace) -> KafkaSink:
    serializer = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(topic)
        .set_value_serialization_schema(SimpleStringSchema())
        .build()
    )
    return (
        KafkaSink.builder()
        .set_bootstrap_servers(options.bootstrap)
        .set_record_serializer(serializer)
        .set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
        .build()
    )


def configuration(options: argparse.Namespace) -> Configuration:
    """Flink's options; what is not here is Flink's default."""
    result = Configuration()
    for name, value in {
        "pipeline.jars": ";".join(jar.absolute().as_uri() for jar in flink_jars()),
        "parallelism.default": str(options.parallelism),
        "python.execution-mode": options.mode,
        "execution.checkpointing.interval": f"{CHECKPOINT_INTERVAL_MS} ms",
        "execution.checkpointing.dir": options.checkpoint_dir.absolute().as_uri(),
        "restart-strategy.type": "none",
    }.items():
        result.set_string(name, value)
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m bench.stock_job", description="The fraud job in stock PyFlink."
    )
    add = result.add_argument
    add("--conf", type=Path, default=ROOT / "conf" / "fraud.yaml", help="settings file")
    add("--bootstrap", help="host:port of the broker (default: the settings')")
    add("--parallelism", type=int, default=1, help="subtasks per operator")
    add("--mode", choices=("process", "thread"), default="process", help="Python execution mode")
    add("--scoring", choices=("served", "embedded", "none"), default="served", help="who scores")
    add("--features-only", dest="scoring", action="store_const", const="none",
        help="write the features without a score: --scoring none")  # fmt: skip
    add("--model-server", help="host:port of the model server (default: the settings')")
    add("--model-dir", type=Path, help="<name>/<version>/ folder (default: the newest)")
    add("--output-topic", help="topic to write to (default: the settings' predictions)")
    add("--checkpoint-dir", type=Path, default=BUILD / "checkpoints" / "stock", help="folder")
    add("--unbounded", action="store_true", help="go on after the offsets seen at the start")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job in a mini-cluster of this process until its end; returns the exit code.

    Prints ``started job=<id> time_ms=<epoch ms>`` when it is submitted and ``finished
    runtime_ms=<Flink's net run time>`` at its end.
    """
    arguments = parser()
    options = arguments.parse_args(argv)
    if options.scoring == "served" and options.mode == "thread":
        arguments.error("PyFlink's AsyncFunction exists only in process mode")
    settings = load(options.conf)
    options.bootstrap = options.bootstrap or settings.kafka.bootstrap_servers
    os.environ.update(thread_mode_env())  # before PyFlink starts its JVM
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FLINK_LOG_DIR", str(BUILD / "logs"))
    env = StreamExecutionEnvironment.get_execution_environment(configuration(options))
    build(env, settings, options)
    client = env.execute_async(f"stock {options.mode} {options.scoring}")
    print(f"started job={client.get_job_id()} time_ms={time.time_ns() // 1_000_000}", flush=True)
    result = client.get_job_execution_result().result()
    print(f"finished runtime_ms={result.get_net_runtime()}", flush=True)
    return 0


if __name__ == "__main__":
    # The functions must come from the importable module, not from __main__, to be unpickled.
    from bench import stock_job

    sys.exit(stock_job.main())
