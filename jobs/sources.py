"""Kafka topics, or a Kinesis stream, as micro-batches, made by Flink in the JVM.

Records are grouped by bucket in a tumbling window of a few milliseconds and joined to one text, so
that Python is called once per batch. The window is Flink state: a checkpoint includes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyflink.common import Types
from pyflink.datastream import DataStream
from pyflink.table import StreamTableEnvironment

_SOURCE = """
CREATE TEMPORARY TABLE `{name}` (
  `record_key` BYTES,
  `payload` BYTES,
  `kafka_partition` INT METADATA FROM 'partition' VIRTUAL,
  `kafka_offset` BIGINT METADATA FROM 'offset' VIRTUAL,
  `kafka_time` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  {arrival}
) WITH ({options})
"""

# A shard's number stands for the partition. A sequence number has 56 digits: the last 15 stand for
# the offset, so that a double holds it.
_KINESIS = """
CREATE TEMPORARY TABLE `{name}` (
  `payload` BYTES,
  `shard` STRING METADATA FROM 'shard-id' VIRTUAL,
  `sequence` STRING METADATA FROM 'sequence-number' VIRTUAL,
  `kafka_time` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  `kafka_partition` AS CAST(SUBSTRING(`shard` FROM 9) AS INT),
  `kafka_offset` AS CAST(RIGHT(`sequence`, 15) AS BIGINT),
  {arrival}
) WITH ({options})
"""

_PROCESSING_TIME = "`arrival` AS PROCTIME()"
# Flink drops the timers of processing time when an input ends, and with them the windows that are
# open. Those of event time end with the input: here the event time is the clock's, read for each
# record, so that no record is late. Without an idle timeout: an input that is idle when it ends
# does not end the windows after it.
_CLOCK_AS_EVENT_TIME = """
  `arrival` AS CURRENT_ROW_TIMESTAMP(),
  WATERMARK FOR `arrival` AS `arrival`
"""

_BATCHES = """
SELECT bucket, ARRAY_JOIN(ARRAY_AGG(text), ' ') AS records
FROM TABLE(TUMBLE(TABLE `{name}_texts`, DESCRIPTOR(arrival), INTERVAL '{window}' SECOND(1)))
GROUP BY window_start, window_end, bucket
"""

# DECODE to Latin-1 keeps any byte: each becomes one character, and Python turns it back.
_TEXTS = """
CREATE TEMPORARY VIEW `{name}_texts` AS
SELECT
  {bucket} AS bucket,
  CONCAT_WS(
    ' ',
    CAST(kafka_partition AS STRING),
    CAST(kafka_offset AS STRING),
    CAST(EXTRACT(EPOCH FROM kafka_time) * 1000 + EXTRACT(MILLISECOND FROM kafka_time) AS STRING),
    CAST(CHAR_LENGTH(COALESCE(DECODE(payload, 'ISO-8859-1'), '')) AS STRING),
    COALESCE(DECODE(payload, 'ISO-8859-1'), '')
  ) AS text,
  arrival
FROM `{name}`
"""


def quoted(text: str) -> str:
    """A text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def with_options(options: Mapping[str, str]) -> str:
    """The body of a WITH clause."""
    return ", ".join(f"{quoted(k)} = {quoted(v)}" for k, v in options.items())


def bucket_expression(labels: Sequence[int], key_expression: str) -> str:
    """SQL for the label of a record's bucket.

    Args:
        labels: One label per bucket.
        key_expression: SQL text of the key; null or empty goes to the first bucket.
    """
    if len(labels) == 1:
        return str(labels[0])
    cases = " ".join(f"WHEN {n} THEN {label}" for n, label in enumerate(labels))
    hashed = f"MOD(ABS(CAST(HASH_CODE({key_expression}) AS BIGINT)), {len(labels)})"
    return f"CASE {hashed} {cases} ELSE {labels[0]} END"


def key_from_record_key() -> str:
    """The record's Kafka key as text."""
    return "COALESCE(DECODE(record_key, 'ISO-8859-1'), '')"


def key_from_json(field: str) -> str:
    """The key as a field of the record's JSON; null where the record is not JSON."""
    path = quoted(f"$.{field}")
    return f"COALESCE(JSON_VALUE(DECODE(payload, 'UTF-8'), {path} NULL ON ERROR), '')"


def source_table(name: str, options: Mapping[str, str], *, ends: bool = False) -> str:
    """SQL of the table that reads a source, by its options' connector."""
    template = _KINESIS if options["connector"] == "kinesis" else _SOURCE
    arrival = _CLOCK_AS_EVENT_TIME if ends else _PROCESSING_TIME
    return template.format(name=name, arrival=arrival, options=with_options(options))


def micro_batches(
    tables: StreamTableEnvironment,
    name: str,
    options: Mapping[str, str],
    bucket: str,
    window_ms: int,
    *,
    ends: bool = False,
) -> DataStream:
    """A topic as a stream of ``(bucket, records)``; see ``udfs.batches.events.split_batch``.

    Args:
        tables: The table environment.
        name: Name of the table to make.
        options: The connector's options: Kafka's or Kinesis'.
        bucket: SQL expression of the bucket's label.
        window_ms: Longest time a record waits for its batch.
        ends: Whether the topic is read to an end, which the last batches must survive.
    """
    tables.execute_sql(source_table(name, options, ends=ends))
    tables.execute_sql(_TEXTS.format(name=name, bucket=bucket))
    window = f"{window_ms / 1000:.3f}"
    table = tables.sql_query(_BATCHES.format(name=name, window=window))
    # Not to_data_stream: PyFlink's keyed operators want the row type that this one has.
    return tables.to_append_stream(table, Types.ROW([Types.INT(), Types.STRING()]))
