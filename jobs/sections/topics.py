"""A job's topics, and a stream of Kinesis in place of the events'."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from jobs.sections.names import Topic
from udfs.definition.types import Strict


class TopicSettings(Strict):
    """Topic names."""

    events: Topic = Field("transactions", description="the events to score")
    labels: Topic | None = Field(None, description="late labels; none if no feature reads them")
    predictions: Topic = Field("predictions", description="one record per scored event")
    alerts: Topic = Field("alerts", description="predictions above the threshold with their event")
    dead_letters: Topic = Field("dead-letters", description="records that could not be scored")
    duplicates: Topic = Field("duplicates", description="records dropped because their id was seen")
    shed: Topic | None = Field(None, description="events that `overload` has shed, with the reason")
    shadow: Topic | None = Field(None, description="a rollout's shadow answers; none drops them")
    impressions: Topic | None = Field(
        None, description="a ranking job's: what was ranked for a request, with its features"
    )
    examples: Topic | None = Field(
        None, description="a ranking job's: impressions with their labels, to train on"
    )
    popularity: Topic | None = Field(
        None, description="a ranking job's: popularity by item, compacted"
    )
    partitions: int = Field(4, ge=1, description="partitions of topics that `stack up` makes")


class KinesisSettings(Strict):
    """A stream of events on Amazon Kinesis, in place of the events' topic."""

    stream_arn: str = Field(description="ARN of the stream, arn:aws:kinesis:...")
    region: str = Field(description="AWS region of the stream, as eu-central-1")
    jar: Path = Field(description="Flink's Kinesis SQL connector, a jar with all it needs")
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="where a job without a checkpoint begins"
    )
    options: dict[str, str] = Field(
        default_factory=dict, description="passed to the connector, e.g. source.reader.type"
    )
