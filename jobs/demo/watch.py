"""Reads what a job writes and counts it: every input record must end in exactly one place.

Delivery is at least once: a repeat is known by its source and dropped.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import orjson
from confluent_kafka import Consumer, TopicPartition

from jobs.demo.outcome import AlertRow
from jobs.kafka_topics import topic_partitions
from jobs.sections.topics import TopicSettings

BATCH = 500
POLL_S = 0.2
RECENT_S = 5.0


class WatchError(RuntimeError):
    """The job's output cannot be read."""


class Tally:
    """Counts a job's output; one thread adds, others may read.

    Args:
        events_topic: A dead letter of another topic (a label) is no event's end.
        threshold: A model's score above it must have an alert; none where an alert is an episode's.
    """

    def __init__(self, events_topic: str, threshold: float | None) -> None:
        self._events_topic = events_topic
        self._threshold = threshold
        self._seen: set[tuple[str, str | tuple[int, int]]] = set()
        self.event_ids: list[str] = []
        self.keys: list[str] = []
        self.event_times_ms: list[int] = []
        self.scores: list[float] = []
        self.latencies_ms: list[int] = []
        self.scored_times_ms: list[int] = []
        self.is_fallback: list[bool] = []
        self.scored_inputs = 0
        self.alerts: list[AlertRow] = []
        self.alert_records: list[Mapping[str, Any]] = []
        self.alert_times_ms: list[int] = []
        self.alerts_due = 0
        self.dead_letters: Counter[str] = Counter()
        self.refused_labels = 0
        self.duplicates = 0
        self.shed = 0
        self.fallbacks: Counter[str] = Counter()
        self.repeats = 0

    @property
    def predictions(self) -> int:
        """Events with a prediction."""
        return len(self.is_fallback)  # the list that is appended to last

    @property
    def accounted(self) -> int:
        """Records of the events topic whose end is known; a window's readings end in its score."""
        return self.scored_inputs + self.dead_letters.total() + self.duplicates + self.shed

    def add(self, kind: str, value: bytes, kafka_time_ms: int) -> None:
        """Count a record.

        Args:
            kind: Its topic's name in the settings, e.g. ``dead_letters``.
            value: The record.
            kafka_time_ms: When the broker appended it, epoch.
        """
        document = orjson.loads(value)
        identity = _identity(kind, document)
        if identity in self._seen:
            self.repeats += 1
            return
        self._seen.add(identity)
        match kind:
            case "predictions":
                self._add_prediction(document, kafka_time_ms)
            case "alerts":
                self.alert_records.append(document)
                self.alert_times_ms.append(kafka_time_ms)
                self.alerts.append(AlertRow.of_record(document))
            case "duplicates":
                self.duplicates += 1
            case "shed":
                self.shed += 1
            case _:
                self._add_dead_letter(document)

    def _add_prediction(self, document: Mapping[str, Any], kafka_time_ms: int) -> None:
        reason = document["fallback_reason"]
        if reason is not None:
            self.fallbacks[reason] += 1
        elif self._threshold is not None and document["score"] > self._threshold:
            self.alerts_due += 1
        self.scored_inputs += document["window"]["readings"] if "window" in document else 1
        self.event_ids.append(document["event_id"])
        self.keys.append(document.get("key", ""))
        self.event_times_ms.append(document["event_time_ms"])
        self.scores.append(document["score"])
        self.latencies_ms.append(kafka_time_ms - document["ingest_time_ms"])
        self.scored_times_ms.append(document["scored_time_ms"])
        self.is_fallback.append(reason is not None)

    def _add_dead_letter(self, document: Mapping[str, Any]) -> None:
        if document["source"]["topic"] == self._events_topic:
            self.dead_letters[document["code"]] += 1
        else:
            self.refused_labels += 1


def _identity(kind: str, document: Mapping[str, Any]) -> tuple[str, str | tuple[int, int]]:
    match kind:
        case "predictions":
            return kind, document["prediction_id"]
        case "alerts":
            return kind, _alert_id(document)
    source = document["source"]
    return f"{kind} of {source['topic']}", (source["partition"], source["offset"])


def _alert_id(alert: Mapping[str, Any]) -> str:
    """Of an alert of one prediction, of an episode, or of a silent key."""
    if "prediction" in alert:
        return str(alert["prediction"]["prediction_id"])
    return str(alert.get("alert_id") or alert["event_id"])


class Message(Protocol):
    """What is used of confluent_kafka's message."""

    def error(self) -> Any:
        """What went wrong, or none."""

    def topic(self) -> Any:
        """Its topic."""

    def value(self) -> Any:
        """The record."""

    def timestamp(self) -> tuple[int, int]:
        """Kind of time and the time, epoch ms."""


class Reader(Protocol):
    """What is used of confluent_kafka's consumer."""

    def consume(self, num_messages: int, timeout: float) -> Sequence[Message]:
        """At most so many messages, within so many seconds."""


def watch(reader: Reader, kinds: Mapping[str, str], tally: Tally, stop: threading.Event) -> None:
    """Count everything that comes until ``stop`` is set.

    Args:
        reader: Assigned to the job's output.
        kinds: Kind of record by topic name; see ``Tally.add``.
        tally: Where to count.
        stop: Looked at several times a second.

    Raises:
        WatchError: Kafka reports an error.
    """
    while not stop.is_set():
        for message in reader.consume(BATCH, POLL_S):
            if message.error() is not None:
                raise WatchError(f"the job's output cannot be read: {message.error()}")
            tally.add(kinds[message.topic()], message.value(), message.timestamp()[1])


def output_kinds(topics: TopicSettings) -> dict[str, str]:
    """Kind of record by the name of each topic that a job writes."""
    kinds = ("predictions", "alerts", "dead_letters", "duplicates", "shed")
    return {topic: kind for kind in kinds if (topic := getattr(topics, kind))}


def open_reader(bootstrap: str, topics: Sequence[str]) -> Consumer:
    """A consumer at the beginning of all partitions of these topics; the caller closes it."""
    partitions = topic_partitions(bootstrap)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "streamscore-watch",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 100,
        }
    )
    consumer.assign([TopicPartition(t, p, 0) for t in topics for p in range(partitions[t])])
    return consumer


class Recent:
    """Rates and latencies over the last seconds.

    Args:
        tally: What is counted.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._samples: deque[tuple[float, int, int]] = deque()

    def sample(self, now_s: float, sent: int) -> None:
        """Note how far things are; several times a second."""
        self._samples.append((now_s, sent, self._tally.predictions))
        while now_s - self._samples[0][0] > RECENT_S:
            self._samples.popleft()

    def rates(self) -> tuple[float, float]:
        """Records sent and predictions read, per second."""
        first, last = self._samples[0], self._samples[-1]
        span_s = last[0] - first[0]
        if span_s <= 0:
            return 0.0, 0.0
        return (last[1] - first[1]) / span_s, (last[2] - first[2]) / span_s

    def latency_ms(self) -> tuple[float, float] | tuple[None, None]:
        """p50 and p99, none without a prediction."""
        latencies = self._tally.latencies_ms[self._samples[0][2] : self._samples[-1][2]]
        if not latencies:
            return None, None
        p50, p99 = np.percentile(latencies, (50, 99)).tolist()
        return p50, p99
