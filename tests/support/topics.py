"""A compacted topic with a reference table."""

from __future__ import annotations

from typing import Any

import orjson
from confluent_kafka import Producer

from jobs.kafka_topics import create_topics


class TableTopic:
    """Writes a table's records; the topic is not there before ``create``.

    Args:
        bootstrap: host:port of a broker.
        name: The topic's.
        partitions: How many it gets.
    """

    def __init__(self, bootstrap: str, name: str, partitions: int = 2) -> None:
        self.name = name
        self._bootstrap = bootstrap
        self._partitions = partitions
        self._producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})

    def create(self) -> None:
        create_topics(self._bootstrap, {self.name: self._partitions}, {"cleanup.policy": "compact"})

    def put(self, rows: dict[str, Any], time_ms: int = 1_000) -> None:
        """Write rows, None for a tombstone; wait until the broker has them."""
        for key, row in rows.items():
            value = row if row is None or isinstance(row, bytes) else orjson.dumps(row)
            self._producer.produce(self.name, value, key.encode(), timestamp=time_ms)
        assert self._producer.flush(30) == 0
