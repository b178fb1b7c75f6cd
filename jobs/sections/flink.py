"""How Flink runs the job, and its micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from udfs.batches.buckets import DEFAULT_MAX_PARALLELISM
from udfs.definition.types import DurationMs, Mistake, Strict, format_duration


class BatchSettings(Strict):
    """Micro-batches: made in the JVM, one Python call each."""

    window: DurationMs = Field(10, ge=1, description="longest time a record waits for its batch")
    label_window: DurationMs = Field(100, ge=1, description="the same for labels")
    buckets: int = Field(
        2,
        ge=1,
        le=DEFAULT_MAX_PARALLELISM,
        description="key groups; bounds the parallelism, never changes",
    )
    max_rows: int = Field(512, ge=1, le=65_536, description="most rows in one Predict call")


class FlinkSettings(Strict):
    """How Flink runs the job."""

    profile: Literal["latency", "throughput", "large-state"] | None = Field(
        None,
        description="settings and options that conf/flink.yaml has for a purpose; own ones win",
    )
    parallelism: int = Field(1, ge=1, description="subtasks per operator")
    checkpoint_interval: DurationMs = Field(60_000, ge=100, description="time between checkpoints")
    checkpoint_dir: str = Field(
        "build/checkpoints", description="a folder or URL that every TaskManager reaches"
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="exactly_once shows predictions only at the next checkpoint",
    )
    transaction_timeout: DurationMs = Field(
        600_000,
        ge=1_000,
        description="exactly_once: how long Kafka keeps a transaction open, so the longest outage "
        "that loses nothing; at most the broker's transaction.max.timeout.ms",
    )
    restart_attempts: int = Field(100, ge=0, description="restarts before the job fails")
    restart_delay: DurationMs = Field(1_000, ge=0, description="pause before a restart")
    state_backend: Literal["hashmap", "rocksdb"] = Field("hashmap", description="keyed state")
    state_ttl: DurationMs | None = Field(
        None,
        description="idle keys are dropped after this event time; none: twice the horizon",
    )
    cached_entries: int = Field(
        8_000_000,
        ge=1,
        description="events kept unpacked per bucket, stage and stream, about 40 bytes each",
    )
    journal_events: int = Field(
        100_000,
        ge=0,
        description="events per bucket and stage stored as they came before their keys' histories "
        "are written anew; more: less writing, larger checkpoints, slower restarts",
    )
    web_port: int | None = Field(None, description="port of a local run's web page; none: free one")
    options: dict[str, str] = Field(default_factory=dict, description="any other Flink option")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        shortest = 2 * self.checkpoint_interval
        if self.delivery == "exactly_once" and self.transaction_timeout < shortest:
            message = f"must be at least two checkpoint intervals, {format_duration(shortest)}"
            yield Mistake(("transaction_timeout",), message)
