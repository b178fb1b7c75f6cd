"""Reads a job's topics: what Kafka holds of its events, labels and predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from jobs.features.columns import (
    Entities,
    EventColumns,
    Growing,
    LabelColumns,
    Predictions,
    Range,
    ShedColumns,
    Source,
    Texts,
)
from jobs.features.reach import without_tables
from jobs.kafka_topics import StackError, topic_partitions
from jobs.settings import Settings
from udfs.batches.events import Decoded, Decoder, Events, IntArray
from udfs.definition.schema import Schema
from udfs.features.expressions import evaluate
from udfs.features.identities import Identities
from udfs.features.series import kinds_of
from udfs.features.stage_inputs import StageInputs
from udfs.offline.rolling import roll_up

Progress = Callable[[str, float], None]

_ROWS = 4_096
_POLL_S = 0.1
_SILENCE_S = 30.0


class TopicError(RuntimeError):
    """A topic cannot be read; the text says what to do."""


class Reader(Protocol):
    """Gives whole topics.

    Attributes:
        ranges: What each partition holds, by topic; known once its reading has begun.
    """

    ranges: dict[str, dict[int, Range]]

    def read(self, topic: str) -> Iterator[Sequence[Record]]:
        """The records of a topic, chunk by chunk; each partition's in order."""


class Record(Protocol):
    """What is used of confluent_kafka's message."""

    def value(self) -> Any:
        """Its bytes, or none."""

    def partition(self) -> Any:
        """Its partition."""

    def offset(self) -> Any:
        """Its offset."""

    def timestamp(self) -> tuple[int, int]:
        """Kind of time and the time, epoch ms."""


def read(settings: Settings, properties: Mapping[str, str], progress: Progress) -> Source:
    """Read the three topics from their beginning to where they end now.

    Args:
        settings: The job's.
        properties: Further properties of librdkafka.
        progress: Shown while it reads.

    Raises:
        TopicError: a topic is missing, or the broker does not answer.
    """
    kafka = settings.kafka
    login = kafka.python_properties() | dict(properties)
    return collect(settings, KafkaReader(kafka.bootstrap_servers, login, progress))


def collect(settings: Settings, reader: Reader) -> Source:
    """The three topics as columns.

    The predictions are read first: what is scored meanwhile has its event but no prediction.
    """
    topics, schema = settings.topics, settings.schema_
    predictions = _predictions(schema, topics.events, reader.read(topics.predictions))
    shed = None
    if settings.overload is not None and settings.overload.before == "scoring":
        assert topics.shed is not None
        shed = _shed(schema, topics.events, reader.read(topics.shed), predictions)
    events = event_columns(schema, reader, topics.events, lambda part: without_tables(schema, part))
    labels = None
    if topics.labels is not None and any(w.stream == "labels" for w in schema.features.windows):
        labels = label_columns(schema, reader, topics.labels)
    return Source(events, labels, predictions, shed)


class KafkaReader:
    """Reads whole topics of a broker.

    Args:
        bootstrap: host:port of the brokers.
        properties: Further properties of librdkafka.
        progress: Shown while it reads.
    """

    def __init__(self, bootstrap: str, properties: Mapping[str, str], progress: Progress) -> None:
        self._options = {
            "bootstrap.servers": bootstrap,
            "group.id": "streamscore-features",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": 32_768,
            "log_level": 3,
            **properties,
        }
        self._bootstrap = bootstrap
        self._properties = dict(properties)
        self._progress = progress
        self.ranges: dict[str, dict[int, Range]] = {}

    def read(self, topic: str) -> Iterator[list[Message]]:
        """The records of a topic, chunk by chunk; each partition's in order."""
        consumer = Consumer(self._options)
        try:
            ranges = self.ranges[topic] = self._ranges(consumer, topic)
            yield from self._messages(consumer, topic, ranges)
        except KafkaException as exc:
            raise TopicError(f"cannot read {topic} at {self._bootstrap}: {exc}") from exc
        finally:
            consumer.close()

    def _ranges(self, consumer: Consumer, topic: str) -> dict[int, Range]:
        try:
            count = topic_partitions(self._bootstrap, login=self._properties).get(topic, 0)
        except StackError as exc:
            raise TopicError(
                f"{exc.problem}; start it, or correct kafka.bootstrap_servers"
            ) from exc
        if not count:
            raise TopicError(f"there is no topic {topic} at {self._bootstrap}; see topics in CONF")
        found = {}
        for n in range(count):
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, n), timeout=10)
            found[n] = Range(first, end)
        return found

    def _messages(
        self, consumer: Consumer, topic: str, ranges: Mapping[int, Range]
    ) -> Iterator[list[Message]]:
        at = {n: r.first for n, r in ranges.items() if r.end > r.first}
        total = sum(ranges[n].end - first for n, first in at.items())
        consumer.assign([TopicPartition(topic, n, first) for n, first in at.items()])
        deadline_s = time.monotonic() + _SILENCE_S
        while at:
            messages = consumer.consume(_ROWS, _POLL_S)  # waits so long for the last few
            if messages:
                deadline_s = time.monotonic() + _SILENCE_S
            elif time.monotonic() > deadline_s:
                raise TopicError(f"{topic} gave no record for {_SILENCE_S:.0f} s; try again")
            wanted = [m for m in messages if _is_before_end(m, at, ranges)]
            if wanted:
                yield wanted
            left = sum(ranges[n].end - offset for n, offset in at.items())
            self._progress(f"reading {topic}", 1 - left / total)


def _is_before_end(message: Message, at: dict[int, int], ranges: Mapping[int, Range]) -> bool:
    """Whether a message is a record to take; ``at`` loses the partitions that are done."""
    partition, error = int(message.partition() or 0), message.error()
    if error is not None:
        if error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        at.pop(partition, None)
        return False
    offset, end = int(message.offset() or 0), ranges[partition].end
    if partition in at:
        at[partition] = offset + 1
        if offset + 1 >= end:
            del at[partition]
    return offset < end


def _raw(messages: Sequence[Record]) -> tuple[list[bytes], IntArray]:
    raw = [message.value() or b"" for message in messages]
    places = [(m.partition() or 0, m.offset() or 0, m.timestamp()[1]) for m in messages]
    return raw, np.array(places, np.int64)


def event_columns(
    schema: Schema, reader: Reader, topic: str, joined: Callable[[Events], Events]
) -> EventColumns:
    """The events topic as columns.

    Args:
        schema: The job's schema.
        reader: Gives the topic.
        topic: Its name.
        joined: Gives events the fields of the reference tables.
    """
    inputs, columns = StageInputs(schema), Growing()
    ids, entities = Texts(), {stage: Entities() for stage in schema.stages}
    codes: list[str] = []
    for decoded in _decoded(schema, reader, topic):
        for part in decoded.parts:
            part = joined(part)
            ids.extend(part.texts[schema.event.id])
            of_stage = {schema.key: part.texts[schema.key]} | inputs.entities(part)
            for stage, names in of_stage.items():
                entities[stage].extend(names)
            _add_events(columns, schema, part)
            columns.add(**{f"value {k}": v for k, v in inputs.values(part).items()})
        for reject in decoded.rejects:
            if reject.code not in codes:
                codes.append(reject.code)
            place = reject.partition, reject.offset, codes.index(reject.code)
            columns.add(refused=np.array([place], np.int64))
    none = np.empty(0, np.int64)
    width = sum(len(e.columns) for e in schema.features.expressions)
    return EventColumns(
        positions=columns.take("positions", np.empty((0, 3), np.int64)),
        times=columns.take("times", none),
        ids=ids,
        entities=entities,
        values={name: columns.take(f"value {name}", np.empty(0)) for name in inputs.names},
        expressions=columns.take("expressions", np.empty((0, width))),
        identities=Identities(columns.take("ids", none), columns.take("checks", none)),
        refused=columns.take("refused", np.empty((0, 3), np.int64)),
        codes=codes,
        ranges=reader.ranges[topic],
    )


def _decoded(schema: Schema, reader: Reader, topic: str) -> Iterator[Decoded]:
    """The events of a topic; with a roll-up, the windows of its readings in order of arrival.

    When idleness closed a window is not in the topic: later readings of it are taken to be in it.
    """
    decoder = Decoder.for_events(schema.arriving, schema.arriving_keys)
    chunks = (decoder.decode(*_raw(messages)) for messages in reader.read(topic))
    if schema.rollup is None:
        yield from chunks
        return
    whole = Decoded()
    for chunk in chunks:
        whole.parts += chunk.parts
        whole.rejects += chunk.rejects
    readings = whole.merged()
    if readings is not None:
        rolled = roll_up(schema, readings, order="arrival")
        whole = Decoded([rolled.windows], whole.rejects + rolled.rejects)
    yield whole


def _add_events(columns: Growing, schema: Schema, part: Events) -> None:
    identities = Identities.of_events(part.texts[schema.event.id], part.raw)
    columns.add(
        positions=part.positions,
        times=part.times,
        expressions=evaluate(schema.features.expressions, part, kinds_of(schema.known)),
        ids=identities.ids,
        checks=identities.checks,
    )


def label_columns(schema: Schema, reader: Reader, topic: str) -> LabelColumns:
    """The labels topic as columns."""
    assert schema.labels is not None
    spec, columns = schema.labels, Growing()
    decoder = Decoder.for_labels(spec, schema.event)
    ids, entities = Texts(), Entities()
    for messages in reader.read(topic):
        for part in decoder.decode(*_raw(messages)).parts:
            ids.extend(part.texts[spec.id])
            entities.extend(part.texts[spec.key])
            identities = Identities.of_labels(part.texts[spec.id], part.numbers[spec.value])
            columns.add(
                positions=part.positions,
                times=part.times,
                values=part.numbers[spec.value],
                ids=identities.ids,
                checks=identities.checks,
            )
    none = np.empty(0, np.int64)
    return LabelColumns(
        positions=columns.take("positions", np.empty((0, 3), np.int64)),
        times=columns.take("times", none),
        values=columns.take("values", np.empty(0)),
        ids=ids,
        entities=entities,
        identities=Identities(columns.take("ids", none), columns.take("checks", none)),
        ranges=reader.ranges[topic],
    )


def _predictions(schema: Schema, topic: str, chunks: Iterable[Sequence[Record]]) -> Predictions:
    names, stages = schema.columns, schema.stages
    known, columns, keys = set(names), Growing(), Entities()
    seen: set[str] = set()
    records = elsewhere = 0
    for messages in chunks:
        documents = [orjson.loads(m.value() or b"{}") for m in messages]
        records += len(documents)
        own = [d for d in documents if d["source"]["topic"] == topic]
        elsewhere += len(documents) - len(own)
        if not own:
            continue
        for document in own:
            seen |= document["features"].keys() ^ known
        keys.extend(d["key"] for d in own)
        columns.add(**_as_columns(own, names, stages))
    places = columns.take("places", np.empty((0, 2), np.int64))
    rows = _last(places)
    foreign = columns.take("foreign", np.empty(0, np.bool_))[rows]
    other = seen if foreign.any() else set()  # those of replaced predictions do not count
    return Predictions(
        places=places[rows],
        features=columns.take("features", np.empty((0, len(names))))[rows],
        order=columns.take("order", np.empty((0, len(stages)), np.int64))[rows],
        times=columns.take("times", np.empty((0, 3), np.int64))[rows],
        versions=columns.take("versions", np.empty(0, np.int64))[rows],
        late=columns.take("late", np.empty(0, np.bool_))[rows],
        foreign=foreign,
        keys=keys.of(rows),
        extra=sorted(other - known),
        absent=sorted(other & known),
        records=records,
        elsewhere=elsewhere,
    )


def _shed(
    schema: Schema, topic: str, chunks: Iterable[Sequence[Record]], predictions: Predictions
) -> ShedColumns:
    """Those of the topic that were shed before scoring; after a restart they may be scored too."""
    columns, stages = Growing(), schema.stages
    for messages in chunks:
        documents = [orjson.loads(m.value() or b"{}") for m in messages]
        own = [d for d in documents if d["source"]["topic"] == topic and "order" in d]
        if own:
            columns.add(places=_places(own), order=_orders(own, stages))
    places = columns.take("places", np.empty((0, 2), np.int64))
    rows = _last(places)
    scored = {*map(tuple, predictions.places.tolist())}
    rows = rows[[tuple(place) not in scored for place in places[rows].tolist()]]
    orders = columns.take("order", np.empty((0, len(stages)), np.int64))
    return ShedColumns(places[rows], orders[rows])


def _places(documents: Sequence[dict[str, Any]]) -> IntArray:
    sources = [d["source"] for d in documents]
    return np.array([(s["partition"], s["offset"]) for s in sources], np.int64)


def _orders(documents: Sequence[dict[str, Any]], stages: Sequence[str]) -> IntArray:
    return np.array([[d["order"].get(s, -1) for s in stages] for d in documents], np.int64)


def _as_columns(
    documents: Sequence[dict[str, Any]], names: Sequence[str], stages: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    features, orders = [d["features"] for d in documents], [d["order"] for d in documents]
    known_features, known_stages = set(names), set(stages)
    return {
        "places": _places(documents),
        "features": np.array([[f.get(n) for n in names] for f in features], np.float64),
        "order": _orders(documents, stages),
        "times": np.array(
            [(d["event_time_ms"], d["ingest_time_ms"], d["scored_time_ms"]) for d in documents],
            np.int64,
        ),
        "versions": np.array([d["model"]["version"] or 0 for d in documents], np.int64),
        "late": np.array([d.get("late", False) for d in documents], np.bool_),
        "foreign": np.array(
            [
                f.keys() != known_features or o.keys() != known_stages
                for f, o in zip(features, orders, strict=True)
            ],
            np.bool_,
        ),
    }


def _last(places: IntArray) -> npt.NDArray[np.intp]:
    """The last row of each place, by place. Repeats share a key, so a partition, and an order."""
    order = np.lexsort((places[:, 1], places[:, 0]))  # stable: the last read stays last
    ordered = places[order]
    is_last = np.ones(len(order), np.bool_)
    is_last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
    rows: npt.NDArray[np.intp] = order[is_last]
    return rows
