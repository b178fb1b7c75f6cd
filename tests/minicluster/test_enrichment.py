"""A whole job with a late reference table and a store that is killed and comes back.

The job starts with empty caches. Its table comes ten seconds late and in two halves; nothing may be
scored before it is whole. Then Redis dies and returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from jobs import runner, training
from jobs.ports import free_port
from jobs.running_job import RunningJob
from jobs.settings import Settings, load
from tests.support.checks import check_accounts, check_schemas
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.kafka import Out, Record, Traffic
from tests.support.running import restarts, running
from tests.support.servers import ModelServerProcess
from tests.support.stores import RedisProcess
from tests.support.topics import TableTopic
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(600)]

TERMINALS = 40
CARDS = 10_000
LATE_S = 10.0
FEATURES = ("terminal_risk", "profile_chargebacks", "profile_limit")

_numbers = count()


def table_row(number: int) -> dict[str, Any]:
    return {"risk": number / 100, "kind": "shop"}


def profile(card: int) -> dict[str, Any] | None:
    """Of each second card Redis has one."""
    return {"chargebacks": card % 7, "limit": 100.5 + card} if card % 2 == 0 else None


def record(card: int, time_ms: int | None = None) -> Record:
    number = next(_numbers)
    value: dict[str, Any] = {
        "transaction_id": f"t{number}",
        "event_time_ms": time.time_ns() // 1_000_000 if time_ms is None else time_ms,
        "card_id": f"c{card}",
        "terminal_id": f"m{number % TERMINALS}",
        "amount": 10.0,
        "type": "CP",
    }
    return Record(0, value["card_id"].encode(), orjson.dumps(value))


def enrichment(redis_url: str) -> dict[str, Any]:
    """Overrides: a table, a look-up, and a feature over each."""
    expressions = [
        {"name": "amount", "type": "value", "fields": ["amount"]},
        {"name": "terminal_risk", "type": "value", "fields": ["terminal_risk"]},
        {"name": "kind", "type": "one_hot", "fields": ["terminal_kind"], "categories": ["shop"]},
    ]
    fields = [
        {"name": "chargebacks", "type": "int", "default": 0},
        {"name": "limit", "type": "float"},
    ]
    lookup = {
        "name": "profile",
        "key": "card_id",
        "redis": {"url": redis_url, "key": "profile:{}"},
        "fields": fields,
        "cache": {"ttl": "1h", "negative_ttl": "1h"},
        "deadline": "8s",
    }
    return {
        "features.expressions": expressions,
        "lookups": [lookup],
        "model.deadline": "10s",
        "batch.buckets": 2,
    }


def table(**where: Any) -> dict[str, Any]:
    fields = [{"name": "risk", "type": "float"}, {"name": "kind", "type": "string"}]
    whole = {"name": "terminal", "key": "terminal_id", "fields": fields, "min_rows": TERMINALS}
    return {"tables": [whole | {"as_of": "latest"} | where]}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with RedisProcess() as server, server.client() as client:
        profiles = {f"profile:c{card}": p for card in range(CARDS) if (p := profile(card))}
        client.mset({key: orjson.dumps(value) for key, value in profiles.items()})
        yield server


@pytest.fixture(scope="module")
def enriched_models(
    demo: pd.DataFrame, redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model trained with the table in a file, and with what Redis would have said."""
    folder = tmp_path_factory.mktemp("enriched")
    rows = [{"terminal_id": t, "risk": 0.5, "kind": "shop"} for t in set(demo["terminal_id"])]
    path = folder / "terminals.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    overrides = enrichment(redis.url) | table(file=str(path))
    part = demo.head(30_000).assign(profile_chargebacks=1, profile_limit=100.0)
    settings = load(CONFIG, overrides | {"training.trees": 5, "model.path": str(folder)})
    training.train(settings, part)
    return folder


class Bench:
    """The job, what it gets and what it says."""

    def __init__(self, settings: Settings, traffic: Traffic, job: RunningJob) -> None:
        self.settings = settings
        self.traffic = traffic
        self.job = job
        self.cards = iter(range(CARDS))

    def batch(self, n: int) -> list[Out]:
        """Send events of cards that were never seen; their predictions."""
        return self.predictions([record(next(self.cards)) for _ in range(n)])

    def predictions(self, records: list[Record]) -> list[Out]:
        places = self.traffic.send(*records)
        self.traffic.poll_until(lambda: self.traffic.accounted.issuperset(places), 60)
        found = self.traffic.predictions()
        return [found[place] for place in places]

    def until(self, so: Callable[[list[Out]], bool], n: int = 1) -> None:
        for _ in range(1_000):
            if so(self.batch(n)):
                return
        raise AssertionError("it never was so")


@pytest.fixture(params=["served", "embedded"])
def bench(
    request: pytest.FixtureRequest,
    bootstrap: str,
    enriched_models: Path,
    redis: RedisProcess,
    tmp_path: Path,
) -> Iterator[Bench]:
    own = own_overrides(bootstrap, enriched_models, tmp_path)
    port = free_port()
    served = {"model.embedded": request.param == "embedded", "model.server": f"127.0.0.1:{port}"}
    late = table(topic=f"{own['name']}-terminals")
    settings = load(CONFIG, own | enrichment(redis.url) | late | served)
    server = ModelServerProcess(enriched_models, tmp_path / "server.log", port)
    with Traffic(settings) as traffic, server:
        job = runner.start(settings)
        try:
            yield Bench(settings, traffic, job)
            assert restarts(job) == 0
        except AssertionError as exc:
            exc.add_note(f"the job is {job.state()}; its last failure: {job.failure() or 'none'}")
            raise
        finally:
            job.cancel()


def is_enriched(out: Out, *, fallback: bool) -> None:
    """The features are those of the event's terminal and card."""
    document = out.document
    features = document["features"]
    card = int(document["key"][1:])
    expected = (None if fallback else profile(card)) or {"chargebacks": 0, "limit": None}
    found = {name: features[f"profile_{name}"] for name in expected}
    assert (found, document["lookup_fallbacks"]) == (expected, ["profile"] * fallback)
    assert document["fallback_reason"] is None


def with_risk(bench: Bench, out: Out) -> tuple[float | None, int]:
    """The risk that a prediction was made with, and the number of its terminal."""
    event = orjson.loads(bench.traffic.sent[out.place].value or b"")
    return out.document["features"]["terminal_risk"], int(event["terminal_id"][1:])


def test_a_late_table_and_a_store_that_is_killed(bench: Bench, redis: RedisProcess) -> None:
    traffic = bench.traffic
    (spec,) = bench.settings.tables
    topic = TableTopic(bench.settings.kafka.bootstrap_servers, spec.topic or "")
    early = [record(next(bench.cards)) for _ in range(500)]
    traffic.send(*early)
    nothing_within(bench, LATE_S / 2)
    topic.create()
    rows = {f"m{n}": table_row(n) for n in range(TERMINALS)}
    topic.put({key: rows[key] for key in [*rows][: TERMINALS // 2]})
    nothing_within(bench, LATE_S / 2)
    topic.put(rows)
    traffic.wait_accounted()
    check_accounts(traffic)
    for out in traffic.outputs["predictions"]:
        risk, terminal = with_risk(bench, out)
        assert risk == terminal / 100
        is_enriched(out, fallback=False)

    table_is_followed(bench, topic)
    store_is_killed(bench, redis, known=early)
    traffic.wait_accounted()
    check_accounts(traffic)
    check_schemas(traffic.outputs)
    names = ("lookup_hits", "lookup_misses", "lookup_negative", "lookup_errors", "table_rejects")
    wait_until(lambda: all(bench.job.counts(names).values()), 60, f"all of {names} count")


def nothing_within(bench: Bench, seconds: float) -> None:
    """Watch for that long that nothing is scored."""
    end_s = time.monotonic() + seconds
    bench.traffic.poll_until(lambda: time.monotonic() > end_s, 2 * seconds + 10)
    assert not bench.traffic.outputs["predictions"]


def table_is_followed(bench: Bench, topic: TableTopic) -> None:
    """New rows count, a tombstone takes one away, a broken record changes nothing."""
    topic.put({"m0": {"risk": 9.0, "kind": "kiosk"}, "m1": None, "m2": b"no JSON"})
    expected: dict[int, float | None] = {n: n / 100 for n in range(TERMINALS)}
    changed = expected | {0: 9.0, 1: None}

    def has_changed(outs: list[Out]) -> bool:
        found = {terminal: risk for risk, terminal in (with_risk(bench, out) for out in outs)}
        for terminal, risk in found.items():
            assert risk in (expected[terminal], changed[terminal])
        return found == changed

    bench.until(has_changed, TERMINALS)


def store_is_killed(bench: Bench, redis: RedisProcess, known: list[Record]) -> None:
    redis.kill()
    for out in bench.batch(20):
        is_enriched(out, fallback=True)
    cached = [record(int(r.key[1:])) for r in known[:20] if r.key]
    for out in bench.predictions(cached):
        is_enriched(out, fallback=False)
    redis.start()
    bench.until(lambda outs: not outs[0].document["lookup_fallbacks"])
    for out in bench.batch(20):
        is_enriched(out, fallback=False)


VERSIONS_MS = (1_700_000_000_000, 1_700_000_100_000, 1_700_000_200_000)


def test_a_replay_sees_the_rows_of_its_events_time(
    bootstrap: str, enriched_models: Path, redis: RedisProcess, tmp_path: Path
) -> None:
    """Two jobs read the same events; the table got a version that is too late for them between."""
    own = own_overrides(bootstrap, enriched_models, tmp_path)
    topic = TableTopic(bootstrap, f"{own['name']}-terminals")
    topic.create()
    for version, time_ms in enumerate(VERSIONS_MS):
        rows = {f"m{n}": {"risk": version + n / 100, "kind": "shop"} for n in range(TERMINALS)}
        topic.put(rows, time_ms)
    versioned = {"topic": topic.name, "as_of": "event_time", "min_rows": TERMINALS}
    overrides = own | enrichment(redis.url) | table(**versioned) | {"model.embedded": True}
    times = range(VERSIONS_MS[0] - 50_000, VERSIONS_MS[-1] + 50_000, 1_000)
    records = [record(n, time_ms) for n, time_ms in enumerate(times)]
    first = replayed(load(CONFIG, overrides), len(records), *records)
    assert len(first) == len(times)
    for document, terminal in first.values():
        version = sum(document["event_time_ms"] >= time_ms for time_ms in VERSIONS_MS) - 1
        expected = None if version < 0 else version + terminal / 100
        assert document["features"]["terminal_risk"] == expected
    topic.put({f"m{n}": {"risk": 99.0, "kind": "kiosk"} for n in range(TERMINALS)}, times[-1] + 1)
    outputs = own_overrides(bootstrap, enriched_models, tmp_path)
    again = {"topics.events": own["topics.events"], "topics.labels": own["topics.labels"]}
    second = replayed(load(CONFIG, overrides | outputs | again), len(records))
    assert _of_table(second) == _of_table(first)


def _of_table(found: dict[str, tuple[dict[str, Any], int]]) -> dict[str, list[Any]]:
    """The features out of the table; those of a terminal's windows depend on the arrival."""
    names = ("terminal_risk", "kind_shop")
    return {k: [d["features"][name] for name in names] for k, (d, _) in found.items()}


def replayed(settings: Settings, n: int, *records: Record) -> dict[str, tuple[dict[str, Any], int]]:
    """Run a job until it has scored ``n`` events; the predictions and their terminals, by event."""
    with Traffic(settings) as traffic:
        traffic.send(*records)
        with running(settings):
            traffic.poll_until(lambda: len(traffic.accounted) == n)
        found = [out.document for out in traffic.outputs["predictions"]]
    return {d["event_id"]: (d, int(d["event_id"][1:]) % TERMINALS) for d in found}
