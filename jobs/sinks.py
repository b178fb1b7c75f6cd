"""Kafka sinks: the JVM cuts a scored batch into its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyflink.common import TypeInformation, Types
from pyflink.datastream import DataStream
from pyflink.table import Schema, StreamTableEnvironment

from jobs.sources import with_options
from udfs.scoring.pairs import PAIRS

COLUMNS = ("predictions", "alerts", "dead_letters", "duplicates", "shadow")
"""The records of a scored batch, one sink each."""

OUTPUTS = "streamscore.outputs"
"""An option of the environment; ``NOWHERE`` has every sink take the records and write nothing."""

NOWHERE = "nowhere"

NO_OTHERS: Mapping[str, DataStream] = {}

_SINK = """
CREATE TEMPORARY TABLE `{column}_sink` (`record_key` BYTES, `payload` BYTES) WITH ({options})
"""

# Bytes all the way: as one text, each record would be searched for separators and encoded again.
# Pairs are arrays, as PyFlink converts an array several times faster than a row.
_INSERT = "INSERT INTO `{column}_sink` {records}"
_RECORDS = """
SELECT pair[1], pair[2] FROM `{view}` CROSS JOIN UNNEST(`{column}`) AS records (pair)
"""


def row_type(columns: Sequence[str]) -> TypeInformation:
    """A row of records: for each sink an array of pairs, key and value."""
    return Types.ROW_NAMED(list(columns), [PAIRS] * len(columns))


OUTPUT_TYPE = row_type(COLUMNS)
"""A scored batch."""


def write(
    tables: StreamTableEnvironment,
    scored: DataStream,
    options: Mapping[str, Mapping[str, str]],
    others: Mapping[str, DataStream] = NO_OTHERS,
    columns: Sequence[str] = COLUMNS,
    view: str = "scored",
) -> None:
    """Attach the sinks to a stream of batches of records.

    Delivery is what the options say: at least once, or exactly once by Kafka transactions.

    Args:
        tables: The table environment.
        scored: Rows of ``row_type(columns)``.
        options: The Kafka connector's options of each column's sink; a column without them has
            none.
        others: Columns that get records of a further stream as well, of ``row_type([column])``.
        columns: The row's.
        view: A name for the stream that no other has.
    """
    _view(tables, view, scored, columns)
    for column, stream in others.items():
        _view(tables, f"{view}_{column}", stream, [column])
    statements = tables.create_statement_set()
    if tables.get_config().get(OUTPUTS, "") == NOWHERE:
        options = {column: {"connector": "blackhole"} for column in options}
    for column in options:
        views = [view, *([f"{view}_{column}"] if column in others else [])]
        # One sink for both: two of one name would share their transactions' ids.
        records = " UNION ALL ".join(_RECORDS.format(view=v, column=column) for v in views)
        tables.execute_sql(_SINK.format(column=column, options=with_options(options[column])))
        statements.add_insert_sql(_INSERT.format(column=column, records=records))
    statements.attach_as_datastream()


def _view(
    tables: StreamTableEnvironment, name: str, stream: DataStream, columns: Sequence[str]
) -> None:
    schema = Schema.new_builder()
    for column in columns:
        schema = schema.column(column, "ARRAY<ARRAY<BYTES>>")
    tables.create_temporary_view(name, tables.from_data_stream(stream, schema.build()))
