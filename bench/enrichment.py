"""What enrichment costs, without Flink: ``python -m bench.enrichment``.

Microseconds per event of a table's join, of a look-up that the cache answers, and of one that a
Redis or PostgreSQL on this machine is asked for, in batches of 512. One process, one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np

from tests.support.stores import PostgresProcess, RedisProcess
from udfs.batches.events import Events
from udfs.definition.enrichment import LookupSpec, TableSpec
from udfs.enrichment.lookups import Lookup
from udfs.enrichment.stores import store_of
from udfs.enrichment.tables import VersionedTable

ROWS = 512
ROUNDS = 100
KEYS = ROWS * ROUNDS
FIELDS = [{"name": "n", "type": "int"}, {"name": "x", "type": "float"}]


def main() -> None:
    """Measure and print."""
    for as_of in ("latest", "event_time"):
        print(f"table, {as_of:24} {join_us(as_of):8.2f} us/event")
    with RedisProcess() as redis:
        with redis.client() as client:
            client.mset({f"k{n}": b'{"n": 3, "x": 0.5}' for n in range(KEYS)})
        asyncio.run(measure("redis", {"redis": {"url": redis.url}}))
    with PostgresProcess() as postgres:
        made = f"SELECT 'k' || n AS k, 3 AS n, 0.5 AS x FROM generate_series(0, {KEYS - 1}) AS n"
        postgres.run(f"CREATE TABLE t AS {made}", "ALTER TABLE t ADD PRIMARY KEY (k)", "ANALYZE t")
        where = {"dsn": postgres.dsn, "table": "t", "key_column": "k"}
        asyncio.run(measure("postgres", {"postgres": where}))


def join_us(as_of: str) -> float:
    """Microseconds per event of a join with 100,000 rows."""
    whole = {"name": "t", "key": "k", "topic": "t", "fields": FIELDS, "as_of": as_of}
    table = VersionedTable(TableSpec.model_validate(whole))
    for n in range(100_000):
        table.put(f"k{n}", table.row_of({"n": 3, "x": 0.5}), 0)
    begun_s = time.perf_counter()
    for first in range(0, KEYS, ROWS):
        events = Events(
            [], np.empty((ROWS, 3), np.int64), np.ones(ROWS, np.int64), {"k": keys(first)}, {}
        )
        table.join(events)
    return _us(begun_s)


def keys(first: int) -> list[str]:
    """The keys of a batch."""
    return [f"k{n}" for n in range(first, first + ROWS)]


async def measure(name: str, where: dict[str, object]) -> None:
    """Ask for every key once, then again."""
    whole = {"name": "p", "key": "k", "fields": FIELDS, "deadline": "10s"} | where
    spec = LookupSpec.model_validate(whole)
    lookup = Lookup(spec, store_of(spec))
    await lookup.connect()
    asked = await _timed(lookup.of)
    cached = await _timed(lookup.of)
    assert (lookup.counts.hits, lookup.counts.misses, lookup.counts.errors) == (KEYS, KEYS, 0)
    print(f"{name}, all {ROWS} keys asked for   {asked:8.2f} us/event")
    print(f"{name}, all in the cache         {cached:8.2f} us/event")
    await lookup.close()


async def _timed(look: Callable[[list[str]], Awaitable[object]]) -> float:
    begun_s = time.perf_counter()
    for first in range(0, KEYS, ROWS):
        await look(keys(first))
    return _us(begun_s)


def _us(begun_s: float) -> float:
    return (time.perf_counter() - begun_s) / KEYS * 1e6


if __name__ == "__main__":
    main()
