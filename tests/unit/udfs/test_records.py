"""What leaves the job, against the JSON Schemas that describe it."""

from __future__ import annotations

import base64
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

from model_server.errors import PredictError
from udfs.batches.batch import FeatureBatch
from udfs.batches.events import Reject
from udfs.batches.records import RecordWriter, Verdict, dead_letter, duplicate

SCHEMAS = Path(__file__).parents[3] / "conf" / "schemas"
NAMES = ("prediction", "alert", "dead_letter", "duplicate")
DOCUMENTS = {n: json.loads((SCHEMAS / f"{n}.json").read_text(encoding="utf-8")) for n in NAMES}
REGISTRY: Registry[Any] = Registry().with_resources(
    (document["$id"], Resource.from_contents(document)) for document in DOCUMENTS.values()
)
COLUMNS = ("amount", "hour", "card_count_5m", "distance_km")
STAGES = ("card_id", "terminal_id")
UNUSUAL = (
    '"\\ \t\u2028',
    "日本\U0001f600",
    "<&>'",
    "é" * 300,
    "%s %(a)d %% {} {0}",
    "".join(map(chr, range(32))),
    "\x7f\x80\x9f\xa0\ufeff\ufffe",
    '","score":1,"x":"',
    "\\u0041\\",
    "",
    ",[]",
    "a\nb\r\n",
)


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
        late=np.zeros(n, np.bool_),
    )


@pytest.fixture
def writer() -> RecordWriter:
    return RecordWriter("transactions", COLUMNS, STAGES, threshold=0.85)


def answered(*scores: float) -> Verdict:
    return Verdict(np.array(scores), "fraud", 3)


def one(writer: RecordWriter) -> bytes:
    predictions = writer.predictions(make_batch([b"{}"]), answered(0.9), 1_700_000_001_000)
    return as_bytes(predictions[0])


def as_bytes(record: bytes | str) -> bytes:
    return record.encode() if isinstance(record, str) else record


def test_a_prediction_says_which_lookups_fell_back() -> None:
    writer = RecordWriter("transactions", COLUMNS, STAGES, 0.85, has_lookups=True)
    marks = ["", '"profile"', '"profile","account"']
    batch = replace(make_batch([b"{}"] * 3), lookup_fallbacks=marks)
    made = writer.predictions(batch, answered(0.9, 0.9, 0.9), 1_700_000_001_000)
    found = [check("prediction", as_bytes(record)) for record in made]
    assert [d["lookup_fallbacks"] for d in found] == [[], ["profile"], ["profile", "account"]]
    assert [d["key"] for d in found] == ["c0", "c1", "c2"]


def test_a_prediction_says_which_features_are_warming(writer: RecordWriter) -> None:
    since = {"card_count_5m": np.array([0, 5, 5]), "hour": np.array([0, 0, 7])}
    batch = replace(make_batch([b"{}"] * 3), warming=since, late=np.array([True, False, True]))
    made = writer.predictions(batch, answered(0.9, 0.9, 0.9), 1_700_000_001_000)
    found = [check("prediction", as_bytes(record)) for record in made]
    warming = [document.get("warming") for document in found]
    assert warming == [None, {"card_count_5m": 5}, {"card_count_5m": 5, "hour": 7}]
    assert [document.get("late") for document in found] == [True, None, True]
    again = FeatureBatch.merged([make_batch([b"{}"]), batch.select([2])])
    assert {name: of.tolist() for name, of in again.warming.items()} == {
        "card_count_5m": [0, 5],
        "hour": [0, 7],
    }


def test_a_prediction_of_a_window_has_the_window() -> None:
    writer = RecordWriter("readings", COLUMNS, STAGES, 0.85, has_windows=True)
    windows = [
        {"window": f'm"{n}@20000', "window_start_ms": 10_000, "window_end_ms": 20_000}
        | {"readings": n + 1, "closed_by": "time", "current_mean": None}
        for n in range(2)
    ]
    batch = make_batch([json.dumps(window).encode() for window in windows])
    made = writer.predictions(batch, answered(0.9, 0.2), 1_700_000_001_000)
    found = [check("prediction", as_bytes(record)) for record in made]
    assert [d["window"] for d in found] == windows


def reasons(writer: RecordWriter, *contributions: float) -> list[dict[str, Any]]:
    """Why the first event of a batch scored as it did."""
    return writer.reasons(make_batch([b"{}"]).features[0], np.array(contributions))


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_is_one_and_says_what_everything_means(name: str) -> None:
    document = DOCUMENTS[name]
    Draft202012Validator.check_schema(document)
    assert document["$id"] == f"urn:streamscore:{name}:1"
    open_objects = {"features", "order", "event", "warming", "window"}
    for at, node in objects_of(document, name):
        assert node.get("additionalProperties") is False or at in open_objects, at
        assert all("description" in p for p in node.get("properties", {}).values()), at


def objects_of(node: dict[str, Any], at: str) -> list[tuple[str, dict[str, Any]]]:
    found = [(at, node)] if node.get("type") == "object" else []
    children = list(node.get("properties", {}).items())
    children += [(at, node["items"])] if "items" in node else []
    return found + [pair for name, child in children for pair in objects_of(child, name)]


def test_a_prediction_says_all_there_is(writer: RecordWriter) -> None:
    record = check("prediction", one(writer))
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
    text = writer.predictions(make_batch([b"{}"]), verdict, 1)[0]
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
    record = json.loads(one(writer))
    record |= {"model": {"name": "fraud", "version": version}, "fallback_reason": reason}
    with pytest.raises(ValidationError):
        check("prediction", json.dumps(record).encode())


def test_only_scores_above_the_threshold_alert(writer: RecordWriter) -> None:
    assert writer.alert_rows(answered(0.85, 0.8501, 0.2, 1.0)) == [1, 3]


def test_an_alert_has_the_three_largest_contributions_by_absolute_value(
    writer: RecordWriter,
) -> None:
    text = writer.alert(one(writer), b'{"a":1}', reasons(writer, 0.5, -2.0, 0.1, 1.0))
    record = check("alert", text)
    assert record["reasons"] == [
        {"feature": "hour", "value": 1.0, "contribution": -2.0},
        {"feature": "distance_km", "value": None, "contribution": 1.0},
        {"feature": "amount", "value": 0.0, "contribution": 0.5},
    ]
    assert (record["threshold"], record["event"]) == (0.85, {"a": 1})
    assert record["prediction"] == json.loads(one(writer))


def test_an_alert_without_contributions_has_no_reasons(writer: RecordWriter) -> None:
    none = writer.reasons(make_batch([b"{}"]).features[0], None)
    assert check("alert", writer.alert(one(writer), b"{}", none))["reasons"] == []


def test_a_model_of_two_features_has_two_reasons() -> None:
    writer = RecordWriter("t", ("a", "b"), (), 0.5)
    found = writer.reasons(np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    record = json.loads(writer.alert(b"{}", b"{}", found))
    assert [reason["feature"] for reason in record["reasons"]] == ["b", "a"]


def test_of_equal_contributions_the_first_features_are_named(writer: RecordWriter) -> None:
    found = [reason["feature"] for reason in reasons(writer, 1.0, -1.0, 1.0, -1.0)]
    assert found == ["amount", "hour", "card_count_5m"]


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
    text = writer.alert(one(writer), raw, [])
    assert raw in text
    assert check("alert", text)["event"] == json.loads(raw)


def test_an_alert_holds_an_event_of_several_lines(writer: RecordWriter) -> None:
    event = {"a": [1, {"b": "x\ny"}]}
    text = writer.alert(one(writer), json.dumps(event, indent=2).encode(), [])
    assert check("alert", text)["event"] == event


# -- a whole batch against json.dumps -----------------------------------------------------------

FLOATS = (
    *(0.0, -0.0, 1.0, -1.0, 0.1, 1 / 3, 1e15, 1e16, 1e21, 1e22, 123456789012345680.0, 2.0**53),
    *(5e-324, -5e-324, sys.float_info.min, sys.float_info.max, -sys.float_info.max, 1e-7, 1e-5),
    *(math.nan, math.inf, -math.inf),
)
WHOLE = (0, 1, -1, 9, 10, 10**18, 2**63 - 1, -(2**63))


def random_batch(
    n: int, seed: int, columns: int = len(COLUMNS), stages: int = len(STAGES)
) -> FeatureBatch:
    random = np.random.default_rng(seed)
    floats = random.choice([*FLOATS, *random.normal(size=20), *random.random(20)], (n, columns))
    return FeatureBatch(
        keys=random.choice(UNUSUAL, n).tolist(),
        ids=[f"{n}{text}" for n, text in enumerate(random.choice(UNUSUAL, n).tolist())],
        raw=[b"{}"] * n,
        positions=random.choice(WHOLE, (n, 3)),
        times=random.choice(WHOLE, n),
        entities={},
        values={},
        features=floats,
        order=random.choice(WHOLE, (n, stages)),
        late=np.zeros(n, np.bool_),
    )


def expected_records(
    batch: FeatureBatch,
    verdict: Verdict,
    scored_time_ms: int,
    topic: str = "transactions",
    columns: tuple[str, ...] = COLUMNS,
    stages: tuple[str, ...] = STAGES,
) -> list[bytes]:
    """The same by the book, a dict per event."""
    records = []
    for row in range(len(batch)):
        partition, offset, kafka_time_ms = batch.positions[row].tolist()
        document = {
            "schema_version": 1,
            "prediction_id": f"{topic}-{partition}-{offset}",
            "event_id": batch.ids[row],
            "key": batch.keys[row],
            "score": float(verdict.scores[row]),
            "model": {"name": verdict.model_name, "version": verdict.model_version},
            "fallback_reason": verdict.fallback_reason,
            "event_time_ms": int(batch.times[row]),
            "ingest_time_ms": kafka_time_ms,
            "scored_time_ms": scored_time_ms,
            "features": {
                name: value if math.isfinite(value) else None
                for name, value in zip(columns, batch.features[row].tolist(), strict=True)
            },
            "order": dict(zip(stages, batch.order[row].tolist(), strict=True)),
            "source": {"topic": topic, "partition": partition, "offset": offset},
        }
        records.append(json.dumps(document).encode())
    return records


def as_read(record: bytes | str) -> list[Any]:
    """A record with its members in order; floats by their bits, so that -0.0 is not 0.0."""
    pairs: list[Any] = json.loads(record, object_pairs_hook=list, parse_float=as_bits)
    return pairs


def as_bits(text: str) -> str:
    return float(text).hex()


def assert_as_expected(predictions: list[bytes], expected: list[bytes]) -> None:
    assert len(predictions) == len(expected)
    assert {type(record) for record in predictions} <= {bytes}
    for got, wanted in zip(predictions, expected, strict=True):
        assert as_read(got) == as_read(wanted)
        assert b"\n" not in got


@pytest.mark.parametrize("n", [1, 2, 3_000])
@pytest.mark.parametrize(("version", "reason"), [(3, None), (None, "timeout")])
def test_a_batch_is_what_json_dumps_makes(
    writer: RecordWriter, n: int, version: int | None, reason: str | None
) -> None:
    batch = random_batch(n, seed=n)
    scores = np.random.default_rng(n).choice([0.0, 1.0, 5e-324, 0.1, 1 / 3, 1 - 2**-53], n)
    verdict = Verdict(scores, "fraud", version, reason)
    predictions = writer.predictions(batch, verdict, 1_700_000_001_000)
    assert_as_expected(predictions, expected_records(batch, verdict, 1_700_000_001_000))


@pytest.mark.parametrize("text", UNUSUAL)
def test_topic_model_columns_and_stages_may_be_of_any_characters(text: str) -> None:
    columns, stages = (f"{text}1", f"{text}2"), (f"{text}3",)
    writer = RecordWriter(text, columns, stages, 0.5)
    batch = random_batch(5, seed=5, columns=2, stages=1)
    verdict = Verdict(np.full(5, 0.5), text, 3)
    expected = expected_records(batch, verdict, 9, text, columns, stages)
    assert_as_expected(writer.predictions(batch, verdict, 9), expected)


@pytest.mark.parametrize(("columns", "stages"), [(0, 0), (0, 1), (1, 0), (300, 3)])
def test_any_number_of_columns_and_stages(columns: int, stages: int) -> None:
    names = tuple(f"f{i}" for i in range(columns)), tuple(f"s{i}" for i in range(stages))
    writer = RecordWriter("t", *names, 0.5)
    batch = random_batch(7, seed=7, columns=columns, stages=stages)
    verdict = Verdict(np.linspace(0, 1, 7), "m", 1)
    expected = expected_records(batch, verdict, 9, "t", *names)
    assert_as_expected(writer.predictions(batch, verdict, 9), expected)


@settings(max_examples=150)
@given(
    texts=st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8"), max_size=12)] * 2),
        min_size=1,
        max_size=6,
    ),
    values=st.data(),
)
def test_any_text_and_number(texts: list[tuple[str, str]], values: st.DataObject) -> None:
    n = len(texts)
    floats = values.draw(st.lists(st.floats(), min_size=n * 4, max_size=n * 4))
    batch = make_batch([b"{}"] * n, tuple(id_ for id_, _ in texts))
    batch.keys[:] = [key for _, key in texts]
    batch.features[:] = np.array(floats).reshape(n, 4)
    verdict = answered(*[0.5] * n)
    writer = RecordWriter("transactions", COLUMNS, STAGES, threshold=0.85)
    assert_as_expected(writer.predictions(batch, verdict, 1), expected_records(batch, verdict, 1))


def test_records_given_away_are_not_overwritten_by_the_next_batch(writer: RecordWriter) -> None:
    batches = [random_batch(50, seed) for seed in (1, 2)]
    verdicts = [answered(*np.linspace(0, 1, 50)), answered(*np.linspace(1, 0, 50))]
    both = [writer.predictions(b, v, 1) for b, v in zip(batches, verdicts, strict=True)]
    for predictions, batch, verdict in zip(both, batches, verdicts, strict=True):
        assert_as_expected(predictions, expected_records(batch, verdict, 1))


def test_columns_of_another_layout_in_memory(writer: RecordWriter) -> None:
    """As slices and transposed arrays have it."""
    batch = random_batch(40, seed=4)
    strided = replace(
        batch,
        positions=np.asfortranarray(batch.positions),
        times=np.repeat(batch.times, 2)[::2],
        features=np.asfortranarray(batch.features),
        order=np.repeat(batch.order, 2, axis=1)[:, ::2],
    )
    verdict = Verdict(np.repeat(np.linspace(0, 1, 40), 2)[::2], "fraud", 3)
    expected = expected_records(batch, verdict, 1)
    assert_as_expected(writer.predictions(strided, verdict, 1), expected)


def test_unusual_characters_survive(writer: RecordWriter) -> None:
    batch = make_batch([b"{}"] * len(UNUSUAL), UNUSUAL)
    batch.keys[:] = UNUSUAL
    predictions = writer.predictions(batch, answered(*[0.9] * len(UNUSUAL)), 1)
    texts = [json.loads(record) for record in predictions]
    assert tuple(record["event_id"] for record in texts) == UNUSUAL
    assert tuple(record["key"] for record in texts) == UNUSUAL
    allowed = [record for record in predictions if json.loads(record)["key"]]
    assert len([check("prediction", record) for record in allowed]) == len(UNUSUAL) - 1


# -- dead letters and duplicates ----------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"\x00\xff{", "日本".encode(), b"a" * 10_000])
def test_a_dead_letter_holds_the_bytes_the_reason_and_the_place(raw: bytes) -> None:
    reject = Reject(raw, "not_json", 'not JSON: "\u2028\n', 2, 9, -1)
    record = check("dead_letter", dead_letter("labels", reject))
    assert base64.b64decode(record["raw_base64"]) == raw
    assert record["source"] == {"topic": "labels", "partition": 2, "offset": 9}
    assert (record["code"], record["message"]) == ("not_json", reject.message)


@pytest.mark.parametrize("event_id", filter(None, UNUSUAL))
def test_a_duplicate_names_the_event_and_the_place(event_id: str) -> None:
    record = check("duplicate", duplicate("transactions", event_id, [0, 5, 1_700_000_000_000]))
    assert record == {
        "schema_version": 1,
        "event_id": event_id,
        "source": {"topic": "transactions", "partition": 0, "offset": 5},
        "ingest_time_ms": 1_700_000_000_000,
    }
