"""Look-ups in a real Redis and a real PostgreSQL, which are killed, hung and started again."""

from __future__ import annotations

import asyncio
import pickle
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import orjson
import pandas as pd
import pytest

from tests.support.stores import PostgresProcess, RedisProcess
from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.lookups import Lookup
from udfs.enrichment.store import MissingClient, Store
from udfs.enrichment.stores import store_of

pytestmark = pytest.mark.timeout(120)

FIELDS = (
    {"name": "chargebacks", "type": "int", "default": 0},
    {"name": "limit", "type": "float"},
    {"name": "vip", "type": "bool", "default": False},
)
ROWS = {"c1": (2, 99.5, True), "c2": (0, None, False)}
DEADLINE_MS = 10_000
"""Far above what an answer takes on a busy machine."""


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with RedisProcess() as server:
        names = [field["name"] for field in FIELDS]
        with server.client() as client:
            for key, row in ROWS.items():
                document = dict(zip(names, row, strict=True))
                client.set(f"profile:{key}", orjson.dumps(document))
                plain = {n: str(v).lower() for n, v in document.items() if v is not None}
                client.hset(f"hash:{key}", mapping=plain)
            client.set("hash:other", "no hash")
            client.set("profile:other", "no JSON")
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresProcess]:
    with PostgresProcess() as server:
        columns = 'chargebacks numeric, "limit" float8, vip bool'
        server.run(
            f"CREATE TABLE profiles (card text PRIMARY KEY, {columns})",
            "INSERT INTO profiles VALUES ('c1', 2, 99.5, true), ('c2', 0, NULL, false)",
            f"CREATE TABLE by_number (card bigint PRIMARY KEY, {columns})",
            "INSERT INTO by_number VALUES (7, 2, 99.5, true)",
            f"CREATE TABLE by_uuid (card uuid PRIMARY KEY, {columns})",
            "CREATE SCHEMA other",
            "CREATE VIEW other.profiles AS SELECT * FROM profiles",
        )
        yield server


def spec(store: dict[str, Any], **changes: Any) -> LookupSpec:
    whole = {"name": "profile", "key": "card", "fields": FIELDS, "deadline": f"{DEADLINE_MS}ms"}
    return LookupSpec.model_validate(whole | store | changes)


def in_redis(server: RedisProcess, **changes: Any) -> LookupSpec:
    return spec({"redis": {"url": server.url, "key": "profile:{}"}}, **changes)


def in_postgres(server: PostgresProcess, table: str = "profiles", kind: str = "text") -> LookupSpec:
    where = {"dsn": server.dsn, "table": table, "key_column": "card", "key_type": kind}
    return spec({"postgres": where})


async def answers(look: LookupSpec, keys: list[str]) -> tuple[Any, Any]:
    lookup = Lookup(look, store_of(look))
    await lookup.connect()
    try:
        return await lookup.of(keys)
    finally:
        await lookup.close()


EXPECTED = [[2, 99.5, 1], [0, np.nan, 0], [0, np.nan, 0]]


@pytest.mark.parametrize("value", ["json", "hash"])
async def test_redis_has_objects_and_hashes(redis: RedisProcess, value: str) -> None:
    where = {"url": redis.url, "key": "profile:{}" if value == "json" else "hash:{}"}
    look = spec({"redis": where | {"value": value}})
    values, failed = await answers(look, ["c1", "c2", "c3", "other"])
    np.testing.assert_array_equal(values[:3], EXPECTED)
    assert failed.tolist() == [False, False, False, True]


@pytest.mark.parametrize("table", ["profiles", "other.profiles"])
async def test_postgres_has_tables_and_views(postgres: PostgresProcess, table: str) -> None:
    values, failed = await answers(in_postgres(postgres, table), ["c1", "c2", "c\0", "c3"])
    np.testing.assert_array_equal(values, [*EXPECTED, EXPECTED[2]])
    assert not failed.any()


async def test_postgres_keys_of_other_types(postgres: PostgresProcess) -> None:
    number = in_postgres(postgres, "by_number", "int")
    values, failed = await answers(number, ["7", "007", "8", "seven", "9" * 30])
    assert values[:, 0].tolist() == [2, 2, 0, 0, 0] and not failed.any()
    name = uuid.UUID(int=7)
    insert = f"INSERT INTO by_uuid VALUES ('{name}', 5) ON CONFLICT DO NOTHING"
    await asyncio.to_thread(postgres.run, insert)
    keys = [str(name).upper(), "no uuid"]
    values, failed = await answers(in_postgres(postgres, "by_uuid", "uuid"), keys)
    assert values[:, 0].tolist() == [5, 0] and not failed.any()


async def test_a_batch_is_one_call_to_redis(redis: RedisProcess) -> None:
    look = in_redis(redis)
    lookup = Lookup(look, store_of(look))

    def commands() -> dict[str, int]:
        with redis.client() as client:
            found = client.info("commandstats")
        return {name: of["calls"] for name, of in found.items()}

    before = await asyncio.to_thread(commands)
    await lookup.of([f"k{n}" for n in range(500)])
    await lookup.of([f"k{n}" for n in range(500)])
    after = await asyncio.to_thread(commands)
    assert after["cmdstat_mget"] == before.get("cmdstat_mget", 0) + 1
    assert "cmdstat_get" not in after
    await lookup.close()


async def test_a_batch_is_one_statement_to_postgres(postgres: PostgresProcess) -> None:
    look = in_postgres(postgres)
    store = store_of(look)
    statements: list[Any] = []
    await store.connect()
    connection = store._idle[0]  # type: ignore[attr-defined]
    execute = connection.execute
    connection.execute = lambda *words: statements.append(words) or execute(*words)
    lookup = Lookup(look, store)
    await lookup.of(["c1", *(f"k{n}" for n in range(500))])
    assert len(statements) == 1
    await lookup.close()


async def fallbacks_until(lookup: Lookup, wanted: bool, numbers: Iterator[int]) -> int:
    """Look new keys up until they (do not) fall back; how many batches that took."""
    for batches in range(1, 5_000):
        _, failed = await lookup.of([f"new{next(numbers)}", "c1"])
        if failed[0] == wanted:
            return batches
        await asyncio.sleep(0.01)
    raise AssertionError("it never changed")


@pytest.fixture(params=["redis", "postgres"])
def outage(request: pytest.FixtureRequest) -> tuple[Any, Callable[..., LookupSpec]]:
    server = request.getfixturevalue(request.param)
    return server, (in_redis if request.param == "redis" else in_postgres)


async def test_a_killed_store_and_its_return(
    outage: tuple[Any, Callable[..., LookupSpec]], caplog: pytest.LogCaptureFixture
) -> None:
    server, of = outage
    look = of(server)
    lookup, numbers = Lookup(look, store_of(look)), iter(range(10**9))
    await lookup.of(["c1"])
    await asyncio.to_thread(server.kill)
    assert await fallbacks_until(lookup, True, numbers) == 1
    values, failed = await lookup.of(["c1", "c2"])  # the one is cached
    assert failed.tolist() == [False, True] and values[0, 0] == 2
    await asyncio.to_thread(server.start)
    assert await fallbacks_until(lookup, False, numbers) > 0
    values, failed = await lookup.of(["c2"])
    assert not failed.any() and values[0, 0] == 0
    assert "fails" in caplog.text and "answers again" in caplog.text
    await lookup.close()


async def test_a_hung_store_and_its_return(outage: tuple[Any, Callable[..., LookupSpec]]) -> None:
    server, of = outage
    look = of(server).model_copy(update={"deadline": 100})
    lookup, numbers = Lookup(look, store_of(look)), iter(range(10**6, 10**9))
    await lookup.connect()
    assert await fallbacks_until(lookup, False, numbers) > 0
    server.hang()
    try:
        assert await fallbacks_until(lookup, True, numbers) == 1
        begun_s = asyncio.get_running_loop().time()
        for _ in range(100):
            _, failed = await lookup.of([f"new{next(numbers)}"])
            assert failed.all()
        assert asyncio.get_running_loop().time() - begun_s < 100 * 0.1 / 2
    finally:
        server.go_on()
    assert await fallbacks_until(lookup, False, numbers) > 0
    await lookup.close()


async def test_a_table_that_is_not_there_is_a_fallback_and_in_the_log(
    postgres: PostgresProcess, caplog: pytest.LogCaptureFixture
) -> None:
    _, failed = await answers(in_postgres(postgres, "nobody"), ["c1"])
    assert failed.all()
    assert 'relation "nobody" does not exist' in caplog.text


async def test_a_password_is_shown(redis: RedisProcess) -> None:
    with redis.client() as client:
        client.config_set("requirepass", "hunter2")
    try:
        where = {"url": redis.url, "key": "profile:{}"}
        assert (await answers(spec({"redis": where}), ["c1"]))[1].all()
        assert not (await answers(spec({"redis": where | {"password": "hunter2"}}), ["c1"]))[
            1
        ].any()
    finally:
        with redis.client() as client:
            client.auth("hunter2")
            client.config_set("requirepass", "")


@pytest.mark.parametrize("ship", [pickle, cloudpickle])
def test_what_is_declared_can_be_shipped(ship: Any) -> None:
    look = spec({"redis": {"url": "redis://host"}})
    assert ship.loads(ship.dumps(look)) == look


@pytest.mark.parametrize(
    ("where", "package", "extra"),
    [
        ({"redis": {"url": "redis://host"}}, "redis", "redis"),
        (
            {"postgres": {"dsn": "", "table": "t", "key_column": "k"}},
            "psycopg",
            "postgres",
        ),
    ],
)
def test_a_missing_client_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, where: dict[str, Any], package: str, extra: str
) -> None:
    for name in (package, f"{package}.asyncio"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingClient, match=f"make setup EXTRA={extra}"):
        made: Store = store_of(spec(where))
        del made


@pytest.fixture(scope="module")
def feast_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Feast repository with an online store in SQLite, written by Feast itself."""
    feast = pytest.importorskip("feast", reason="no Feast: make setup EXTRA=feast")
    from feast.types import Bool, Float64, Int64, String

    folder = tmp_path_factory.mktemp("feast")
    online = "online_store: {type: sqlite, path: online.db}"
    (folder / "feature_store.yaml").write_text(
        f"project: cards\nregistry: registry.db\nprovider: local\n{online}\n"
        "entity_key_serialization_version: 3\n"
    )
    rows = [(card, *row) for card, row in ROWS.items()]
    frame = pd.DataFrame(rows, columns=["card", "chargebacks", "limit", "vip"])
    frame["at"] = pd.Timestamp.now(tz="UTC")
    frame.to_parquet(folder / "profiles.parquet")
    card = feast.Entity(name="card", join_keys=["card"], value_type=feast.ValueType.STRING)
    types = {"chargebacks": Int64, "limit": Float64, "vip": Bool}
    view = feast.FeatureView(
        name="profiles",
        entities=[card],
        schema=[
            feast.Field(name="card", dtype=String),
            *(feast.Field(name=name, dtype=kind) for name, kind in types.items()),
        ],
        source=feast.FileSource(path=str(folder / "profiles.parquet"), timestamp_field="at"),
    )
    store = feast.FeatureStore(repo_path=str(folder))
    store.apply([card, view])
    store.write_to_online_store("profiles", frame)
    return folder


async def test_feast_has_what_it_was_given(feast_repo: Path) -> None:
    where = {"repo": str(feast_repo), "view": "profiles", "entity": "card"}
    values, failed = await answers(spec({"feast": where}, deadline="10s"), ["c1", "c2", "c3"])
    np.testing.assert_array_equal(values, EXPECTED)
    assert not failed.any()


async def test_a_view_that_feast_does_not_have_is_a_fallback(
    feast_repo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = {"repo": str(feast_repo), "view": "nobody", "entity": "card"}
    assert (await answers(spec({"feast": where}, deadline="10s"), ["c1"]))[1].all()
    assert "nobody" in caplog.text
