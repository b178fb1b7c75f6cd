"""What leaves the job, against the JSON Schemas that describe it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

from model_server.errors import PredictError
from udfs.batch import FeatureBatch
from udfs.events import Reject
from udfs.records import RecordWriter, Verdict, dead_letter, duplicate, lines

SCHEMAS = Path(__file__).parents[3] / "conf" / "schemas"
NAMES = ("prediction", "alert", "dead_letter", "duplicate")
DOCUMENTS = {n: json.loads((SCHEMAS / f"{n}.json").read_text(encoding="utf-8")) for n in NAMES}
REGISTRY: Registry[Any] = Registry().with_resources(
    (document["$id"], Resource.from_contents(document)) for document in DOCUMENTS.values()
)
COLUMNS = ("amount", "hour", "card_count_5m", "distance_km")
STAGES = ("card_id", "terminal_id")
UNUSUAL = ('"\\ \t\u2028', "日本\U0001f600", "<&>'", "é" * 300)


def check(name: str, text: bytes) -> dict[str, Any]:
    validator = Draft202012Validator(
        DOCUMENTS[name],
        registry=REGISTRY,
        format_checker=Draft202012Validator.FORMAT_CHECKER,
    )
    record: dict[str, Any] = json.loads(text)
    validator.validate(record)
    return record


def make_batch(raw: list[bytes], ids: tuple[str, ...] | None = None) -> FeatureBatch:
    n = len(raw)
    features = np.arange(n * len(COLUMNS), dtype=np.float64).reshape(n, -1)
    features[0, 3] = np.nan
    return FeatureBatch(
        keys=[f"c{i}" for i in range(n)],
        ids=list(ids or (f"t{i}" for i in range(n))),
        raw=raw,
        positions=np.array([(1, 7 + i, 1_700_000_000_500) for i in range(n)], dtype=np.int64),
        times=np.full(n, 1_700_000_000_000, dtype=np.int64),
        entities={},
        values={},
        features=features,
        order=np.arange(n * len(STAGES), dtype=np.int64).reshape(n, -1),
    )


@pytest.fixture
def writer() -> RecordWriter:
    return RecordWriter("transactions", COLUMNS, STAGES, threshold=0.85)


def answered(*scores: float) -> Verdict:
    return Verdict(np.array(scores), "fraud", 3)


def one(writer: RecordWriter, raw: bytes = b"{}") -> dict[str, Any]:
    return writer.predictions(make_batch([raw]), answered(0.9), 1_700_000_001_000)[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_is_one_and_says_what_everything_means(name: str) -> None:
    document = DOCUMENTS[name]
    Draft202012Validator.check_schema(document)
    assert document["$id"] == f"urn:streamscore:{name}:1"
    open_objects = {"features", "order", "event"}
    for at, node in objects_of(document, name):
        assert node.get("additionalProperties") is False or at in open_objects, at
        assert all("description" in p for p in node.get("properties", {}).values()), at


def objects_of(node: dict[str, Any], at: str) -> list[tuple[str, dict[str, Any]]]:
    found = [(at, node)] if node.get("type") == "object" else []
    children = list(node.get("properties", {}).items())
    children += [(at, node["items"])] if "items" in node else []
    return found + [pair for name, child in children for pair in objects_of(child, name)]


def test_a_prediction_says_all_there_is(writer: RecordWriter) -> None:
    record = check("prediction", lines([one(writer)])[0])
    assert record == {
        "schema_version": 1,
        "prediction_id": "transactions-1-7",
        "event_id": "t0",
        "key": "c0",
        "score": 0.9,
        "model": {"name": "fraud", "version": 3},
        "fallback_reason": None,
        "event_time_ms": 1_700_000_000_000,
        "ingest_time_ms": 1_700_000_000_500,
        "scored_time_ms": 1_700_000_001_000,
        "features": {"amount": 0.0, "hour": 1.0, "card_count_5m": 2.0, "distance_km": None},
        "order": {"card_id": 0, "terminal_id": 1},
        "source": {"topic": "transactions", "partition": 1, "offset": 7},
    }


@pytest.mark.parametrize("reason", sorted(kind.reason for kind in PredictError.__subclasses__()))
def test_a_fallback_says_why_and_never_alerts(writer: RecordWriter, reason: str) -> None:
    verdict = Verdict(np.array([1.0]), "fraud", None, reason)
    text = lines(writer.predictions(make_batch([b"{}"]), verdict, 1))[0]
    record = check("prediction", text)
    assert (record["fallback_reason"], record["model"]["version"]) == (reason, None)
    assert writer.alert_rows(verdict) == []


@pytest.mark.parametrize(
    ("version", "reason"),
    [(None, None), (3, "timeout"), (None, "of its own making")],
    ids=["no version", "a version on a fallback", "an unknown reason"],
)
def test_the_schema_refuses_a_record_that_contradicts_itself(
    writer: RecordWriter, version: int | None, reason: str | None
) -> None:
    record = one(writer) | {"model": {"name": "fraud", "version": version}}
    with pytest.raises(ValidationError):
        check("prediction", lines([record | {"fallback_reason": reason}])[0])


def test_only_scores_above_the_threshold_alert(writer: RecordWriter) -> None:
    assert writer.alert_rows(answered(0.85, 0.8501, 0.2, 1.0)) == [1, 3]


def test_an_alert_has_the_three_largest_contributions_by_absolute_value(
    writer: RecordWriter,
) -> None:
    text = writer.alert(one(writer), b'{"a":1}', np.array([0.5, -2.0, 0.1, 1.0]))
    record = check("alert", text)
    assert record["reasons"] == [
        {"feature": "hour", "value": 1.0, "contribution": -2.0},
        {"feature": "distance_km", "value": None, "contribution": 1.0},
        {"feature": "amount", "value": 0.0, "contribution": 0.5},
    ]
    assert (record["threshold"], record["event"]) == (0.85, {"a": 1})
    assert record["prediction"] == json.loads(lines([one(writer)])[0])


def test_an_alert_without_contributions_has_no_reasons(writer: RecordWriter) -> None:
    assert check("alert", writer.alert(one(writer), b"{}", None))["reasons"] == []


def test_a_model_of_two_features_has_two_reasons() -> None:
    writer = RecordWriter("t", ("a", "b"), (), 0.5)
    prediction = {"features": {"a": 1.0, "b": 2.0}}
    record = json.loads(writer.alert(prediction, b"{}", np.array([1.0, 2.0])))
    assert [reason["feature"] for reason in record["reasons"]] == ["b", "a"]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"extra": ' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"n": 123456789012345678901234567890}',
        b'{"n": 0.10000000000000000555}',
        json.dumps({"unusual": list(UNUSUAL), "\u2028": None}).encode(),
    ],
    ids=["deep", "long", "precise", "unusual"],
)
def test_an_alert_holds_its_event_as_it_came(writer: RecordWriter, raw: bytes) -> None:
    text = writer.alert(one(writer), raw, None)
    assert raw in text
    assert check("alert", text)["event"] == json.loads(raw)


def test_an_alert_is_one_line_even_if_its_event_is_not(writer: RecordWriter) -> None:
    event = {"a": [1, {"b": "x\ny"}]}
    text = writer.alert(one(writer), json.dumps(event, indent=2).encode(), None)
    assert b"\n" not in text
    assert check("alert", text)["event"] == event


def test_unusual_characters_survive(writer: RecordWriter) -> None:
    batch = make_batch([b"{}"] * len(UNUSUAL), UNUSUAL)
    predictions = writer.predictions(batch, answered(*[0.9] * len(UNUSUAL)), 1)
    records = [check("prediction", line) for line in lines(predictions)]
    assert tuple(record["event_id"] for record in records) == UNUSUAL


@pytest.mark.parametrize("raw", [b"", b"\x00\xff{", "日本".encode(), b"a" * 10_000])
def test_a_dead_letter_holds_the_bytes_the_reason_and_the_place(raw: bytes) -> None:
    reject = Reject(raw, "not_json", 'not JSON: "\u2028\n', 2, 9, -1)
    record = check("dead_letter", dead_letter("labels", reject))
    assert base64.b64decode(record["raw_base64"]) == raw
    assert record["source"] == {"topic": "labels", "partition": 2, "offset": 9}
    assert (record["code"], record["message"]) == ("not_json", reject.message)


@pytest.mark.parametrize("event_id", UNUSUAL)
def test_a_duplicate_names_the_event_and_the_place(event_id: str) -> None:
    record = check("duplicate", duplicate("transactions", event_id, [0, 5, 1_700_000_000_000]))
    assert record == {
        "schema_version": 1,
        "event_id": event_id,
        "source": {"topic": "transactions", "partition": 0, "offset": 5},
        "ingest_time_ms": 1_700_000_000_000,
    }
