"""The topics of one job: what was written to them, and everything the job wrote back."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import orjson
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from jobs.kafka_broker import MESSAGE_MAX_BYTES
from jobs.kafka_topics import create_topics, partitions_of
from jobs.settings import Settings

Place = tuple[int, int]
"""Partition and offset."""

OUTPUTS = ("predictions", "alerts", "dead_letters", "duplicates", "shed", "shadow")


class Record(NamedTuple):
    """A record to be written."""

    partition: int
    key: bytes | None
    value: bytes | None
    time_ms: int | None = None


class Out(NamedTuple):
    """A record that the job wrote."""

    key: bytes
    document: dict[str, Any]

    @property
    def place(self) -> Place:
        """Where its input record is."""
        source = self.document.get("prediction", self.document)["source"]
        return source["partition"], source["offset"]

    @property
    def raw(self) -> bytes:
        """A dead letter's record."""
        return base64.b64decode(self.document["raw_base64"], validate=True)


@dataclass
class Traffic:
    """Writes to a job's inputs and reads its outputs, from their beginning.

    Attributes:
        settings: The job's; its topics are made here.
        sent: What was written to the events topic, by its place.
        outputs: What the job wrote, by the name of the topic's setting, in the order read.
    """

    settings: Settings
    sent: dict[Place, Record] = field(default_factory=dict)
    outputs: dict[str, list[Out]] = field(default_factory=lambda: {name: [] for name in OUTPUTS})
    accounted: set[Place] = field(default_factory=set)

    def __post_init__(self) -> None:
        bootstrap = self.settings.kafka.bootstrap_servers
        login: dict[str, Any] = self.settings.kafka.python_properties()
        create_topics(bootstrap, partitions_of(self.settings.topics), login=login)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 0,
                **login,
                "log_level": 0,
                "message.max.bytes": MESSAGE_MAX_BYTES,
            }
        )
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"{self.settings.kafka.group_id}-test",
                "enable.auto.commit": False,
                "log_level": 0,
                "fetch.message.max.bytes": MESSAGE_MAX_BYTES,
                "fetch.wait.max.ms": 20,
                **login,
            }
        )
        topics = self.settings.topics
        self._names = {t: name for name in OUTPUTS if (t := getattr(topics, name))}
        self._parts = [
            TopicPartition(topic, n, 0) for topic in self._names for n in range(topics.partitions)
        ]
        self._read: dict[tuple[str, int], int] = {(p.topic, p.partition): 0 for p in self._parts}
        self._consumer.assign(self._parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._producer.flush(10)
        self._consumer.close()

    def send(self, *records: Record) -> list[Place]:
        """Write events and wait until the broker has them; returns their places."""
        places: list[Place] = []
        for record in records:
            self._produce(self.settings.topics.events, record, places.append)
        assert self._producer.flush(30) == 0
        return places

    def send_labels(self, records: Iterable[Record]) -> None:
        assert self.settings.topics.labels is not None
        for record in records:
            self._produce(self.settings.topics.labels, record, lambda _: None)
        assert self._producer.flush(30) == 0

    def _produce(self, topic: str, record: Record, then: Callable[[Place], object]) -> None:
        events = topic == self.settings.topics.events

        def delivered(error: object, message: Message) -> None:
            assert error is None, error
            place = (int(message.partition() or 0), int(message.offset() or 0))
            then(place)
            if events:
                self.sent[place] = record

        extra = {} if record.time_ms is None else {"timestamp": record.time_ms}
        self._producer.produce(
            topic,
            record.value,
            record.key,
            record.partition,
            on_delivery=delivered,
            **extra,
        )
        self._producer.poll(0)

    def pump(
        self, records: Sequence[Record], needed: Callable[[int], int], timeout_s: float = 120.0
    ) -> None:
        """Write events, never too far ahead of what the job has accounted for.

        Args:
            records: What to write, in that order.
            needed: For the n-th record, how many of the first must have an output before it.
            timeout_s: Longest wait for one of them.
        """
        places: dict[int, Place] = {}
        done = 0

        def is_done() -> bool:
            return done in places and places[done] in self.accounted

        for number, record in enumerate(records):
            while done < needed(number):
                self.poll_until(is_done, timeout_s)
                done += 1
            self._produce(
                self.settings.topics.events, record, lambda p, n=number: places.update({n: p})
            )
        assert self._producer.flush(30) == 0

    def poll(self, timeout_s: float = 0.02) -> None:
        """Read what has come."""
        for message in self._consumer.consume(500, timeout_s):
            self._take(message)
        self._producer.poll(0)

    def poll_until(self, done: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Read until it is so."""
        deadline_s = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline_s:
                counts = {name: len(found) for name, found in self.outputs.items()}
                raise AssertionError(
                    f"after {timeout_s:.0f} s: sent {len(self.sent)}, accounted for "
                    f"{len(self.accounted)}, read {counts}"
                )
            self.poll()

    def _take(self, message: Message) -> None:
        assert message.error() is None, message.error()
        topic, partition = str(message.topic()), int(message.partition() or 0)
        self._read[topic, partition] = int(message.offset() or 0) + 1
        name = self._names[topic]
        out = Out(message.key() or b"", orjson.loads(message.value() or b"null"))
        self.outputs[name].append(out)
        source = out.document.get("source", {})
        if name not in ("alerts", "shadow") and source["topic"] == self.settings.topics.events:
            self.accounted.add(out.place)

    def wait_accounted(self, timeout_s: float = 120.0) -> None:
        """Read until every event written has an output."""
        self.poll_until(lambda: self.accounted >= self.sent.keys(), timeout_s)

    def read_to_end(self) -> None:
        """Read what is in the topics now; after the job's end that is all there will be."""
        ends = {
            (p.topic, p.partition): self._consumer.get_watermark_offsets(p, timeout=10)[1]
            for p in self._parts
        }
        self.poll_until(lambda: all(self._read[part] >= end for part, end in ends.items()), 30)

    def predictions(self) -> dict[Place, Out]:
        """The predictions by their input's place; the last one where there are several."""
        return {out.place: out for out in self.outputs["predictions"]}
