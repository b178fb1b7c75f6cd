"""What a target refused or was given up, with the reason, in a topic of its own."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Protocol

import orjson
from confluent_kafka import KafkaError, KafkaException, Producer

from jobs.outlets.target import Message
from udfs.batches.records import SCHEMA_VERSION, source_of

_FLUSH_S = 60.0
_MAX_BYTES = 10_485_760


class DeadLetters(Protocol):
    """Keeps what cannot be handed on."""

    def add(self, message: Message, reason: str, attempts: int) -> None:
        """Another one."""

    def flush(self) -> None:
        """Return when all of them are safe."""


class KafkaDeadLetters:
    """Writes them to a topic.

    Args:
        bootstrap: host:port of the brokers.
        login: Further properties of librdkafka.
        topic: Where they go.
        source: The topic that was read.
        target: Who would not have them.
    """

    def __init__(
        self, bootstrap: str, login: Mapping[str, Any], topic: str, source: str, target: str
    ) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "message.max.bytes": _MAX_BYTES,
                **login,
            }
        )
        self._topic, self._source, self._target = topic, source, target
        self._errors: list[KafkaError] = []

    def add(self, message: Message, reason: str, attempts: int) -> None:
        """See ``DeadLetters``."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "target": self._target,
            "reason": reason,
            "attempts": attempts,
            "raw_base64": base64.b64encode(message.value).decode(),
            "source": source_of(self._source, message.partition, message.offset),
        }
        value = orjson.dumps(document)
        self._producer.produce(self._topic, value, message.key, on_delivery=self._delivered)

    def flush(self) -> None:
        """See ``DeadLetters``; raises KafkaException if the broker has not taken one."""
        left = self._producer.flush(_FLUSH_S)
        if self._errors:
            raise KafkaException(self._errors[0])
        if left:
            raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self._errors.append(error)
