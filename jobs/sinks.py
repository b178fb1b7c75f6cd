"""Kafka sinks: a scored batch's texts, cut in the JVM into one record each."""

from __future__ import annotations

from collections.abc import Mapping

from pyflink.common import Types
from pyflink.datastream import DataStream
from pyflink.table import Schema, StreamTableEnvironment

from jobs.sources import with_options

COLUMNS = ("predictions", "alerts", "dead_letters", "duplicates")
"""The texts of a scored batch, one sink each."""

OUTPUT_TYPE = Types.ROW_NAMED(list(COLUMNS), [Types.STRING()] * len(COLUMNS))

_SINK = """
CREATE TEMPORARY TABLE `{column}_sink` (`record_key` STRING, `payload` STRING) WITH ({options})
"""

_INSERT = """
INSERT INTO `{column}_sink`
SELECT SPLIT_INDEX(line, U&'\\001F', 0), SPLIT_INDEX(line, U&'\\001F', 1)
FROM (SELECT `{column}` FROM `scored` WHERE `{column}` <> '') AS batches
CROSS JOIN UNNEST(SPLIT(`{column}`, U&'\\000A')) AS records (line)
"""


def write(
    tables: StreamTableEnvironment, scored: DataStream, options: Mapping[str, Mapping[str, str]]
) -> None:
    """Attach the four sinks to a stream of scored batches.

    Delivery is what the options say: at least once, or exactly once by Kafka transactions.

    Args:
        tables: The table environment.
        scored: Rows of ``OUTPUT_TYPE``.
        options: The Kafka connector's options of each column's sink.
    """
    schema = Schema.new_builder()
    for column in COLUMNS:
        schema = schema.column(column, "STRING")
    tables.create_temporary_view("scored", tables.from_data_stream(scored, schema.build()))
    statements = tables.create_statement_set()
    for column in COLUMNS:
        tables.execute_sql(_SINK.format(column=column, options=with_options(options[column])))
        statements.add_insert_sql(_INSERT.format(column=column))
    statements.attach_as_datastream()
