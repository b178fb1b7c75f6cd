"""Reads a topic as a consumer group and hands it to one target: at least once, without loss.

Offsets are committed when each message before them has been taken or is in the dead letters. So
what a target does not take waits in Kafka, a killed process is continued where it was, and the job
that wrote the topic never waits. A message may be handed on twice: after a kill, and when another
process has taken over its partition meanwhile.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import confluent_kafka
from confluent_kafka import Consumer, KafkaException, TopicPartition

from jobs.outlets.dead_letters import DeadLetters
from jobs.outlets.metrics import OutletMetrics
from jobs.outlets.target import Fate, Message, Outcome, Target

logger = logging.getLogger(__name__)

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a topic is read and what fails is tried again.

    Attributes:
        bootstrap: host:port of the brokers.
        login: Further properties of librdkafka.
        topic: What is read.
        group: The consumer group.
        batch: Most messages at once.
        linger_ms: Longest wait for more of them.
        backoff_ms: Pause before the first repetition; doubles.
        max_backoff_ms: Longest pause.
        give_up_ms: Since the first try of a batch; then the rest are dead letters. None: never.
    """

    bootstrap: str
    login: Mapping[str, Any]
    topic: str
    group: str
    batch: int
    linger_ms: int
    backoff_ms: int
    max_backoff_ms: int
    give_up_ms: int | None = None


@dataclass(slots=True)
class _Work:
    """A batch under way."""

    messages: list[Message]
    begun_s: float
    attempts: int = 0
    left: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = self.messages

    def offsets(self, topic: str) -> list[TopicPartition]:
        """For each partition where to go on: the first message that is left, or after the last."""
        ends: dict[int, int] = {m.partition: m.offset + 1 for m in self.messages}
        for message in reversed(self.left):
            ends[message.partition] = message.offset
        return [TopicPartition(topic, partition, offset) for partition, offset in ends.items()]


class Worker:
    """Runs until it is told to stop.

    Args:
        options: What is read, and how.
        target: Who gets it; used by the thread of ``run`` alone.
        dead_letters: Where it goes that is refused or given up.
        metrics: Told of everything.
        stopping: Set to end ``run``: what is under way ends, what is not is left for the next one.
        clock_s: A monotonic clock.
        rng: The jitter's.
    """

    def __init__(
        self,
        options: WorkerOptions,
        target: Target,
        dead_letters: DeadLetters,
        metrics: OutletMetrics,
        stopping: Event,
        clock_s: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._options = options
        self._target = target
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._stopping = stopping
        self._clock_s = clock_s
        self._rng = rng or random.Random()  # noqa: S311 (jitter)
        self._ahead: list[Message] = []

    def run(self) -> None:
        """Read and hand on; raises KafkaException when the broker refuses us for good."""
        self._consumer = Consumer(self._properties())
        self._consumer.subscribe([self._options.topic])
        self._target.open()
        logger.info("%s: reading %s", self._target.name, self._options.topic)
        try:
            while not self._stopping.is_set():
                if messages := self._take():
                    self._settle(_Work(messages, self._clock_s()))
        finally:
            self._target.close()
            self._consumer.close()

    def _properties(self) -> dict[str, Any]:
        options = self._options
        return {
            "bootstrap.servers": options.bootstrap,
            "group.id": options.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "session.timeout.ms": 10_000,  # how soon a killed one's partitions are ours
            "max.poll.interval.ms": 900_000,
            "queued.max.messages.kbytes": 65_536,
            "partition.assignment.strategy": "cooperative-sticky",
            "fetch.wait.max.ms": 100,
            **options.login,
        }

    def _take(self) -> list[Message]:
        """The next messages: those there are when the first of them has waited long enough."""
        taken, self._ahead = self._ahead, []
        if not taken:
            taken = self._readable(self._consumer.consume(1, _POLL_S))
        if not taken:
            self._metrics.idle()
            return []
        deadline_s = self._clock_s() + self._options.linger_ms / 1_000
        while (left := self._options.batch - len(taken)) > 0 and not self._stopping.is_set():
            wait_s = max(0.0, deadline_s - self._clock_s())
            taken += self._readable(self._consumer.consume(left, min(wait_s, _POLL_S)))
            if wait_s <= 0:
                break
        return taken

    def _readable(self, found: Sequence[confluent_kafka.Message]) -> list[Message]:
        messages = []
        for message in found:
            if (error := message.error()) is not None:
                if error.fatal():
                    raise KafkaException(error)
                logger.warning("%s: %s", self._target.name, error.str())
                continue
            place = int(message.partition() or 0), int(message.offset() or 0)
            messages.append(Message(*place, message.key() or b"", message.value() or b""))
        return messages

    def _settle(self, work: _Work) -> None:
        """Hand on until nothing is left, or until the end."""
        while True:
            outcomes = self._target.deliver(work.left)
            work.attempts += 1
            reasons = self._sort(work, outcomes)
            if not work.left or self._stopping.is_set():
                break
            if self._is_hopeless(work):
                self._bury(work, reasons)
                break
            self._pause(work, reasons)
            if self._stopping.is_set():
                break
        self._dead_letters.flush()
        self._commit(work)

    def _sort(self, work: _Work, outcomes: Sequence[Outcome]) -> list[str]:
        """Keep what is to be tried again; the reasons of those."""
        again: list[Message] = []
        reasons: list[str] = []
        done = refused = 0
        for message, (fate, reason) in zip(work.left, outcomes, strict=True):
            if fate is Fate.RETRY:
                again.append(message)
                reasons.append(reason)
            elif fate is Fate.REFUSED:
                refused += 1
                self._dead_letters.add(message, reason, work.attempts)
            else:
                done += 1
        self._metrics.attempt(done, refused, len(again))
        work.left = again
        return reasons

    def _is_hopeless(self, work: _Work) -> bool:
        give_up_ms = self._options.give_up_ms
        return give_up_ms is not None and self._clock_s() - work.begun_s >= give_up_ms / 1_000

    def _bury(self, work: _Work, reasons: Sequence[str]) -> None:
        logger.error("%s: gave up %d messages", self._target.name, len(work.left))
        for message, reason in zip(work.left, reasons, strict=True):
            self._dead_letters.add(message, f"given up: {reason}", work.attempts)
        self._metrics.given_up(len(work.left))
        work.left = []

    def _pause(self, work: _Work, reasons: Sequence[str]) -> None:
        """Back off; the group is told all the while that we are alive."""
        options = self._options
        longest_ms = min(options.max_backoff_ms, options.backoff_ms * 2.0 ** (work.attempts - 1))
        pause_s = self._rng.uniform(0.5, 1.0) * longest_ms / 1_000
        logger.warning(
            "%s: %d to be tried again in %.1f s: %s",
            *(self._target.name, len(work.left), pause_s, reasons[0]),
        )
        until_s = self._clock_s() + pause_s
        self._consumer.pause(self._consumer.assignment())
        while (left_s := until_s - self._clock_s()) > 0 and not self._stopping.is_set():
            # A partition that has just been given to us is not paused: its messages come next.
            self._ahead += self._readable(self._consumer.consume(1, min(left_s, _POLL_S)))
        self._consumer.resume(self._consumer.assignment())

    def _commit(self, work: _Work) -> None:
        offsets = work.offsets(self._options.topic)
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as exc:
            # Another process has the partitions now, or the broker does not answer: these messages
            # are handed on again, or the next commit says so for them.
            error = exc.args[0]
            if error.fatal():
                raise
            logger.warning("%s: offsets are not committed: %s", self._target.name, error.str())
