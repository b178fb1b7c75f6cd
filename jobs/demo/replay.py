"""Sends a demo's input to Kafka at its pace: a history told again, faster than life."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from udfs.batches.events import FloatArray

TICK_S = 0.005


class Item(NamedTuple):
    """A record to be sent: a topic's role, ``events`` or ``labels``, key and value."""

    role: str
    key: bytes
    value: bytes


class Chunk(NamedTuple):
    """Records that follow each other.

    Attributes:
        items: In their order.
        places: Where each stands in the whole, float64 (items,), ascending, 0 to 1.
    """

    items: Sequence[Item]
    places: FloatArray


class Content(Protocol):
    """All that will be sent."""

    @property
    def events(self) -> int:
        """Records of the events topic, of all kinds."""

    @property
    def added(self) -> str:
        """How many records of which kinds are there beside the history's own, for a reader."""

    def chunks(self) -> Iterator[Chunk]:
        """The records in their order; a chunk is made when the one before it is sent."""


def due_s(places: FloatArray, duration_s: float, ramp_s: float) -> FloatArray:
    """When to send each item: the rate rises from 0 for ``ramp_s``, then it stays.

    Args:
        places: Parts of the whole, 0 to 1, ascending.
        duration_s: From the first item to the last.
        ramp_s: At most ``duration_s``.

    Returns:
        Seconds since the start, float64 of the same shape.
    """
    rate_per_s = 1 / (duration_s - ramp_s / 2)
    in_ramp = rate_per_s * ramp_s / 2
    rising = np.sqrt(2 * ramp_s * np.minimum(places, in_ramp) / rate_per_s)
    steady: FloatArray = rising + np.maximum(places - in_ramp, 0) / rate_per_s
    return steady


class Producer(Protocol):
    """What is used of confluent_kafka's producer."""

    def produce(
        self, topic: str, value: bytes, key: bytes, *, on_delivery: Callable[[Any, Any], None]
    ) -> None:
        """Queue a record; its Kafka timestamp is now."""

    def poll(self, timeout: float) -> int:
        """Report deliveries."""

    def flush(self, timeout: float) -> int:
        """Wait for the queue to empty; returns how many records are left."""


class ReplayError(RuntimeError):
    """Kafka did not take a record."""


class Replay:
    """Sends a content to Kafka at its pace; ``events_sent`` may be read from another thread.

    Args:
        content: What to send.
        topics: Topic name by role.
        duration_s: From the first item to the last.
        ramp_s: How long the rate rises first.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        content: Content,
        topics: Mapping[str, str],
        duration_s: float,
        ramp_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._content = content
        self._events = content.events
        self._topics = topics
        self._pace = duration_s, ramp_s
        self._clock = clock
        self._sleep = sleep
        self._failure: Any = None
        self.events_sent = 0
        self.is_done = False

    @property
    def progress(self) -> float:
        """Which part of the events is sent, 0 to 1."""
        return self.events_sent / max(self._events, 1)

    def run(self, producer: Producer, stop: threading.Event) -> None:
        """Send everything, or until ``stop`` is set.

        Args:
            producer: Where to.
            stop: Looked at at every tick.

        Raises:
            ReplayError: Kafka refused a record, or did not take the last ones within 30 s.
        """
        begun_s = self._clock()
        for chunk in self._content.chunks():
            self._run_chunk(chunk, producer, begun_s, stop)
        if left := producer.flush(30.0):
            raise ReplayError(f"Kafka did not take the last {left:,} records within 30 s")
        self._raise_failure()
        self.is_done = not stop.is_set()

    def _run_chunk(
        self, chunk: Chunk, producer: Producer, begun_s: float, stop: threading.Event
    ) -> None:
        due, at = due_s(chunk.places, *self._pace), 0
        while at < len(due) and not stop.is_set():
            end = int(np.searchsorted(due, self._clock() - begun_s, side="right"))
            self._send(chunk.items[at:end], producer)
            at = max(at, end)
            if at < len(due):
                self._sleep(TICK_S)

    def _send(self, items: Sequence[Item], producer: Producer) -> None:
        for item in items:
            self._produce(item, producer)
            self.events_sent += item.role == "events"
        producer.poll(0)
        self._raise_failure()

    def _produce(self, item: Item, producer: Producer) -> None:
        topic = self._topics[item.role]
        while True:
            try:
                producer.produce(topic, item.value, item.key, on_delivery=self._delivered)
            except BufferError:  # its queue is full
                producer.poll(0.1)
            else:
                return

    def _delivered(self, error: Any, _message: Any) -> None:
        self._failure = self._failure or error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise ReplayError(f"Kafka refused a record: {self._failure}")
