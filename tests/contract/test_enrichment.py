"""Tables and look-ups in the operators: live as in training, shipped, restarted, marked."""

from __future__ import annotations

import copy
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import orjson
import pandas as pd
import pytest

from model_server.client import ClientOptions
from tests.support.contract_case import Case
from tests.support.flink import Subtask
from tests.support.scorers import output_of, prepared, write_model
from tests.support.servers import ModelServerProcess
from tests.support.stages import first_stage, next_stage
from tests.support.stores import RedisProcess
from tests.support.streams import BUCKETS, DOCUMENT, KAFKA_MS, a_record, micro_batch
from udfs.definition.schema import Schema
from udfs.enrichment.table_readers import Tables
from udfs.offline.offline import features_of, history_of
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.served import ServedScoring

CARDS = ("a", "b", "c", "d")
PROFILES = {"a": {"limit": 10.5}, "c": {"limit": 30.0}}
RISKS = {"t0": [(0, 0.25)], "t1": [(0, 0.5), (KAFKA_MS - 580_000, 0.75)]}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with RedisProcess() as server, server.client() as client:
        for card, profile in PROFILES.items():
            client.set(f"profile:{card}", orjson.dumps(profile))
        yield server


@pytest.fixture(scope="module")
def schema(redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> Schema:
    path = tmp_path_factory.mktemp("tables") / "terminals.jsonl"
    rows = [
        {"terminal": name, "since": since, "risk": risk}
        for name, versions in RISKS.items()
        for since, risk in versions
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    table = {
        "name": "at",
        "key": "terminal",
        "file": str(path),
        "time": "since",
        "fields": [{"name": "risk", "type": "float", "default": 0}],
    }
    lookup = {
        "name": "profile",
        "key": "card",
        "redis": {"url": redis.url, "key": "profile:{}"},
        "fields": [{"name": "limit", "type": "float"}],
        "deadline": "5s",
    }
    document = copy.deepcopy(DOCUMENT)
    features = document["features"]
    features["expressions"].append({"name": "risk", "type": "value", "fields": ["at_risk"]})
    risk = {"prefix": "risk", "key": "card", "value": "at_risk", "windows": ["10m"]}
    features["windows"].append(risk | {"aggregates": ["sum"]})
    return Schema.model_validate(document | {"tables": [table], "lookups": [lookup]})


@pytest.fixture(scope="module")
def enriched_models(schema: Schema, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models"), prepared(schema))


@pytest.fixture(scope="module")
def enriched_port(enriched_models: Path) -> Iterator[int]:
    with ModelServerProcess(enriched_models, enriched_models / "server.log") as server:
        yield server.port


@pytest.fixture(params=["embedded", "served"])
def case(request: pytest.FixtureRequest, schema: Schema, enriched_models: Path) -> Iterator[Case]:
    """First stage with a table, last stage with a look-up."""
    output = output_of(schema, enriched_models)

    def routed(seed: int) -> list[Any]:
        first = first_of(schema)
        try:
            return first.run_all(events(seed))
        finally:
            first.close()  # its table would be read on, and later tests would see it

    if request.param == "embedded":
        version = enriched_models / "fraud" / "7"
        embedded = EmbeddedScoring(version, "fraud", output, schema.lookups)
        made = Case(lambda: next_stage(copy.copy(embedded), schema=schema), routed)
    else:
        target = f"127.0.0.1:{request.getfixturevalue('enriched_port')}"
        options = ClientOptions(target, "fraud", deadline_ms=20_000, max_attempts=1)

        def served() -> Any:
            scoring = ServedScoring(options, output, 4, 3, lookups=schema.lookups)
            return next_stage(scoring, schema=schema)

        made = Case(served, routed, in_order=False)
    yield made
    for subtask in made.opened:
        subtask.close()


def first_of(schema: Schema) -> Subtask:
    return Subtask(first_stage(schema=schema, tables=Tables(schema.tables)))


def raw(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [a_record(rng, n, rng.choice(CARDS)) for n in range(60)]


def events(seed: int) -> list[Any]:
    records = raw(seed)
    return [micro_batch(BUCKETS[0], records[n : n + 9], n) for n in range(0, len(records), 9)]


def predictions(rows: list[Any]) -> list[dict[str, Any]]:
    return [json.loads(value) for row in rows for _, value in row[0]]


def test_features_are_those_of_training(case: Case, schema: Schema) -> None:
    subtask = case.open()
    found = predictions(subtask.run_all(case.stream(1)) + subtask.end())
    documents = [json.loads(record) for record in raw(1)]
    cards = pd.Series([d["card"] for d in documents])
    said = [PROFILES.get(card, {}).get("limit") for card in cards]
    frame = pd.DataFrame(documents).assign(profile_limit=pd.Series(said, dtype=float))
    history = history_of(schema, frame, tables=Tables(schema.tables))
    offline = features_of(schema, history.events)
    by_id = {p["event_id"]: p for p in found}
    assert len(by_id) == len(found) == len(documents)
    column = {name: n for n, name in enumerate(schema.columns)}
    for row, values in zip(offline.rows.tolist(), offline.features, strict=True):
        features = by_id[documents[row]["id"]]["features"]
        assert list(features) == list(schema.columns)
        for name in ("risk", "profile_limit", "amount"):
            want = values[column[name]]
            assert features[name] == (None if np.isnan(want) else want)
    assert {p["features"]["risk"] for p in found} == {0.0, 0.25, 0.5, 0.75}
    assert {tuple(p["lookup_fallbacks"]) for p in found} == {()}
    assert {p["fallback_reason"] for p in found} == {None}


def test_it_is_shipped_as_pyflink_ships_it(case: Case) -> None:
    shipped = pickle.loads(cloudpickle.dumps(case.make()))
    assert case.run_whole(case.open(function=shipped)) == case.expected()


def test_a_table_is_shipped_with_its_stage(schema: Schema) -> None:
    stage = first_stage(schema=schema, tables=Tables(schema.tables))
    stages = Subtask(pickle.loads(cloudpickle.dumps(stage))), Subtask(stage)
    first, second = ([b for _, b in one.run_all(events(2))] for one in stages)
    for got, want in zip(first, second, strict=True):
        np.testing.assert_array_equal(got.features, want.features)
    for one in stages:
        one.close()


@pytest.mark.parametrize("part", [0.25, 0.75])
def test_a_restart_changes_no_output(case: Case, part: float) -> None:
    stream = case.stream(1)
    cut = int(part * len(stream))
    before = case.open()
    first = before.run_all(stream[:cut])
    after = case.open(before.snapshot())
    rest = after.run_all(stream[cut:]) + after.end()
    assert case.plain(first + rest) == case.expected()


def test_events_are_marked_while_the_store_is_gone(case: Case, redis: RedisProcess) -> None:
    subtask = case.open()
    redis.kill()
    try:
        found = predictions(subtask.run_all(case.stream(1)) + subtask.end())
    finally:
        redis.start()
    assert len(found) == len(raw(1))
    assert {tuple(p["lookup_fallbacks"]) for p in found} == {("profile",)}
    assert {p["features"]["profile_limit"] for p in found} == {None}
    counted = subtask.context.metrics.counters
    assert counted["lookup_errors"].value + counted["lookup_timeouts"].value == len(found)
    assert counted["lookup_misses"].value == len(found)
