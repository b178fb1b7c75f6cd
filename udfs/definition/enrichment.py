"""What a user declares about data beside the events: reference tables and look-ups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from udfs.definition.event import EventSpec, FieldSpec
from udfs.definition.store_tls import StoreTlsSpec
from udfs.definition.types import DurationMs, Mistake, Strict, as_python, doubles

__all__ = [
    "CacheSpec",
    "FeastSpec",
    "LookupSpec",
    "PostgresSpec",
    "RedisSpec",
    "TableSpec",
    "dsn_mistakes",
    "mistakes_of",
]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE_KINDS = (".csv", ".jsonl", ".parquet")
_NO_PASSWORD = "holds a password: write it as `password: ${A_NAME}` beside it"  # noqa: S105 (a message)


class TableField(Strict):
    """A column of a reference table; events have it as ``<table>_<name>``."""

    name: str = Field(description="key in the record's JSON object, or column of the file")
    type: Literal["string", "float", "int", "bool"] = Field(description="JSON type of the value")
    default: str | float | int | bool | None = Field(
        None, description="value if the table has none for the event; none means missing"
    )

    def of(self, table: str) -> FieldSpec:
        """The event field that it becomes."""
        return FieldSpec(
            name=f"{table}_{self.name}", type=self.type, required=False, default=self.default
        )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        field = FieldSpec.model_construct(
            name=self.name, type=self.type, required=False, default=self.default
        )
        yield from field.mistakes()


class TableSpec(Strict):
    """A reference table, held in memory by every TaskManager."""

    name: str = Field(description="start of the fields' names: <table>_<field>")
    key: str = Field(description="event field, a string, that names a row")
    topic: str | None = Field(
        None, description="compacted Kafka topic: the key names the row, the value is JSON"
    )
    file: Path | None = Field(
        None, description=".csv, .jsonl or .parquet with a column named as `key`; read when changed"
    )
    fields: tuple[TableField, ...] = Field(
        min_length=1, description="columns that events get as fields"
    )
    as_of: Literal["event_time", "latest"] = Field(
        "event_time",
        description="event_time: the row that held at the event's time, as a replay needs it",
    )
    time: str | None = Field(
        None,
        description="file: column with the time since which a row holds, epoch milliseconds; "
        "none: always. A topic's records have their own",
    )
    versions: int = Field(8, ge=1, description="event_time: versions of a row that are kept")
    keep: DurationMs = Field(
        30 * 86_400_000,
        ge=1,
        description="event_time: how far back before the table's newest record rows are known",
    )
    min_rows: int = Field(1, ge=0, description="rows without which the table is not loaded")
    load_timeout: DurationMs = Field(
        60_000,
        ge=1,
        le=120_000,
        description="longest wait for the table at start; then the task fails and is restarted",
    )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the values that events get, as plain types."""
        return as_python(self) | dict.fromkeys(("topic", "file", "min_rows", "load_timeout"))

    @property
    def event_fields(self) -> tuple[FieldSpec, ...]:
        """The event fields that the table adds."""
        return tuple(field.of(self.name) for field in self.fields)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from _name_mistakes("table", self.name)
        if (self.topic is None) == (self.file is None):
            yield Mistake(("topic",), f"table {self.name!r} needs either a topic or a file")
        if self.file is not None and self.file.suffix not in _FILE_KINDS:
            yield Mistake(("file",), f"must be one of {', '.join(_FILE_KINDS)}")
        if self.time is not None and self.file is None:
            yield Mistake(("time",), "is for files: a topic's records have a time of their own")
        if twice := doubles(f.name for f in self.fields):
            yield Mistake(("fields",), f"fields declared twice: {', '.join(twice)}")


class LookupField(Strict):
    """A value that a look-up brings; the model gets it as ``<lookup>_<name>``."""

    name: str = Field(description="key of the JSON object, field of the hash, or column")
    type: Literal["float", "int", "bool"] = Field(description="what the value must be")
    default: float | int | bool | None = Field(
        None, description="value if there is none; none means missing"
    )


class CacheSpec(Strict):
    """What is remembered of a store's answers, in each subtask."""

    entries: int = Field(100_000, ge=1, description="keys kept; the oldest answers go first")
    ttl: DurationMs = Field(60_000, ge=0, description="how long an answer is used again")
    negative_ttl: DurationMs = Field(
        10_000, ge=0, description="the same for a key that the store does not have"
    )


class RedisSpec(Strict):
    """Values in Redis: one MGET, or one pipeline of HMGET, per batch."""

    url: str = Field(description="as redis://host:6379/0, rediss:// for TLS, unix:///path")
    password: str = Field("", description="as `${REDIS_PASSWORD}`; none if empty")
    tls: StoreTlsSpec | None = Field(None, description="of a rediss:// url, what is not usual")
    key: str = Field("{}", description="the value's key; {} stands for the event field")
    value: Literal["json", "hash"] = Field("json", description="a JSON object, or a hash")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if self.key.count("{}") != 1:
            yield Mistake(("key",), "must have {} once, where the event field's value goes")
        parts = urlsplit(self.url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            yield Mistake(("url",), "must begin with redis://, rediss:// or unix://")
        elif parts.password or "password=" in parts.query:
            yield Mistake(("url",), _NO_PASSWORD)
        elif "ssl_" in parts.query:
            yield Mistake(("url",), "says how to do TLS: write that into `tls` beside it")
        if self.tls is not None and parts.scheme != "rediss":
            yield Mistake(("tls",), "needs a url that begins with rediss://")


def dsn_mistakes(dsn: str, tls: StoreTlsSpec | None) -> Iterator[Mistake]:
    """A password in a connection string, which would be shown and logged; and TLS said twice."""
    if "password=" in dsn or ("://" in dsn and urlsplit(dsn).password):
        yield Mistake(("dsn",), _NO_PASSWORD)
    if tls is not None and any(f"{name}=" in dsn for name in tls.for_postgres()):
        yield Mistake(("dsn",), "says how to do TLS, as `tls` beside it does: leave one")


class PostgresSpec(Strict):
    """Values in PostgreSQL: one SELECT with ``= ANY`` per batch."""

    dsn: str = Field(description="connection string of libpq: host=... dbname=..., or a URL")
    password: str = Field("", description="as `${PGPASSWORD}`; none if empty")
    tls: StoreTlsSpec | None = Field(None, description="TLS; none: as dsn says, or libpq's usual")
    table: str = Field(description="table or view, as name or schema.name")
    key_column: str = Field(description="column with the key, unique and indexed")
    key_type: Literal["text", "int", "uuid"] = Field("text", description="the column's type")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from dsn_mistakes(self.dsn, self.tls)


class FeastSpec(Strict):
    """Values in Feast's online store: one call of its client per batch."""

    repo: Path = Field(description="folder with feature_store.yaml, on every TaskManager")
    view: str = Field(description="feature view, whose features the fields are")
    entity: str = Field(description="join key of the view's entity")
    key_type: Literal["text", "int"] = Field("text", description="the join key's type")


class LookupSpec(Strict):
    """Values that a store is asked for, batch by batch, before the model is."""

    name: str = Field(description="start of the features' names: <lookup>_<field>")
    key: str = Field(description="event field, a string, whose value is looked up")
    redis: RedisSpec | None = Field(None, description="the store, if it is Redis")
    postgres: PostgresSpec | None = Field(None, description="the store, if it is PostgreSQL")
    feast: FeastSpec | None = Field(None, description="the store, if it is Feast's")
    fields: tuple[LookupField, ...] = Field(min_length=1, description="values, a feature each")
    cache: CacheSpec = Field(default_factory=lambda: CacheSpec())
    deadline: DurationMs = Field(
        50,
        ge=1,
        le=10_000,
        description="longest wait for the store, out of model.deadline; then the defaults",
    )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the features, as plain types; not where the store is."""
        return {"name": self.name, "key": self.key, "fields": as_python(self)["fields"]}

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(f"{self.name}_{field.name}" for field in self.fields)

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from _name_mistakes("look-up", self.name)
        if [self.redis, self.postgres, self.feast].count(None) != 2:
            yield Mistake((), f"look-up {self.name!r} needs one of redis, postgres and feast")


def _name_mistakes(kind: str, name: str) -> Iterator[Mistake]:
    if not _NAME.fullmatch(name):
        message = f"{kind} name {name!r}: write letters, digits and _, no digit first"
        yield Mistake(("name",), message)


def mistakes_of(
    event: EventSpec,
    tables: tuple[TableSpec, ...],
    lookups: tuple[LookupSpec, ...],
    features: tuple[str, ...],
) -> Iterator[Mistake]:
    """What is wrong between tables, look-ups, the event and the names of all features."""
    known = with_tables(event, tables)
    for kind, specs in (("tables", tables), ("lookups", lookups)):
        if twice := doubles(spec.name for spec in specs):
            yield Mistake((kind,), f"two have the name {', '.join(twice)}")
    if twice := doubles(f.name for f in known.fields):
        yield Mistake(("tables",), f"two event fields would be named: {', '.join(twice)}")
    for n, table in enumerate(tables):
        wanted = "a string field of the event"
        yield from event.unfit(("tables", n, "key"), table.key, _is_text, wanted)
    for n, lookup in enumerate(lookups):
        wanted = "a string, of the event or a table"
        yield from known.unfit(("lookups", n, "key"), lookup.key, _is_text, wanted)
    if lookups and (twice := doubles(features)):
        message = f"two features would have the same name: {', '.join(twice)}"
        yield Mistake(("lookups",), message)


def with_tables(event: EventSpec, tables: tuple[TableSpec, ...]) -> EventSpec:
    """The event with the fields that the tables add."""
    added = [field for table in tables for field in table.event_fields]
    return event.model_copy(update={"fields": (*event.fields, *added)})


def _is_text(field: FieldSpec) -> bool:
    return field.type == "string"
