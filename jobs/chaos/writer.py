"""Writes events at a rate, whatever happens to the broker, and knows which ones it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaException, Message, Producer

from jobs.chaos.events import Event, events, poison
from jobs.chaos.ledger import Ledger
from jobs.settings import Settings

_TICK_S = 0.02
_MOST_AT_ONCE = 2_000
_COPY_EVERY = 200
_FLUSH_S = 120.0


class WriterError(RuntimeError):
    """The broker refused a record for good, so the account is not one of the job."""


class Writer:
    """Writes in a thread from its start to its end; a context manager.

    Args:
        settings: Of the job, with an address that leads to the broker directly.
        ledger: Where it keeps what it has written.
        rate: Events a second, on average: after an outage it catches up.
        seed: Of the events.
    """

    def __init__(self, settings: Settings, ledger: Ledger, rate: float, seed: int) -> None:
        self._topic = settings.topics.events
        self._id_field = settings.schema_.event.id
        self._events: Iterator[Event] = events(settings.schema_, seed)
        self._spoiled: Iterator[Event] = events(settings.schema_, seed + 1)
        self._ledger = ledger
        self._rate = rate
        self.partitions = settings.topics.partitions
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 0,
                "queue.buffering.max.messages": 1_000_000,
                "message.timeout.ms": 0,  # the broker comes back
                "socket.timeout.ms": 10_000,
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 1_000,
            }
        )
        self._ended = threading.Event()
        self._poison_due = 0
        self._poisoned = 0
        self._ends: dict[int, int] = {}
        self.failure = ""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._guarded, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self.finish()

    def finish(self) -> None:
        """Wait until the broker has all that was written.

        Raises:
            WriterError: it does not take it.
        """
        self._ended.set()
        self._thread.join()
        left = self._producer.flush(_FLUSH_S)
        if left or self.failure:
            raise WriterError(self.failure or f"the broker did not take {left:,} records")

    def ends(self) -> dict[int, int]:
        """The offset after the last record that the broker has taken, by partition."""
        return {n: self._ends.get(n, 0) for n in range(self.partitions)}

    def poison(self, count: int) -> None:
        """Write so many records that must be refused, among the next events."""
        self._poison_due += count

    def sees_partitions(self) -> int:
        """How many partitions the events topic has, as far as its producer knows."""
        with suppress(KafkaException):
            found = self._producer.list_topics(self._topic, timeout=5).topics[self._topic]
            return len(found.partitions)
        return 0

    def _guarded(self) -> None:
        try:
            self._run()
        except (KafkaException, BufferError) as exc:
            self.failure = str(exc)

    def _run(self) -> None:
        start_s = time.monotonic()
        while not self._ended.is_set() and not self.failure:
            due = int((time.monotonic() - start_s) * self._rate) - self._ledger.written
            for _ in range(min(due, _MOST_AT_ONCE)):
                self._write_next()
            self._producer.poll(0)
            if due < _MOST_AT_ONCE:
                time.sleep(_TICK_S)

    def _write_next(self) -> None:
        event, ledger = next(self._events), self._ledger
        self._produce(event, event.value)
        ledger.written += 1
        if ledger.written % _COPY_EVERY == 0:
            self._produce(event, event.value)
            ledger.copies += 1
        if self._poison_due > self._poisoned:
            spoiled = next(self._spoiled)
            value = poison(spoiled, self._id_field, self._poisoned)
            self._poisoned += 1
            self._produce(spoiled, value, is_poison=True)

    def _produce(self, event: Event, value: bytes, *, is_poison: bool = False) -> None:
        partition = event.entity % self.partitions

        def delivered(error: Any, message: Message) -> None:
            if error is not None:
                self.failure = f"a record was refused: {error}"
                return
            at = int(message.offset() or 0)
            self._ends[partition] = max(self._ends.get(partition, 0), at + 1)
            if is_poison:
                self._ledger.poison.add((partition, at))

        while True:
            try:
                self._producer.produce(
                    self._topic, value, event.key, partition, on_delivery=delivered
                )
            except BufferError:
                self._producer.poll(0.1)
                if self._ended.is_set():
                    raise
            else:
                return
