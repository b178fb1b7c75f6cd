"""Reads what a job writes while it is hurt: the ledger, and when each partition works again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Self

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition

from jobs.chaos.events import number_of
from jobs.chaos.ledger import Ledger
from jobs.settings import Settings

_ROWS = 2_000
_POLL_S = 0.05
_TIMEOUT_S = 10.0


class Watch:
    """Reads a job's outputs from their beginning, in a thread; a context manager.

    Args:
        settings: Of the job, with an address that leads to the broker directly.
        ledger: Where it keeps what came out.

    Attributes:
        per_second: Predictions by the second in which they were read, since the start.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        topics = settings.topics
        self._ledger = ledger
        self._take: dict[str, Callable[[dict[str, Any]], None]] = {
            topics.predictions: self._prediction,
            topics.dead_letters: lambda document: ledger.dead(_place(document)),
            topics.duplicates: lambda document: ledger.doubled(_place(document)),
        }
        self._events = topics.events
        self._partitions = topics.partitions
        self._options: dict[str, Any] = {
            "bootstrap.servers": settings.kafka.bootstrap_servers,
            "group.id": "streamscore-chaos",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 50,
            "socket.timeout.ms": 10_000,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
        self._ended = threading.Event()
        self._modelled: dict[int, int] = {}
        self._read: dict[tuple[str, int], int] = {}
        self.per_second: Counter[int] = Counter()
        self.failure = ""

    def __enter__(self) -> Self:
        self._start_s = time.monotonic()
        self._consumer = Consumer(self._options)
        parts = [TopicPartition(t, n, 0) for t in self._take for n in range(self._partitions)]
        self._consumer.assign(parts)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._consumer.close()

    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    def has_passed(self, ends: Mapping[int, int]) -> bool:
        """Whether the model has scored, in each partition, an event at or after an offset."""
        return all(self._modelled.get(n, -1) >= at for n, at in ends.items())

    def is_at_end(self) -> bool:
        """Whether all that the outputs hold now has been read, as far as the broker answers."""
        asked = Consumer(self._options)  # one that a thread consumes with may never answer
        try:
            return all(
                self._read.get((topic, n), 0) >= end
                for topic in self._take
                for n in range(self._partitions)
                if (end := asked.get_watermark_offsets(TopicPartition(topic, n), _TIMEOUT_S)[1])
            )
        except KafkaException:
            return False
        finally:
            asked.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                messages = self._consumer.consume(_ROWS, _POLL_S)
            except KafkaException as exc:
                self.failure = str(exc)
                return
            for message in messages:
                if message.error() is not None:  # while the broker is away
                    continue
                topic, partition = str(message.topic()), int(message.partition() or 0)
                document = orjson.loads(message.value() or b"{}")
                if document["source"]["topic"] == self._events:
                    self._take[topic](document)
                self._read[topic, partition] = int(message.offset() or 0) + 1

    def _prediction(self, document: dict[str, Any]) -> None:
        partition, offset = _place(document)
        reason = document["fallback_reason"]
        self._ledger.predicted(_number(document["event_id"]), reason)
        self.per_second[int(self.now_s())] += 1
        if reason is None:
            self._modelled[partition] = max(self._modelled.get(partition, -1), offset)


def _place(document: Mapping[str, Any]) -> tuple[int, int]:
    source = document["source"]
    return source["partition"], source["offset"]


def _number(event_id: str) -> int:
    """The event's number, -1 for an id that nobody wrote."""
    try:
        return number_of(event_id)
    except ValueError:
        return -1
