"""Reads predictions from whichever version is current."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import orjson
from confluent_kafka import Consumer, Message, TopicPartition

from jobs.versions.control import Control, Generation, Offsets, is_end, received

Place = tuple[int, int]
"""Partition and offset of an input."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One that counts.

    Attributes:
        version: Who made it.
        key: Of the Kafka record.
        value: The record.
        document: The record, parsed.
    """

    version: str
    key: bytes
    value: bytes
    document: dict[str, Any]


class Recent:
    """The newest so many places."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: dict[Place, None] = {}

    def is_new(self, place: Place) -> bool:
        """Whether it is not among them; it is then."""
        if place in self._places:
            return False
        self._places[place] = None
        if len(self._places) > self._most:
            del self._places[next(iter(self._places))]
        return True


class VersionReader:
    """A consumer of the predictions that moves to another version when the control record says so.

    Delivery: at least once, as of any consumer that commits after its work; none is lost in a move.
    An input's prediction is given once while the reader runs: repeats, of a failure of the job or
    of an input that two versions have scored about the moment of the cutover, are dropped as long
    as their input is among the last ``remembered`` ones. After a restart of the reader what was not
    committed comes again, possibly from the other version, with the same ``prediction_id``.

    One process reads all partitions.

    Args:
        options: Of librdkafka, with ``bootstrap.servers``.
        predictions: The predictions topic as the settings name it.
        control: The control topic.
        group: Consumer group, to go on where the last ``commit`` was.
        remembered: Inputs by which repeats are known.
    """

    def __init__(
        self,
        options: Mapping[str, str],
        predictions: str,
        control: str,
        group: str,
        remembered: int = 100_000,
    ) -> None:
        self._control = Control(options, control, predictions)
        self._consumer = Consumer(
            {
                **options,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
            }
        )
        self._recent = Recent(remembered)
        self._number = self._committed_number()
        self._at: Offsets = {}
        self._move(self._number, resumed=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; what was not committed will be read again."""
        self._consumer.close()
        self._control.close()

    @property
    def generation(self) -> Generation:
        """The one that is being read."""
        return self._control.generations[self._number]

    def poll(self, timeout_s: float = 0.1, most: int = 500) -> list[Prediction]:
        """The next predictions; none if there is nothing new in that time."""
        self._control.refresh()
        if self._is_passed() and self._number + 1 < len(self._control.generations):
            self._move(self._number + 1, resumed=False)
        messages = self._consumer.consume(most, timeout_s)
        return list(self._counting(messages))

    def commit(self) -> None:
        """Remember the place: all that ``poll`` gave so far has been dealt with."""
        topic = self.generation.topic
        places = [TopicPartition(topic, n, at) for n, at in self._at.items()]
        number = TopicPartition(self._control.topic, 0, self._number)
        self._consumer.commit(offsets=[*places, number], asynchronous=False)

    def _committed_number(self) -> int:
        asked = [TopicPartition(self._control.topic, 0)]
        (found,) = self._consumer.committed(asked, timeout=15)
        newest = len(self._control.generations) - 1
        return min(found.offset, newest) if found.offset >= 0 else newest

    def _move(self, number: int, *, resumed: bool) -> None:
        self._number = number
        generation = self._control.generations[number]
        metadata = self._consumer.list_topics(generation.topic, timeout=15)
        parts = sorted(metadata.topics[generation.topic].partitions)
        self._at = {n: generation.begin.get(n, 0) for n in parts}
        if resumed:
            asked = [TopicPartition(generation.topic, n) for n in parts]
            found = self._consumer.committed(asked, timeout=15)
            self._at |= {p.partition: p.offset for p in found if p.offset >= 0}
        self._consumer.assign(
            [TopicPartition(generation.topic, n, at) for n, at in self._at.items()]
        )

    def _is_passed(self) -> bool:
        end = self.generation.end
        return end is not None and all(at >= end.get(n, 0) for n, at in self._at.items())

    def _counting(self, messages: list[Message]) -> Iterator[Prediction]:
        generation = self.generation
        later = self._control.generations[self._number + 1 :]
        for message in received(messages):
            partition, offset = int(message.partition() or 0), int(message.offset() or 0)
            if message.topic() != generation.topic:
                continue
            if is_end(message):
                self._at[partition] = max(self._at[partition], offset)
                continue
            self._at[partition] = offset + 1
            value = message.value() or b"{}"
            document = orjson.loads(value)
            place = document["source"]["partition"], document["source"]["offset"]
            counts = generation.takes(*place) and not (later and later[0].takes(*place))
            if counts and self._recent.is_new(place):
                yield Prediction(generation.version, message.key() or b"", value, document)
