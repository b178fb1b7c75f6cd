"""Requests out and replies back over Kafka, matched by the request's id."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from functools import partial
from threading import Event as Flag
from threading import Thread
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from jobs.environment import NotReadyError
from jobs.gateway.bodies import Event
from jobs.gateway.partitions import partition_of

__all__ = ["Exchange", "NotDelivered"]

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_METADATA_S = 10.0
_DELIVERY_MS = 10_000
_LINGER_MS = 1
_TOLD_S = 0.05


class NotDelivered(RuntimeError):
    """Kafka did not take an event."""


class Exchange:
    """Writes events and reads the replies to one gateway. Belongs to one event loop.

    Each gateway has an id of its own, which is the key of its replies: it reads the one partition
    that such a key leads to, from its end.

    Attributes:
        gateway: The id.
        late: Replies that came after nobody waited for them any more.
    """

    def __init__(self, properties: dict[str, Any], events: str, replies: str) -> None:
        """Connect to nothing yet.

        Args:
            properties: Of librdkafka, ``bootstrap.servers`` among them.
            events: Topic that the job reads.
            replies: Topic that it answers to.
        """
        self.gateway = f"gateway-{uuid.uuid4().hex}"
        self.late = 0
        self._events, self._replies = events, replies
        self._properties = properties | {"log_level": 0, "error_cb": self._on_error}
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._stop = Flag()
        self._told: list[Event] = []
        self._threads: list[Thread] = []
        self._down = ""

    @property
    def trouble(self) -> str:
        """Why nothing can be asked now; empty if it can."""
        return self._down

    def start(self) -> None:
        """Find the partition of the replies and begin to read it.

        Raises:
            NotReadyError: Kafka does not answer, or has no such topic.
        """
        self._loop = asyncio.get_running_loop()
        self._producer = Producer(
            self._properties
            | {
                "linger.ms": _LINGER_MS,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "delivery.timeout.ms": _DELIVERY_MS,
            }
        )
        self._consumer = Consumer(
            self._properties
            | {"group.id": "streamscore-gateway", "enable.auto.commit": False}
            | {"fetch.wait.max.ms": 100}
        )
        self._consumer.assign([self._from_the_end()])
        self._begin("replies", self._read)
        self._begin("producer", self._serve_producer)

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        self._threads.append(Thread(target=work, name=f"gateway-{name}", daemon=True))
        self._threads[-1].start()

    def _from_the_end(self) -> TopicPartition:
        try:
            found = self._consumer.list_topics(self._replies, timeout=_METADATA_S)
            count = len(found.topics[self._replies].partitions)
            if not count:
                raise NotReadyError(
                    f"there is no topic {self._replies}", "run: streamscore stack up"
                )
            number = partition_of(self.gateway.encode(), count)
            part = TopicPartition(self._replies, number)
            # The number, not "end": what is written before the first fetch must be read, too.
            _, end = self._consumer.get_watermark_offsets(part, timeout=_METADATA_S)
        except KafkaException as exc:
            servers = self._properties["bootstrap.servers"]
            raise NotReadyError(f"no broker answers at {servers}", "start it") from exc
        return TopicPartition(self._replies, number, end)

    async def ask(self, request: Event, timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            TimeoutError: none came in time.
            NotDelivered: Kafka's queue is full.
        """
        request_id = request.document["event_id"]
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[request_id] = future
        try:
            self._write_told()
            self._produce(request, self._asked)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            del self._waiting[request_id]

    async def write(self, events: list[Event]) -> None:
        """Write events and wait until Kafka has them all.

        Raises:
            NotDelivered: it does not take one of them.
        """
        futures = []
        self._write_told()
        for event in events:
            future: asyncio.Future[None] = self._loop.create_future()
            self._produce(event, partial(self._call, _settle, future))
            futures.append(future)
        await asyncio.gather(*futures)

    def tell(self, event: Event) -> None:
        """Write an event some time soon, before what is written next, without waiting for it.

        It goes with the next request: a record by itself costs the broker and the job as much as
        one. Kafka's client tries for ten seconds.
        """
        if not self._told:
            self._loop.call_later(_TOLD_S, self._write_told)
        self._told.append(event)

    def _write_told(self) -> None:
        told, self._told = self._told, []
        for event in told:
            try:
                self._produce(event, self._asked)
            except NotDelivered as exc:
                logger.warning("event=not_delivered reason=%s", exc)

    def _asked(self, error: KafkaError | None) -> None:
        if error is not None:
            logger.warning("event=not_delivered reason=%s", error.str())

    def _produce(self, event: Event, done: Callable[[KafkaError | None], None]) -> None:
        try:
            self._producer.produce(
                self._events,
                orjson.dumps(event.document),
                event.user.encode(),
                on_delivery=lambda error, _message: done(error),
            )
        except BufferError as exc:
            raise NotDelivered("too many events wait for Kafka") from exc

    def _serve_producer(self) -> None:
        while not self._stop.is_set():
            self._producer.poll(_POLL_S)

    def _read(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(_POLL_S)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                self._on_error(error)
                continue
            self._down = ""
            if message.key() == self.gateway.encode():
                self._call(self._take, orjson.loads(message.value() or b"{}"))
        self._consumer.close()

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _take(self, reply: dict[str, Any]) -> None:
        future = self._waiting.get(reply.get("request_id", ""))
        if future is None or future.done():
            self.late += 1
        else:
            future.set_result(reply)

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = "no Kafka broker answers"

    def check(self) -> None:
        """Ask the brokers whether they are there; for another thread than the loop's."""
        try:
            self._producer.list_topics(self._events, timeout=2.0)
        except KafkaException as exc:
            self._down = f"no Kafka broker answers: {exc.args[0].str()}"
        else:
            self._down = ""

    def close(self, timeout_s: float) -> int:
        """Write what is left and stop reading; returns how many events were not written."""
        self._write_told()
        left = int(self._producer.flush(timeout_s))
        self._stop.set()
        for thread in self._threads:
            thread.join(_POLL_S * 20)
        return left


def _settle(future: asyncio.Future[None], error: KafkaError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(NotDelivered(error.str()))
