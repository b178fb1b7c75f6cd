"""Faults that the brokers make themselves when they are asked to."""

from __future__ import annotations

from dataclasses import dataclass

from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

from jobs.chaos.broker import Brokers
from jobs.chaos.fault import Fault
from jobs.chaos.writer import Writer
from jobs.kafka_topics import create_topics, probe

_ANSWER_S = 30.0


@dataclass
class MorePartitions(Fault):
    """One more partition of the events topic, used at once; it stays."""

    bootstrap: str
    topic: str
    writer: Writer

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        count = self.writer.partitions + 1
        client = probe(self.bootstrap)
        changed = client.create_partitions([NewPartitions(self.topic, count)])
        changed[self.topic].result(_ANSWER_S)
        while self.writer.sees_partitions() < count:
            continue  # each look waits for the broker's answer
        self.writer.partitions = count
        return f"{count} partitions"

    def heal(self) -> None:
        """See ``Fault``."""


@dataclass
class LostTopic(Fault):
    """An output topic is deleted, and made again: of alerts, which nobody counts."""

    bootstrap: str
    topic: str
    partitions: int

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        client = probe(self.bootstrap)  # kept: one that is collected gives up its questions
        deleted = client.delete_topics([self.topic], request_timeout=_ANSWER_S)
        deleted[self.topic].result(_ANSWER_S)
        return f"{self.topic} deleted"

    def heal(self) -> None:
        """See ``Fault``."""
        create_topics(self.bootstrap, {self.topic: self.partitions})


@dataclass
class MovedLeader(Fault):
    """The broker that leads most partitions stops as in a rolling restart: others lead them.

    It is started again, and gets its partitions back when every replica is in sync.
    """

    brokers: Brokers
    topic: str
    _moved: bool = False

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        self._moved = True
        leader = self.brokers.leader(self.topic)
        leader.stop()
        after = self.brokers.leader(self.topic)
        return f"broker {leader.node} stopped, {after.node} leads"

    def heal(self) -> None:
        """See ``Fault``."""
        self.brokers.revive()
        if self._moved:
            self.brokers.wait_settled()
            self._moved = False
