"""Which version of the predictions readers follow: one record of a compacted topic.

The record lists the generations, the oldest first: each is a version and the inputs, by partition
and offset of the events topic, from which on its predictions count. A prediction names its input,
so every input counts in exactly one generation, whatever the order in which versions write.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import orjson
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from jobs.environment import NotReadyError
from jobs.versions.naming import BASE

KEY = b"current"
_TIMEOUT_S = 15.0

Offsets = dict[int, int]
"""By partition."""


class ControlError(NotReadyError):
    """The control topic cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A version while readers follow it.

    Attributes:
        version: Its name.
        topic: Where its predictions are.
        inputs: The first input of each partition of the events topic whose prediction counts here;
            0 of one that is absent.
        begin: Where in ``topic`` reading begins, so that none of them is missed; 0 if absent.
        end: Where in ``topic`` all predictions that count here have been passed; none while it is
            the newest.
        switched_ms: When it took over, epoch ms; 0 of the first.
    """

    version: str
    topic: str
    inputs: Offsets = field(default_factory=dict)
    begin: Offsets = field(default_factory=dict)
    end: Offsets | None = None
    switched_ms: int = 0

    def takes(self, partition: int, offset: int) -> bool:
        """Whether an input's prediction counts here, as far as the beginning says."""
        return offset >= self.inputs.get(partition, 0)


Generations = tuple[Generation, ...]


def first(predictions: str) -> Generations:
    """Before any cutover."""
    return (Generation(BASE, predictions),)


def followed_by(generations: Generations, end: Offsets, new: Generation) -> Generations:
    """The generations with a further one; ``end`` is where the newest so far ends."""
    *earlier, newest = generations
    return (*earlier, replace(newest, end=dict(end)), new)


def dumps(generations: Generations) -> bytes:
    """The record's value."""
    document = {"schema_version": 1, "generations": [asdict(g) for g in generations]}
    return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)


def loads(value: bytes) -> Generations:
    """The generations of a record's value."""
    return tuple(
        Generation(
            g["version"],
            g["topic"],
            _offsets(g["inputs"]),
            _offsets(g["begin"]),
            None if g["end"] is None else _offsets(g["end"]),
            g["switched_ms"],
        )
        for g in orjson.loads(value)["generations"]
    )


def _offsets(document: Mapping[str, int]) -> Offsets:
    return {int(partition): offset for partition, offset in document.items()}


def create(admin: AdminClient, topics: Mapping[str, int], config: Mapping[str, str]) -> None:
    """Make topics that are not there yet, with the brokers' own replication.

    Args:
        admin: The client.
        topics: Partitions by name.
        config: Of each.

    Raises:
        ControlError: the brokers refused.
    """
    wanted = [NewTopic(name, n, -1, config=dict(config)) for name, n in topics.items()]
    try:
        for future in admin.create_topics(wanted, operation_timeout=_TIMEOUT_S).values():
            future.result()
    except KafkaException as exc:
        if exc.args[0].name() != "TOPIC_ALREADY_EXISTS":
            raise ControlError(f"no topic could be made: {exc}", "make it yourself") from exc


def is_end(message: Message) -> bool:
    """Whether a message is no record, but says that its partition has no more for now."""
    return message.error() is not None


def received(messages: Sequence[Message]) -> Iterator[Message]:
    """Records and ends of partitions; what the client tries again by itself is left out.

    Raises:
        ControlError: a message says that something went wrong for good.
    """
    for message in messages:
        error = message.error()
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            yield message
        elif not error.retriable() and error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise ControlError(f"cannot read {message.topic()}: {error}", "try again")


class Control:
    """Reads and writes the record.

    Args:
        options: Of librdkafka, with ``bootstrap.servers``.
        topic: The control topic; made if it is not there.
        predictions: The topic that readers follow before any cutover.
    """

    def __init__(self, options: Mapping[str, str], topic: str, predictions: str) -> None:
        self._options, self.topic = dict(options), topic
        self._generations = first(predictions)
        create(AdminClient(dict(options)), {topic: 1}, {"cleanup.policy": "compact"})
        self._consumer = Consumer(
            {
                **self._options,
                "group.id": "streamscore-control",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 100,
            }
        )
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        self._wait_end()

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    @property
    def generations(self) -> Generations:
        """As last read; ``refresh`` reads what has come since."""
        return self._generations

    def refresh(self) -> Generations:
        """Take what has come; does not wait."""
        self._read(0.0)
        return self._generations

    def _wait_end(self) -> None:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not self._read(0.1):
            if time.monotonic() > deadline_s:
                raise ControlError(f"{self.topic} does not answer", "see kafka.bootstrap_servers")

    def _read(self, timeout_s: float) -> bool:
        """Take what there is; returns whether the end was met."""
        ended = False
        for message in received(self._consumer.consume(100, timeout_s)):
            ended |= is_end(message)
            if not is_end(message) and message.key() == KEY and message.value():
                self._generations = loads(message.value() or b"")
        return ended

    def write(self, generations: Generations) -> None:
        """Let readers follow; returns when the brokers have it.

        Raises:
            ControlError: they do not take it.
        """
        producer = Producer({**self._options, "acks": "all", "enable.idempotence": True})
        failed: list[object] = []
        producer.produce(
            self.topic,
            dumps(generations),
            KEY,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
        if producer.flush(_TIMEOUT_S) or failed:
            raise ControlError(f"{self.topic} was not written: {failed}", "try again")
        self._generations = generations
