"""The topic of examples as arrays to train on: each request once, corrections applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from jobs.environment import NotReadyError
from jobs.settings import Settings

__all__ = ["Examples", "examples_of", "read_examples"]

_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled candidates, request by request in the order of event time.

    Attributes:
        columns: Names of the features.
        features: float32 (n, columns); NaN is missing.
        labels: float32 (n,): 1 where the user answered, else 0.
        requests: int64 (n,): number of the request, ascending from 0.
        positions: int64 (n,): place in the answer, from 0.
        times_ms: Event time of the request, int64 (n,).
        corrected: Labels that a late interaction set.
    """

    columns: tuple[str, ...]
    features: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    requests: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    times_ms: npt.NDArray[np.int64]
    corrected: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def request_count(self) -> int:
        """How many requests there are."""
        return int(self.requests[-1]) + 1 if len(self) else 0

    def part(self, rows: npt.NDArray[np.bool_]) -> Examples:
        """Some requests, numbered anew.

        Args:
            rows: bool (n,), the same for all of a request.
        """
        numbers = np.unique(self.requests[rows], return_inverse=True)[1].astype(np.int64)
        return Examples(
            self.columns,
            self.features[rows],
            self.labels[rows],
            numbers,
            self.positions[rows],
            self.times_ms[rows],
            self.corrected,
        )


def read_examples(settings: Settings) -> Examples:
    """All that is in the topic now.

    Raises:
        NotReadyError: Kafka does not answer, or there is no example yet.
    """
    topic = settings.topics.examples
    if topic is None:
        raise NotReadyError("topics.examples names no topic", "name it, and run the ranking job")
    kafka = settings.kafka
    options = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "group.id": f"{kafka.group_id}-training",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "log_level": 0,
        **kafka.python_properties(),
    }
    consumer = Consumer(options)
    try:
        found = examples_of(_values(consumer, topic))
    except KafkaException as exc:
        raise NotReadyError(
            f"topic {topic} cannot be read: {exc.args[0].str()}", "start Kafka"
        ) from exc
    finally:
        consumer.close()
    if not len(found):
        raise NotReadyError(f"topic {topic} has no example", "let the job run for a window")
    return found


def _values(consumer: Consumer, topic: str) -> Iterator[bytes]:
    parts = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic].partitions
    behind = set(parts)
    consumer.assign([TopicPartition(topic, n, 0) for n in parts])
    while behind:
        for message in consumer.consume(500, _TIMEOUT_S):
            error = message.error()
            if error is None:
                yield message.value() or b""
            elif error.code() == KafkaError._PARTITION_EOF:
                behind.discard(int(message.partition() or 0))
            else:
                raise KafkaException(error)


def examples_of(values: Iterable[bytes]) -> Examples:
    """Examples from the topic's records, which may be there twice.

    Those with other columns than the newest are left out: another version's features.
    """
    documents: dict[str, dict[str, Any]] = {}
    late: list[tuple[str, str]] = []
    for value in values:
        document = orjson.loads(value)
        if document["kind"] == "late":
            late.append((document["request_id"], document["item"]))
        else:
            documents.setdefault(document["example_id"], document)
    ordered = sorted(documents.values(), key=lambda d: (d["event_time_ms"], d["example_id"]))
    columns = tuple(ordered[-1]["columns"]) if ordered else ()
    chosen = [d for d in ordered if tuple(d["columns"]) == columns]
    corrected = _correct({d["example_id"]: d for d in chosen}, late)
    sizes = [len(d["items"]) for d in chosen]
    items = [one for d in chosen for one in d["items"]]
    rows = [[np.nan if v is None else v for v in one["features"]] for one in items]
    times = np.array([d["event_time_ms"] for d in chosen], np.int64)
    return Examples(
        columns,
        np.array(rows, np.float32).reshape(len(items), len(columns)),
        np.array([one["label"] for one in items], np.float32),
        np.repeat(np.arange(len(chosen)), sizes),
        np.array([one["position"] for one in items], np.int64),
        np.repeat(times, sizes),
        corrected,
    )


def _correct(documents: dict[str, dict[str, Any]], late: list[tuple[str, str]]) -> int:
    corrected = 0
    for request_id, item in late:
        for one in documents.get(request_id, {"items": ()})["items"]:
            if one["item"] == item and not one["label"]:
                one["label"] = 1
                corrected += 1
    return corrected
