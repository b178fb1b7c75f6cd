"""Predictions into PostgreSQL: copied in batches, merged by entity, time and event."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import csv

from jobs.environment import NotReadyError
from jobs.outlets import postgres_sql
from jobs.outlets.rows import Rows, last_of_each
from jobs.outlets.settings import PostgresStoreSettings
from jobs.outlets.target import Fate, Message, Outcome, retry_all

logger = logging.getLogger(__name__)

_CSV = csv.WriteOptions(include_header=False, quoting_style="all_valid")
_CONNECT_S = 10
_STATEMENT_MS = 60_000


def connect(settings: PostgresStoreSettings) -> Any:
    """A connection.

    Raises:
        NotReadyError: There is no psycopg, or no server answers.
    """
    psycopg = _psycopg()
    try:
        return _connect(psycopg, settings)
    except psycopg.OperationalError as exc:
        problem = f"PostgreSQL does not answer: {str(exc).strip()}"
        raise NotReadyError(problem, "start it, or correct store.postgres") from exc


def _connect(psycopg: Any, settings: PostgresStoreSettings) -> Any:
    login = {"password": settings.password} if settings.password else {}
    login |= settings.tls.for_postgres() if settings.tls is not None else {}
    return psycopg.connect(
        settings.dsn,
        connect_timeout=_CONNECT_S,
        application_name="streamscore-store",
        options=f"-c statement_timeout={_STATEMENT_MS}",
        tcp_user_timeout=_STATEMENT_MS,
        **login,
    )


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as exc:
        fix = "install it: make setup EXTRA=postgres"
        raise NotReadyError("PostgreSQL needs psycopg", fix) from exc
    return psycopg


def init(settings: PostgresStoreSettings, features: Sequence[str]) -> None:
    """Make the table, its indexes and TimescaleDB's parts; see ``postgres_sql.init``."""
    with connect(settings) as connection:
        connection.execute(postgres_sql.init(settings, features))


class PostgresTarget:
    """Upserts predictions: the same ones again change nothing.

    A batch is one transaction. While the server does not answer, or the table is not as it should
    be, the batch is tried again; a row that PostgreSQL cannot hold is refused alone.

    Args:
        settings: The store.
        features: The names of the features.
    """

    name = "postgres"

    def __init__(self, settings: PostgresStoreSettings, features: Sequence[str]) -> None:
        self._settings = settings
        self._rows = Rows(features)
        self._sql = postgres_sql.upsert(settings, self._rows.schema.names)
        self._connection: Any = None

    def open(self) -> None:
        """Connections are made when there is something to write; raises NotReadyError."""
        self._psycopg = _psycopg()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def deliver(self, messages: Sequence[Message]) -> list[Outcome]:
        """See ``Target``."""
        table, at, outcomes = self._rows.read(messages)
        try:
            for row, reason in self._write(table, 0):
                outcomes[at[row]] = Outcome(Fate.REFUSED, reason)
        except self._psycopg.Error as exc:
            self.close()
            return retry_all(messages, f"{type(exc).__name__}: {str(exc).strip()}")
        return outcomes

    def _write(self, table: pa.Table, first: int) -> list[tuple[int, str]]:
        """Write rows, in halves if one of them is at fault; index and reason of those refused."""
        if not len(table):
            return []
        try:
            self._upsert(last_of_each(table))
            return []
        except (self._psycopg.DataError, self._psycopg.IntegrityError) as exc:
            if len(table) == 1:
                return [(first, f"{type(exc).__name__}: {str(exc).strip()}")]
        half = len(table) // 2
        refused = self._write(table.slice(0, half), first)
        return refused + self._write(table.slice(half), first + half)

    def _upsert(self, table: pa.Table) -> None:
        buffer = io.BytesIO()
        csv.write_csv(table, buffer, _CSV)
        if self._connection is None:
            self._connection = _connect(self._psycopg, self._settings)
        make, copy, merge = self._sql
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(make)
            with cursor.copy(copy) as incoming:
                incoming.write(buffer.getbuffer())
            cursor.execute(merge)
