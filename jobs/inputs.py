"""What a job reads: its topics as streams of micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyflink.common import Types
from pyflink.datastream import DataStream
from pyflink.table import StreamTableEnvironment

from jobs import sources
from jobs.settings import Settings
from jobs.starting import Position
from udfs.batches.routing import Routing
from udfs.stages.labels import LabelReader

BATCH = Types.PICKLED_BYTE_ARRAY()
ROUTED = Types.ROW([Types.INT(), BATCH])

_START = {
    "earliest": "earliest-offset",
    "latest": "latest-offset",
    "committed": "group-offsets",
}
_LOOKS_FOR_PARTITIONS = "10 s"
"""The connector's own is five minutes: so long the records of a new partition would wait."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The topics of a job.

    Attributes:
        tables: The table environment.
        settings: The job's.
        labels: The buckets' labels.
        positions: By topic, where its reading begins; the others as ``kafka.start`` says.
    """

    tables: StreamTableEnvironment
    settings: Settings
    labels: tuple[int, ...]
    positions: Mapping[str, Position]

    def events(self) -> DataStream:
        """The events as ``(bucket, records)``."""
        settings = self.settings
        key = (
            sources.key_from_record_key()
            if settings.kafka.keyed_by_record_key
            else sources.key_from_json(settings.key)
        )
        return sources.micro_batches(
            self.tables,
            "events",
            _events_options(settings, self.positions.get(settings.topics.events)),
            sources.bucket_expression(self.labels, key),
            settings.batch.window,
            ends=settings.kafka.stop_at_end,
            alignment=self._alignment(settings.event.time.field, settings.event.time.format),
        )

    def late_labels(self) -> DataStream:
        """The labels, checked, each on its way to its key's bucket."""
        settings, topic = self.settings, self.settings.topics.labels
        assert topic is not None
        assert settings.labels is not None
        batches = sources.micro_batches(
            self.tables,
            "labels",
            source_options(settings, topic, self.positions.get(topic)),
            str(self.labels[0]),
            settings.batch.label_window,
            ends=settings.kafka.stop_at_end,
            alignment=self._alignment(settings.labels.time, "epoch_ms"),
        )
        rate = settings.source.label_rate
        reader = LabelReader(settings.schema_, Routing(self.labels), topic, rate)
        return batches.flat_map(reader, ROUTED).name("labels").uid("labels")

    def _alignment(self, field: str, time_format: str) -> sources.Alignment | None:
        kafka = self.settings.kafka
        if kafka.align == "off":
            return None
        unit_ms = 1_000 if time_format == "epoch_s" else 1
        time = "kafka_time" if kafka.align == "kafka_time" else sources.event_time(field, unit_ms)
        return sources.Alignment(self.settings.name, kafka.align_drift, time)


def _events_options(settings: Settings, position: Position | None) -> dict[str, str]:
    kinesis = settings.kinesis
    if kinesis is None:
        return source_options(settings, settings.topics.events, position)
    return {
        "connector": "kinesis",
        "stream.arn": kinesis.stream_arn,
        "aws.region": kinesis.region,
        "source.init.position": {"earliest": "TRIM_HORIZON", "latest": "LATEST"}[kinesis.start],
        "format": "raw",
        **kinesis.options,
    }


def source_options(
    settings: Settings, topic: str, position: Position | None = None
) -> dict[str, str]:
    """The Kafka connector's options for a topic.

    Args:
        settings: The job's.
        topic: The topic.
        position: Where its reading begins; none as ``kafka.start`` says.
    """
    kafka = settings.kafka
    options = {
        "connector": "kafka",
        "topic": topic,
        "properties.bootstrap.servers": kafka.bootstrap_servers,
        "properties.group.id": kafka.group_id,
        "properties.auto.offset.reset": "earliest",
        "scan.startup.mode": _START[kafka.start],
        "scan.topic-partition-discovery.interval": _LOOKS_FOR_PARTITIONS,
        "key.format": "raw",
        "key.fields": "record_key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
    }
    if position is not None:
        options |= position.options
    if kafka.stop_at_end:
        options["scan.bounded.mode"] = "latest-offset"
    return options | client_properties(settings)


def client_properties(settings: Settings) -> dict[str, str]:
    """``kafka.properties`` as options of the Kafka connector."""
    return {f"properties.{k}": v for k, v in settings.kafka.java_properties().items()}
