"""``streamscore store`` at a real broker and a real PostgreSQL, which is killed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from jobs import cli
from jobs.outlets import postgres_sql
from jobs.outlets.postgres import PostgresTarget, connect, init
from jobs.outlets.settings import PostgresStoreSettings
from jobs.outlets.target import Fate, Message
from tests.support.outlet_process import OutletProcess, Topics
from tests.support.predictions import predictions
from tests.support.stores import PostgresProcess
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

FEATURES = ("amount", 'odd "name"', "select")
NAMES = ("key", "event_id", "score", "model_version", "fallback_reason", "late", "amount")


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresProcess]:
    with PostgresProcess() as server:
        yield server


def store_in(postgres: PostgresProcess, table: str, **more: Any) -> PostgresStoreSettings:
    return PostgresStoreSettings(dsn=postgres.dsn, table=table, **more)


def as_messages(documents: list[dict[str, Any]]) -> list[Message]:
    return [
        Message(d["source"]["partition"], d["source"]["offset"], b"", orjson.dumps(d))
        for d in documents
    ]


def rows(store: PostgresStoreSettings, names: tuple[str, ...] = NAMES) -> list[tuple[Any, ...]]:
    chosen = ", ".join(map(postgres_sql.quoted, names))
    with connect(store) as connection:
        table = postgres_sql.table_of(store)
        found: list[tuple[Any, ...]] = connection.execute(
            f"SELECT {chosen} FROM {table} ORDER BY event_time, event_id"
        ).fetchall()
    return found


def expected(documents: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (
            *(d["key"], d["event_id"], d["score"], d["model"]["version"], d["fallback_reason"]),
            *(d.get("late", False), d["features"]["amount"]),
        )
        for d in documents
    ]


@pytest.fixture
def target(postgres: PostgresProcess) -> Iterator[PostgresTarget]:
    store = store_in(postgres, "one")
    postgres.run("DROP TABLE IF EXISTS one")
    init(store, FEATURES)
    target = PostgresTarget(store, FEATURES)
    target.open()
    yield target
    target.close()


def test_a_replay_changes_nothing_and_new_scores_replace(
    postgres: PostgresProcess, target: PostgresTarget
) -> None:
    store = store_in(postgres, "one")
    made = predictions(100, FEATURES)
    for part in (made[:60], made[40:], made, made[:1] * 3):
        assert {o.fate for o in target.deliver(as_messages(part))} == {Fate.DONE}
    assert rows(store) == expected(made)
    anew = predictions(100, FEATURES, seed=2)
    target.deliver(as_messages([*made, *anew]))  # the last of a batch holds
    assert rows(store) == expected(anew)
    (times,) = ({r[0] for r in rows(store, ("event_time",))[:1]},)
    assert next(iter(times)).timestamp() * 1_000 == made[0]["event_time_ms"]


def test_a_row_that_cannot_be_held_is_refused_alone(
    postgres: PostgresProcess, target: PostgresTarget
) -> None:
    made = predictions(9, FEATURES)
    made[4]["event_id"] = "a\0b"
    made[6]["score"] = None
    fates = [o.fate for o in target.deliver(as_messages(made))]
    assert [n for n, fate in enumerate(fates) if fate is Fate.REFUSED] == [4, 6]
    assert len(rows(store_in(postgres, "one"))) == 7


def test_init_again_adds_new_features_and_keeps_rows(
    postgres: PostgresProcess, target: PostgresTarget
) -> None:
    store, made = store_in(postgres, "one"), predictions(5, FEATURES)
    target.deliver(as_messages(made))
    init(store, (*FEATURES, "later"))
    wider = PostgresTarget(store, (*FEATURES, "later"))
    wider.open()
    wider.deliver(as_messages(predictions(5, (*FEATURES, "later"), first=5)))
    wider.close()
    assert [later is None for (later,) in rows(store, ("later",))][:5] == [True] * 5
    assert len(rows(store)) == 10


def test_without_its_table_a_batch_waits(postgres: PostgresProcess, target: PostgresTarget) -> None:
    postgres.run("DROP TABLE one")
    (outcome,) = target.deliver(as_messages(predictions(1, FEATURES)))
    assert (outcome.fate, "one" in outcome.reason) == (Fate.RETRY, True)


def test_timescales_part_is_sql_and_is_skipped_where_it_is_not(postgres: PostgresProcess) -> None:
    """The extension cannot be had here: PostgreSQL parses all of it and runs none."""
    store = store_in(postgres, "plain", keep="90d", compress_after="36h", chunk="12h")
    sql = postgres_sql.init(store, FEATURES)
    for part in (
        "create_hypertable",
        "chunk_time_interval => INTERVAL '12 hours'",
        "timescaledb.compress_segmentby = 'key'",
        "add_compression_policy('\"plain\"', INTERVAL '36 hours'",
        "add_retention_policy('\"plain\"', INTERVAL '90 days'",
    ):
        assert part in sql
    init(store, FEATURES)
    init(store, FEATURES)
    assert rows(store) == []
    never = postgres_sql.init(store_in(postgres, "plain", compress_after=None), FEATURES)
    assert "compress" not in never
    assert "add_retention_policy" not in never


def test_an_outage_a_kill_and_a_replay(
    bootstrap: str, tmp_path: Path, postgres: PostgresProcess
) -> None:
    own = {"dsn": postgres.dsn, "table": "kept", "batch": 100, "linger": "20ms"}
    parquet = {"folder": str(tmp_path / "files"), "batch": 70, "linger": "50ms"}
    store = {"backoff": "50ms", "max_backoff": "200ms", "postgres": own, "parquet": parquet}
    topics = Topics(bootstrap, tmp_path, store=store)
    made = CliRunner().invoke(cli.app, ["store", "init", str(topics.conf)])
    assert (made.exit_code, made.stdout) == (0, "table kept is ready\n")
    features = topics.settings.schema_.columns
    sent = predictions(900, features)
    topic = topics.settings.topics.predictions
    kept = store_in(postgres, "kept")
    command = ("store", "run", str(topics.conf))
    amount = ("event_id", "score", "amount")
    wanted = [(d["event_id"], d["score"], d["features"]["amount"]) for d in sent]
    with OutletProcess(tmp_path / "log", *command) as process:
        topics.write(topic, sent[:300], "key")
        wait_until(lambda: len(rows(kept)) == 300, 60, "the first are stored")
        postgres.kill()
        topics.write(topic, [*sent[300:600], b"{"], "key")
        process.until("to be tried again")
        postgres.start()
        wait_until(lambda: len(rows(kept)) == 600, 60, "none of the outage is lost")
        topics.write(topic, sent[600:], "key")
        process.kill()
    with OutletProcess(tmp_path / "log", *command) as process:
        wait_until(lambda: len(rows(kept)) == 900, 60, "none of the kill is lost")
        wait_until(lambda: len(in_files(tmp_path / "files")) == 900, 60, "nor for Parquet")
        assert process.stop() == 0
    assert rows(kept, amount) == wanted
    assert len(topics.dead_letters()) >= 1
    text = topics.conf.read_text(encoding="utf-8")
    again = tmp_path / "again.yaml"
    again.write_text(text.replace("store:", "store:\n  group_id: again"), encoding="utf-8")
    with OutletProcess(tmp_path / "log", "store", "run", str(again)) as process:
        for name in ("postgres", "parquet"):
            wait_until(lambda n=name: topics.lag(topic, f"again-{n}") == 0, 60, "all again")
        assert process.stop() == 0
    assert rows(kept, amount) == wanted
    assert sorted(in_files(tmp_path / "files")) == sorted(d["event_id"] for d in sent)


def in_files(folder: Path) -> list[str]:
    import pyarrow.parquet as pq

    paths = folder.glob("date=*/part-*.parquet")
    return [e for p in paths for e in pq.ParquetFile(p).read()["event_id"].to_pylist()]
