"""What an outlet hands messages to, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """A record of the topic that is read.

    Attributes:
        partition: Its partition.
        offset: Its offset there.
        key: Its Kafka key.
        value: Its bytes.
    """

    partition: int
    offset: int
    key: bytes
    value: bytes


class Fate(Enum):
    """What became of a message."""

    DONE = "done"
    RETRY = "retry"
    REFUSED = "refused"


class Outcome(NamedTuple):
    """What became of a message, and why."""

    fate: Fate
    reason: str = ""


DONE = Outcome(Fate.DONE)


class Target(Protocol):
    """Takes messages. At least once: the same ones may come again after a failure.

    Attributes:
        name: In metrics, logs and the consumer group's name.
    """

    name: str

    def open(self) -> None:
        """Make ready, in the thread that will deliver."""

    def deliver(self, messages: Sequence[Message]) -> list[Outcome]:
        """Hand messages on; what became of each, in their order.

        A failure is an outcome, never an exception.
        """

    def close(self) -> None:
        """Let go of connections."""


def retry_all(messages: Sequence[Message], reason: str) -> list[Outcome]:
    """None was delivered, for one reason."""
    return [Outcome(Fate.RETRY, reason)] * len(messages)
