"""The SQL of a store in PostgreSQL: the table, its indexes, and TimescaleDB's parts."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.outlets.columns import BASE, IDENTITY
from jobs.outlets.settings import PostgresStoreSettings
from udfs.definition.types import format_duration

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def table_of(settings: PostgresStoreSettings) -> str:
    """The table's name as SQL has it."""
    return ".".join(map(quoted, settings.table.split(".")))


def init(settings: PostgresStoreSettings, features: Sequence[str]) -> str:
    """What makes the store; running it again does no harm, and adds columns of new features."""
    table = table_of(settings)
    columns = [f"  {quoted(name)} {kind}{_null(name)}" for name, kind in BASE.items()]
    identity = ", ".join(map(quoted, IDENTITY))
    parts = [
        f"CREATE TABLE IF NOT EXISTS {table} (\n" + ",\n".join(columns),
        f",\n  PRIMARY KEY ({identity})\n);\n",
    ]
    if features:
        added = [f"  ADD COLUMN IF NOT EXISTS {quoted(f)} double precision" for f in features]
        parts.append(f"ALTER TABLE {table}\n" + ",\n".join(added) + ";\n")
    parts.append(_indexes(settings))
    parts.append(_timescale(settings))
    return "".join(parts)


def _null(name: str) -> str:
    return "" if name in ("model_version", "fallback_reason") else " NOT NULL"


def _indexes(settings: PostgresStoreSettings) -> str:
    """By time alone: by entity and time is the primary key."""
    name = quoted(settings.table.split(".")[-1] + "_event_time")
    return f"CREATE INDEX IF NOT EXISTS {name} ON {table_of(settings)} (event_time DESC);\n"


def _timescale(settings: PostgresStoreSettings) -> str:
    """A hypertable, compression and retention where the extension is; nothing elsewhere."""
    table = table_of(settings)
    literal = "'" + table.replace("'", "''") + "'"
    lines = [
        f"    PERFORM create_hypertable({literal}, 'event_time',",
        f"      chunk_time_interval => {_interval(settings.chunk)},",
        "      if_not_exists => true, migrate_data => true);",
    ]
    if settings.compress_after is not None:
        lines += [
            f"    ALTER TABLE {table} SET (timescaledb.compress,",
            "      timescaledb.compress_segmentby = 'key',",
            "      timescaledb.compress_orderby = 'event_time DESC, event_id');",
            f"    PERFORM add_compression_policy({literal}, {_interval(settings.compress_after)},",
            "      if_not_exists => true);",
        ]
    if settings.keep is not None:
        lines += [
            f"    PERFORM add_retention_policy({literal}, {_interval(settings.keep)},",
            "      if_not_exists => true);",
        ]
    return "\n".join(
        [
            "DO $store$ BEGIN",
            "  IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN",
            *lines,
            "  END IF;",
            "END $store$;\n",
        ]
    )


def _interval(duration_ms: int) -> str:
    text = format_duration(duration_ms)
    number = text.rstrip("msdh")
    return f"INTERVAL '{number} {_UNITS[text[len(number) :]]}'"


def upsert(settings: PostgresStoreSettings, columns: Sequence[str]) -> tuple[str, str, str]:
    """How rows get in: make a table of the session, copy into it, merge from it."""
    table, names = table_of(settings), ", ".join(map(quoted, columns))
    rest = [quoted(name) for name in columns if name not in IDENTITY]
    identity = ", ".join(map(quoted, IDENTITY))
    changed = ", ".join(f"{name} = EXCLUDED.{name}" for name in rest)
    rows = f"SELECT {names} FROM "  # noqa: S608 (names are quoted)
    return (
        f"CREATE TEMP TABLE IF NOT EXISTS incoming ON COMMIT DELETE ROWS AS {rows}{table} "
        "WITH NO DATA",
        f"COPY incoming ({names}) FROM STDIN (FORMAT csv)",
        f"INSERT INTO {table} ({names}) {rows}incoming "
        f"ON CONFLICT ({identity}) DO UPDATE SET {changed}",
    )
