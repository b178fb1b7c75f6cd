"""Redis and PostgreSQL as stores of look-ups: many keys, one round trip.

The clients are extras (``make setup EXTRA=redis``, ``EXTRA=postgres``). Redis's is its own. For
PostgreSQL it is psycopg 3 and not asyncpg: it is libpq, so that every connection string, service
file and TLS option of PostgreSQL works, it prepares nothing behind a pooler's back, and it has
releases every month.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from udfs.definition.enrichment import LookupSpec, PostgresSpec, RedisSpec
from udfs.definition.store_tls import StoreTlsSpec
from udfs.enrichment.store import Answer, MissingClient, Store, canonical

__all__ = [
    "PostgresStore",
    "RedisStore",
    "store_of",
]

_CONNECT_S = 2.0


def store_of(spec: LookupSpec) -> Store:
    """The store of a look-up; it connects with the first call.

    Raises:
        MissingClient: Its client is not installed.
    """
    names = tuple(field.name for field in spec.fields)
    try:
        if spec.redis is not None:
            return RedisStore(spec.redis, names)
        if spec.postgres is not None:
            return PostgresStore(spec.postgres, names)
        from udfs.enrichment.feast_store import FeastStore

        assert spec.feast is not None
        return FeastStore(spec.feast, names)
    except ImportError as exc:
        extra = next(kind for kind in ("redis", "postgres", "feast") if getattr(spec, kind))
        problem = f"look-up {spec.name!r} needs the package {exc.name}"
        raise MissingClient(problem, f"run: make setup EXTRA={extra}") from exc


class RedisStore:
    """Values as JSON objects, by one MGET; or as hashes, by one pipeline of HMGET.

    Args:
        spec: Where they are.
        names: The values that are wanted.
    """

    def __init__(self, spec: RedisSpec, names: Sequence[str]) -> None:
        from redis.asyncio import Redis

        self._key = spec.key
        self._names = tuple(names)
        self._is_hash = spec.value == "hash"
        tls: dict[str, Any] = {}
        if spec.url.startswith("rediss://"):
            tls = (spec.tls or StoreTlsSpec()).for_redis()
        # No retries: the look-up has a deadline, and the next batch asks again.
        self._client = Redis.from_url(
            spec.url, password=spec.password or None, socket_connect_timeout=_CONNECT_S, **tls
        )

    async def fetch(self, keys: Sequence[str]) -> Sequence[Answer]:
        """See ``Store``."""
        full = [self._key.replace("{}", key) for key in keys]
        if not self._is_hash:
            return [_object(value) for value in await self._client.mget(full)]
        pipeline = self._client.pipeline(transaction=False)
        for key in full:
            pipeline.hmget(key, self._names)
        # A key of another kind is an error of its own, not of the whole pipeline.
        rows = await pipeline.execute(raise_on_error=False)
        return [self._hash(row) for row in rows]

    def _hash(self, row: Any) -> Answer:
        if isinstance(row, Exception):
            return row
        if all(value is None for value in row):
            return None
        return dict(zip(self._names, row, strict=True))

    async def connect(self) -> None:
        """See ``Store``."""
        await self._client.ping()

    async def close(self) -> None:
        """See ``Store``."""
        await self._client.aclose()


def _object(value: bytes | None) -> Answer:
    if value is None:
        return None
    try:
        document = orjson.loads(value)
    except ValueError as exc:
        return exc
    return document if isinstance(document, dict) else ValueError("it is no JSON object")


class PostgresStore:
    """Values as columns of a table or view, by one SELECT.

    Args:
        spec: Where they are.
        names: The columns that are wanted.
    """

    def __init__(self, spec: PostgresSpec, names: Sequence[str]) -> None:
        import psycopg
        from psycopg import sql

        self._psycopg = psycopg
        self._spec = spec
        self._names = tuple(names)
        kind = {"text": "text", "int": "bigint", "uuid": "uuid"}[spec.key_type]
        select = "SELECT {key}::text, {names} FROM {table} WHERE {key} = ANY({keys})"
        self._select = sql.SQL(select).format(
            key=sql.Identifier(spec.key_column),
            names=sql.SQL(", ").join(map(sql.Identifier, names)),
            table=sql.Identifier(*spec.table.split(".")),
            keys=sql.SQL("%s::" + kind + "[]"),
        )
        self._idle: list[Any] = []

    async def fetch(self, keys: Sequence[str]) -> Sequence[Answer]:
        """See ``Store``; a key that the column's type cannot hold is one that is not there."""
        names = [canonical(key, self._spec.key_type) for key in keys]
        wanted = [name for name in names if name is not None]
        found = {row[0]: row[1:] for row in await self._rows(wanted)} if wanted else {}
        rows = (found.get(name) if name is not None else None for name in names)
        return [None if row is None else dict(zip(self._names, row, strict=True)) for row in rows]

    async def _rows(self, keys: list[str]) -> Iterable[Sequence[Any]]:
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            cursor = await connection.execute(self._select, (keys,))
            rows: list[Sequence[Any]] = await cursor.fetchall()
        except self._psycopg.OperationalError:
            for other in (connection, *self._idle):  # a server that was restarted left them all
                await other.close()
            self._idle.clear()
            raise
        except BaseException:
            await connection.close()
            raise
        self._idle.append(connection)
        return rows

    async def _connect(self) -> Any:
        login: dict[str, Any] = {"password": self._spec.password} if self._spec.password else {}
        login |= self._spec.tls.for_postgres() if self._spec.tls is not None else {}
        return await self._psycopg.AsyncConnection.connect(
            self._spec.dsn,
            autocommit=True,
            prepare_threshold=None,  # poolers like PgBouncer mix sessions
            connect_timeout=int(_CONNECT_S),
            **login,
        )

    async def connect(self) -> None:
        """See ``Store``; table and columns are looked at too."""
        await self._rows([])

    async def close(self) -> None:
        """See ``Store``."""
        for connection in self._idle:
            await connection.close()
        self._idle.clear()
