"""What the feed demo writes to Kafka itself, and what it finds there at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Producer

from jobs.features.topics import KafkaReader
from jobs.settings import Settings
from udfs.ranking.log import PurchaseLog

__all__ = ["documents", "kinds_in", "write_history"]

_FLUSH_S = 60.0


def write_history(settings: Settings, log: PurchaseLog) -> int:
    """Write a log's purchases to the events topic; returns how many."""
    options: dict[str, Any] = {
        "bootstrap.servers": settings.kafka.bootstrap_servers,
        "linger.ms": 5,
        "acks": "all",
        "partitioner": "murmur2_random",
    }
    producer = Producer(options)
    for n in range(len(log)):
        user, price = str(log.user_ids[log.users[n]]), float(log.prices[n])
        event = {
            "event_id": f"history-{n}",
            "event_time_ms": int(log.times_ms[n]),
            "kind": "purchase",
            "user": user,
            "item": str(log.item_ids[log.items[n]]),
            **({} if np.isnan(price) else {"price": price}),
        }
        while True:
            try:
                producer.produce(settings.topics.events, orjson.dumps(event), user.encode())
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(_FLUSH_S):
        raise TimeoutError("Kafka did not take the history within a minute")
    return len(log)


def documents(settings: Settings, topic: str) -> Iterator[dict[str, Any]]:
    """All records of a topic now."""
    kafka = settings.kafka
    reader = KafkaReader(kafka.bootstrap_servers, kafka.python_properties(), lambda _s, _d: None)
    for chunk in reader.read(topic):
        for message in chunk:
            yield orjson.loads(message.value() or b"{}")


def kinds_in(settings: Settings) -> Counter[str]:
    """How many events of each kind are in the events topic, the history apart."""
    found: Counter[str] = Counter()
    for one in documents(settings, settings.topics.events):
        is_history = str(one.get("event_id", "")).startswith("history-")
        found["history" if is_history else one["kind"]] += 1
    return found
