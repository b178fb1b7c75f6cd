"""A job seen from its topics while it is changed: when predictions came, and with which score."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

from jobs.kafka_topics import topic_partitions
from jobs.settings import Settings
from udfs.scoring.rollout import population_stability

_BINS = 10
COMPARABLE = 200
"""Fewer scores than these tell nothing of their distribution."""
_TIMEOUT_S = 10.0


class Seen(NamedTuple):
    """A prediction.

    Attributes:
        scored_ms: Epoch milliseconds.
        partition: Of the event.
        offset: Of the event.
        score: 0 to 1.
        is_fallback: Whether no model made it.
    """

    scored_ms: int
    partition: int
    offset: int
    score: float
    is_fallback: bool


@dataclass(frozen=True)
class Gap:
    """The longest time without a prediction around a change.

    Attributes:
        last_before_ms: When the last one before it was made, epoch milliseconds.
        first_after_ms: When the first one after it was.
    """

    last_before_ms: int
    first_after_ms: int

    @property
    def seconds(self) -> float:
        """How long there were none."""
        return (self.first_after_ms - self.last_before_ms) / 1_000


class PredictionWatch:
    """Reads a job's predictions from now on, in a thread; a context manager.

    Args:
        settings: The job's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: list[Seen] = []
        self._places: set[tuple[int, int]] = set()
        self._processed: dict[int, int] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.failure = ""

    def __enter__(self) -> Self:
        kafka, topic = self._settings.kafka, self._settings.topics.predictions
        options: dict[str, Any] = {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": f"{kafka.group_id}-watch",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "log_level": 0,
            **kafka.python_properties(),
        }
        self._consumer = Consumer(options)
        # Asked of a consumer that a thread consumes with, watermarks once never came, whatever the
        # timeout.
        self._ends = Consumer(options)
        count = self._partitions(topic)
        ends = [TopicPartition(topic, n, self._end(topic, n)) for n in range(count)]
        self._consumer.assign(ends)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._consumer.close()
        self._ends.close()

    def seen(self, since_ms: int = 0, until_ms: int | None = None) -> list[Seen]:
        """The predictions that were made in a time, epoch milliseconds."""
        with self._lock:
            return [
                s
                for s in self._seen
                if s.scored_ms >= since_ms and (until_ms is None or s.scored_ms < until_ms)
            ]

    @property
    def events(self) -> int:
        """How many different events have a prediction."""
        return len(self._places)

    def lag(self) -> int:
        """Events that are written and, as far as predictions tell, not processed.

        Only partitions that gave a prediction are counted: of the others nothing is known.
        """
        topic = self._settings.topics.events
        with self._lock:
            processed = dict(self._processed)
        return sum(max(0, self._end(topic, n) - at - 1) for n, at in processed.items())

    def _end(self, topic: str, partition: int) -> int:
        place = TopicPartition(topic, partition)
        return int(self._ends.get_watermark_offsets(place, timeout=_TIMEOUT_S)[1])

    def _partitions(self, topic: str) -> int:
        kafka = self._settings.kafka
        return topic_partitions(kafka.bootstrap_servers, login=kafka.python_properties())[topic]

    def _read(self) -> None:
        while not self._ended.is_set():
            try:
                messages = self._consumer.consume(1_000, timeout=0.1)
            except KafkaException as exc:
                self.failure = str(exc)
                return
            found = [_seen(orjson.loads(m.value() or b"{}")) for m in messages if not m.error()]
            with self._lock:
                for seen in found:
                    self._seen.append(seen)
                    self._places.add((seen.partition, seen.offset))
                    at = self._processed.get(seen.partition, -1)
                    self._processed[seen.partition] = max(at, seen.offset)


def _seen(document: dict[str, Any]) -> Seen:
    source = document["source"]
    return Seen(
        document["scored_time_ms"],
        source["partition"],
        source["offset"],
        document["score"],
        document["fallback_reason"] is not None,
    )


def gap_of(seen: list[Seen], since_ms: int) -> Gap | None:
    """The longest time between two predictions that ends after a moment; None without two."""
    times = np.sort(np.array([s.scored_ms for s in seen], np.int64))
    if len(times) < 2:
        return None
    gaps = np.diff(times)
    gaps[times[1:] < since_ms] = -1
    longest = int(np.argmax(gaps))
    return Gap(int(times[longest]), int(times[longest + 1]))


def shift(before: list[Seen], after: list[Seen]) -> float | None:
    """The population stability index of the models' scores; None if there are too few."""
    old, new = (np.array([s.score for s in part if not s.is_fallback]) for part in (before, after))
    if min(len(old), len(new)) < COMPARABLE:
        return None
    edges = np.unique(np.quantile(old, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = [np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (old, new)]
    return population_stability(bins[0], bins[1])


def now_ms() -> int:
    """The clock that predictions are stamped with."""
    return time.time_ns() // 1_000_000
