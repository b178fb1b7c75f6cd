"""What leaves a ranking job: replies, impressions, examples, popularities, by their schemas."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from jsonschema import Draft202012Validator, ValidationError

from jobs.environment import ROOT
from udfs.batches.batch import FeatureBatch
from udfs.batches.records import Verdict
from udfs.feedback.join import FeedbackJoin, FeedbackOptions
from udfs.feedback.records import Interaction, Shown, record_of
from udfs.preparation.preparation import Input, Preparation
from udfs.ranking.candidates import Source
from udfs.ranking.live_popularity import ItemPopularity
from udfs.ranking.output import RankingOutput, expired_reply

OUTPUT = RankingOutput("feed-events", Preparation([Input(name="a"), Input(name="b")]))
SOURCES = [Source.POPULAR | Source.COVISIT, Source.POPULAR, Source.FRESH]


def check(name: str, document: Any) -> None:
    schema = json.loads((ROOT / "conf" / "schemas" / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(document)


def request(number: int, items: int) -> FeatureBatch:
    """Three candidates of one request."""
    asked = {"request_id": f"r{number}", "user": f"u{number}", "gateway": "g", "item_version": 4}
    return FeatureBatch(
        keys=[f"u{number}"] * 3,
        ids=["x", "y", "z"],
        raw=[orjson.dumps(asked | {"items": items}), b"", b""],
        positions=np.full((3, 3), number, np.int64),
        times=np.full(3, 1_000 * number, np.int64),
        entities={},
        values={"sources": np.array(SOURCES, np.float64), "popularity": np.array([1.0, 9.0, 0.0])},
        features=np.array([[0.5, np.nan], [1.0, 2.0], [3.0, 4.0]]),
        order=np.empty((3, 0), np.int64),
        late=np.zeros(3, np.bool_),
    )


BATCH = FeatureBatch.merged([request(1, 2), request(2, 3)])
SCORED = Verdict(np.array([0.1, 0.2, 0.3, 0.9, 0.7, 0.8]), "feed", 7)


def written(batch: FeatureBatch, verdict: Verdict | None) -> list[list[tuple[bytes, Any]]]:
    row = OUTPUT.rows(batch, verdict, None)
    return [[(key, orjson.loads(value)) for key, value in column] for column in row]


def test_each_request_has_its_best_items_in_order() -> None:
    replies, impressions, _, _ = written(BATCH, SCORED)
    assert [key for key, _ in replies] == [b"g", b"g"]
    assert [key for key, _ in impressions] == [b"u1", b"u2"]
    first, second = (document for _, document in replies)
    assert [(one["item"], one["score"]) for one in first["items"]] == [("z", 0.3), ("y", 0.2)]
    assert [one["item"] for one in second["items"]] == ["x", "z", "y"]
    assert [one["position"] for one in second["items"]] == [0, 1, 2]
    assert first["items"][0]["reason"] == "new"
    assert first["model"] == {"name": "feed", "version": 7} and first["item_version"] == 4
    assert impressions[1][1]["items"][0]["features"] == [0.5, None]
    for _, document in replies:
        check("reply", document)
    for _, document in impressions:
        check("impression", document)


def test_without_a_score_the_popular_ones_come_marked() -> None:
    replies, _, _, _ = written(BATCH, OUTPUT.fallback(BATCH, "feed", "unavailable"))
    document = replies[0][1]
    assert [(one["item"], one["score"]) for one in document["items"]] == [("y", None), ("x", None)]
    assert {one["reason"] for one in document["items"]} == {"popular"}
    assert document["fallback_reason"] == "unavailable" and document["model"]["version"] is None
    check("reply", document)


def test_what_was_refused_goes_along() -> None:
    refused = FeatureBatch.empty((), ())
    refused = replace(refused, dead_letters=[("0-1", b"{}")], duplicates=[("u", b"{}")])
    replies, impressions, dead_letters, duplicates = written(refused, None)
    assert not replies and not impressions and dead_letters == [(b"0-1", {})]
    assert duplicates == [(b"u", {})]


def test_examples_corrections_and_popularities_fit_their_schemas() -> None:
    class Stored(dict[str, bytes]):
        put = dict.__setitem__

        def remove(self, key: str) -> None:
            self.pop(key, None)

    raw = OUTPUT.rows(BATCH, SCORED, None)[1][1][1]
    impression = record_of(raw, frozenset())
    assert impression is not None
    join = FeedbackJoin(FeedbackOptions(100, 10, 10_000), Stored())
    records = [impression, Shown("r2", 2_000), Interaction("r2", "z", "click", 2_050)]
    documents = [*join.take(records), *join.finish()]
    documents += join.take([Interaction("r2", "y", "click", 2_060)])
    example, late = (orjson.loads(one.value) for one in documents)
    assert [one["label"] for one in example["items"]] == [0, 1, 0]
    check("example", example)
    check("late", late)
    check("popularity", orjson.loads(ItemPopularity().add(5, 1.0).record("x")))
    with pytest.raises(ValidationError):
        check("example", late)


def test_a_request_that_nobody_waits_for_is_accounted_for() -> None:
    gateway, reply = expired_reply("g", BATCH, 3, "feed-events", "feed", 4)
    document = orjson.loads(reply)
    assert gateway == "g" and document["items"] == []
    assert document["fallback_reason"] == "expired" and document["source"]["offset"] == 2
    check("reply", document)
