"""What a user declares about reading too much: which events wait for others, and which are shed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from udfs.definition.event import EventSpec
from udfs.definition.readable import unreadable
from udfs.definition.types import DurationMs, Mistake, Strict, format_duration
from udfs.features.series import kinds_of


class LagLimits(Strict):
    """How long events may have waited."""

    enter: DurationMs = Field(500, ge=1, description="shedding begins above it")
    leave: DurationMs = Field(100, ge=1, description="it ends below it")
    clock: Literal["kafka_time", "event_time"] = Field(
        "kafka_time",
        description="since when an event waits; event_time makes a replay of the past shed",
    )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if self.leave >= self.enter:
            message = f"must be below enter, {format_duration(self.enter)}, or it begins and ends"
            yield Mistake(("leave",), f"{message} without a pause")


class QueueLimits(Strict):
    """How full the calls to the model server may be; 1 is when the operator has to wait."""

    enter: float = Field(0.9, gt=0, le=1, description="shedding begins at this share")
    leave: float = Field(0.5, gt=0, le=1, description="it ends below it")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if self.leave >= self.enter:
            yield Mistake(("leave",), f"must be below enter, {self.enter:g}")


class OverloadSpec(Strict):
    """Events of low priority are sampled while there are more than can be dealt with."""

    low_priority: str = Field(
        description="formula; events for which it holds may be shed, e.g. amount < 20"
    )
    keep: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of them that is scored all the same, by a hash of the id",
    )
    before: Literal["features", "scoring"] = Field(
        "features",
        description="features: shed events cost least, and no feature knows of them; "
        "scoring: features stay right",
    )
    lag: LagLimits = Field(default_factory=lambda: LagLimits(), description="how long events wait")
    queue: QueueLimits = Field(
        default_factory=lambda: QueueLimits(),
        description="how full the calls to the model server are",
    )
    sustained: DurationMs = Field(
        250, ge=0, description="a limit counts when it is passed for so long without a pause"
    )
    warm_up: DurationMs = Field(
        30_000,
        ge=0,
        description="nothing is shed for so long after a start: a JVM is slow at first",
    )
    calm: DurationMs = Field(
        5_000,
        ge=100,
        description="after so long below leave, with no more events than could be scored before, "
        "the share that is kept grows by a quarter every second; if lag comes back it starts "
        "again, and the next wait is twice as long, at most retry",
    )
    retry: DurationMs = Field(
        300_000,
        ge=100,
        description="after so long below leave it is tried with however many events",
    )

    def unfit(self, event: EventSpec) -> Iterator[Mistake]:
        """What does not fit the events, below ``overload``."""
        yield from unreadable(("low_priority",), self.low_priority, kinds_of(event), "truth")


class SourceSpec(Strict):
    """How fast sources are read."""

    rate: float | None = Field(
        None, ge=100, description="events/s that a subtask reads at most; the rest waits in Kafka"
    )
    label_rate: float | None = Field(None, ge=100, description="the same for labels")
