"""Where a reference table's rows come from: a topic or a file, followed until told to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from udfs.enrichment.table_files import TableFileError, put_file, state_of
from udfs.enrichment.tables import TableRecordError, VersionedTable

__all__ = ["POLL_S", "FileSource", "KafkaAccess", "Sink", "Source", "TopicSink", "TopicSource"]

POLL_S = 0.5
_METADATA_S = 5.0


@dataclass(frozen=True)
class KafkaAccess:
    """How the tables' topics are read.

    Attributes:
        bootstrap_servers: host:port of the brokers, commas between them.
        properties: Further ones of librdkafka, as pairs.
    """

    bootstrap_servers: str = ""
    properties: tuple[tuple[str, str], ...] = ()


class Rows(Protocol):
    """What the records of a topic become rows of."""

    def row_of(self, document: Any) -> Any:
        """A record's row; raises ValueError if it cannot be one."""

    def put(self, key: str, row: Any, time_ms: int) -> object:
        """Take a row; None is a tombstone."""


class TopicSink(Protocol):
    """What a topic fills."""

    @property
    def table(self) -> Rows:
        """Takes the rows."""

    def took(self, records: int) -> None:
        """Count records that were read."""

    def refuse(self, where: str, why: str) -> None:
        """Count and log a record that cannot be used."""


class Sink(Protocol):
    """What any source fills."""

    table: VersionedTable

    def took(self, records: int) -> None:
        """Count records that were read."""

    def refuse(self, where: str, why: str) -> None:
        """Count and log a record that cannot be used."""


class Source(Protocol):
    """Where a table's rows come from."""

    def state(self) -> str:
        """What is missing still, for the log; empty if all that is there was read."""

    def read(self, stop: Event, on_complete: Callable[[], None]) -> None:
        """Follow until ``stop``; call ``on_complete`` whenever all that is there was read."""


class TopicSource:
    """Reads a topic's partitions from their beginning, and goes on where it was after an error."""

    def __init__(self, topic: str, kafka: KafkaAccess, into: TopicSink) -> None:
        self._topic = topic
        self._into = into
        self._next: dict[int, int] = {}
        self._state = f"topic {topic} is not read yet"
        self._options: dict[str, Any] = {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": "streamscore-tables",  # asked for, though nothing is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "error_cb": self._on_error,
            "log_level": 0,
        } | dict(kafka.properties)

    def state(self) -> str:
        """See ``Source``."""
        return self._state

    def read(self, stop: Event, on_complete: Callable[[], None]) -> None:
        """See ``Source``. Raises KafkaException; called again, it goes on where it was."""
        consumer = Consumer(self._options)
        try:
            partitions = self._partitions(consumer, stop)
            behind = set(partitions)
            consumer.assign([TopicPartition(self._topic, n, self._next.get(n, 0)) for n in behind])
            while not stop.is_set():
                for message in consumer.consume(1_000, POLL_S):
                    self._take(message, behind)
                if partitions and not behind:
                    self._state = ""
                    on_complete()
        finally:
            consumer.close()

    def _partitions(self, consumer: Consumer, stop: Event) -> list[int]:
        """The topic's partitions; waits until there is such a topic."""
        while not stop.is_set():
            try:
                found = consumer.list_topics(timeout=_METADATA_S).topics.get(self._topic)
            except KafkaException as exc:
                self._state = f"no broker answers: {exc.args[0].str()}"
                continue
            if found is not None and found.partitions:
                self._state = f"topic {self._topic} is not read to its end yet"
                return sorted(found.partitions)
            self._state = f"there is no topic {self._topic}"
            stop.wait(POLL_S)
        return []

    def _take(self, message: Message, behind: set[int]) -> None:
        error, partition = message.error(), int(message.partition() or 0)
        if error is None:
            self._put(message)
            self._next[partition] = int(message.offset() or 0) + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            behind.discard(partition)
        else:
            raise KafkaException(error)

    def _put(self, message: Message) -> None:
        table = self._into.table
        self._into.took(1)
        value, (_, time_ms) = message.value(), message.timestamp()
        try:
            key = _text(message.key())
            row = None if value is None else table.row_of(orjson.loads(value))
        except (TableRecordError, ValueError) as exc:
            self._into.refuse(
                f"partition {message.partition()} offset {message.offset()}", str(exc)
            )
        else:
            table.put(key, row, time_ms)

    def _on_error(self, error: KafkaError) -> None:
        self._state = error.str()


def _text(key: str | bytes | None) -> str:
    if not key:
        raise TableRecordError("it has no key")
    return key if isinstance(key, str) else key.decode()


class FileSource:
    """Reads a file, and again whenever it has changed."""

    def __init__(self, path: Path, into: Sink) -> None:
        self._path = path
        self._into = into
        self._state = ""

    def state(self) -> str:
        """See ``Source``."""
        return self._state

    def read(self, stop: Event, on_complete: Callable[[], None]) -> None:
        """See ``Source``."""
        seen: object = None
        while not stop.is_set():
            state = state_of(self._path)
            if state is None:
                self._state = f"there is no file {self._path}"
            elif state != seen:
                seen = state
                self._load()
            if not self._state:
                on_complete()
            stop.wait(POLL_S)

    def _load(self) -> None:
        try:
            put_file(self._into.table, self._path, self._into.refuse)
        except TableFileError as exc:
            self._state = str(exc)
            self._into.refuse("the file is", str(exc))
        else:
            self._state = ""
            self._into.took(len(self._into.table))
