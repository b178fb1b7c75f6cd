"""Redis and PostgreSQL that take TLS alone: all but the right certificates are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme

from jobs import preflight
from jobs.environment import NotReadyError
from jobs.outlets.postgres import connect
from jobs.outlets.settings import PostgresStoreSettings
from jobs.ports import HOST
from jobs.settings import load
from jobs.settings_file import SettingsError
from tests.support.fixtures import CONFIG
from tests.support.secure_kafka import pem
from tests.support.stores import Identities, PostgresProcess, RedisProcess
from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.stores import store_of

pytestmark = pytest.mark.timeout(120)

Tls = dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store-tls")


@pytest.fixture(scope="module")
def identities(folder: Path) -> Identities:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other.pem")
    server = pem(folder / "server.pem", authority, "localhost")
    client = pem(folder / "client.pem", authority, "job")
    client.chmod(0o600)  # libpq takes no key that others can read
    return Identities(folder / "ca.pem", server, client)


@pytest.fixture(scope="module")
def redis(identities: Identities) -> Iterator[RedisProcess]:
    with RedisProcess(identities) as server, server.client() as client:
        client.set("c1", orjson.dumps({"limit": 9.5}))
        yield server


@pytest.fixture(scope="module")
def postgres(identities: Identities) -> Iterator[PostgresProcess]:
    with PostgresProcess(identities) as server:
        server.run(
            'CREATE TABLE profiles (card text PRIMARY KEY, "limit" float8)',
            "INSERT INTO profiles VALUES ('c1', 9.5)",
        )
        yield server


@pytest.fixture
def good(identities: Identities) -> Tls:
    client = str(identities.client)
    return {"ca": str(identities.ca), "certificate": client, "key": client}


@pytest.fixture(params=["redis", "postgres"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def lookup(server: Any, tls: Tls | None, host: str = "localhost") -> LookupSpec:
    """A look-up that asks a server; without TLS in plain text."""
    if isinstance(server, RedisProcess):
        url = f"redis{'s' * bool(tls)}://{host}:{server.port}/0"
        where: dict[str, Any] = {"redis": {"url": url, "tls": tls}}
    else:
        dsn = server.dsn.replace("localhost", host) + ("" if tls else " sslmode=disable")
        table = {"table": "profiles", "key_column": "card"}
        where = {"postgres": {"dsn": dsn, "tls": tls, **table}}
    fields = [{"name": "limit", "type": "float"}]
    return LookupSpec.model_validate({"name": "profile", "key": "card", "fields": fields, **where})


async def refusal(spec: LookupSpec) -> str:
    store = store_of(spec)
    with pytest.raises(Exception) as caught:
        await store.connect()
    await store.close()
    return str(caught.value)


async def test_the_right_certificates_are_accepted(server: Any, good: Tls) -> None:
    store = store_of(lookup(server, good))
    assert await store.fetch(["c1", "c2"]) == [{"limit": 9.5}, None]
    await store.close()


async def test_the_systems_authorities_count_if_none_is_named(
    server: Any, good: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = lookup(server, {name: good[name] for name in ("certificate", "key")})
    assert "certificate verify failed" in await refusal(spec)
    monkeypatch.setenv("SSL_CERT_FILE", good["ca"])
    store = store_of(spec)
    await store.connect()
    await store.close()


async def test_a_server_of_another_authority_is_refused(
    server: Any, good: Tls, folder: Path
) -> None:
    spec = lookup(server, good | {"ca": str(folder / "other.pem")})
    assert "certificate verify failed" in await refusal(spec)


async def test_a_server_of_another_name_is_refused(server: Any, good: Tls) -> None:
    words = await refusal(lookup(server, good, HOST))
    assert "mismatch" in words or "does not match host name" in words


async def test_a_client_without_a_certificate_is_refused(server: Any, good: Tls) -> None:
    assert await refusal(lookup(server, {"ca": good["ca"]}))


async def test_plain_text_is_refused(server: Any) -> None:
    words = await refusal(lookup(server, None))
    assert "no encryption" in words or "onnection" in words


def test_the_start_says_why(server: Any, good: Tls, folder: Path) -> None:
    spec = lookup(server, good | {"ca": str(folder / "other.pem")})
    (warning,) = preflight.check_stores([spec])
    assert "look-up 'profile' does not answer" in warning
    assert "certificate verify failed" in warning
    assert [*preflight.check_stores([lookup(server, good)])] == []


def test_the_store_of_predictions(postgres: PostgresProcess, good: Tls, folder: Path) -> None:
    def store(tls: Tls) -> PostgresStoreSettings:
        return PostgresStoreSettings.model_validate({"dsn": postgres.dsn, "tls": tls})

    with connect(store(good)) as connection:
        (row,) = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert row == (True,)
    with pytest.raises(NotReadyError, match="certificate verify failed"):
        connect(store(good | {"ca": str(folder / "other.pem")}))


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ({"redis": {"url": "redis://h", "tls": {}}}, "rediss://"),
        ({"redis": {"url": "rediss://h?ssl_cert_reqs=none"}}, "write that into `tls`"),
        ({"redis": {"url": "rediss://h", "tls": {"key": "k"}}}, "belong together"),
        ({"postgres": {"dsn": "sslmode=require", "tls": {}}}, "leave one"),
    ],
)
def test_what_would_weaken_it_is_refused(store: dict[str, Any], words: str) -> None:
    if "postgres" in store:
        store["postgres"] |= {"table": "t", "key_column": "k"}
    fields = [{"name": "limit", "type": "float"}]
    whole = {"name": "p", "key": "card_id", "fields": fields, **store}
    with pytest.raises(SettingsError, match=words):
        load(CONFIG, {"lookups": [whole]})
