"""A ranking job with a real broker, model server and gateway: what one gets over HTTP."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import xgboost
from confluent_kafka import Consumer, TopicPartition

from jobs.settings import Settings
from tests.support.purchases import middle_ms, small_index, small_log
from tests.support.ranking import (
    CONFIG,
    OPTIONS,
    feed_overrides,
    feed_settings,
    offline,
    write_version,
)
from tests.support.running import restarts, running
from tests.support.servers import GatewayProcess, ModelServerProcess
from tests.support.waiting import wait_until
from udfs.ranking.arrays import keys_of, largest

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

NOW_MS = middle_ms(small_log())


class Feed:
    """The gateway, as its callers see it, and the job's topics."""

    def __init__(self, settings: Settings, port: int) -> None:
        self.settings = settings
        self._base = f"http://127.0.0.1:{port}"

    def post(self, path: str, document: Any) -> Any:
        request = urllib.request.Request(self._base + path, json.dumps(document).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def rank(self, user: str, items: int = 10, time_ms: int = NOW_MS) -> Any:
        return self.post("/rank", {"user": user, "items": items, "event_time_ms": time_ms})

    def read(self, topic: str) -> list[dict[str, Any]]:
        """All that is in a topic now."""
        partitions = self.settings.topics.partitions
        options = {
            "bootstrap.servers": self.settings.kafka.bootstrap_servers,
            "group.id": "test",
            "log_level": 0,
        }
        consumer, found = Consumer(options), list[dict[str, Any]]()
        for n in range(partitions):
            part = TopicPartition(topic, n, 0)
            left = consumer.get_watermark_offsets(part, timeout=10)[1]
            consumer.assign([part])
            while left:
                message = consumer.poll(10)
                assert message is not None and message.error() is None
                found.append(orjson.loads(message.value() or b"null"))
                left -= 1
        consumer.close()
        return found


@pytest.fixture(scope="module")
def stage(
    bootstrap: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Feed, ModelServerProcess, Path, xgboost.Booster]]:
    folder = tmp_path_factory.mktemp("ranking")
    models = folder / "models"
    booster = write_version(models)
    overrides = feed_overrides(bootstrap, models, folder)
    with ModelServerProcess(models, folder / "server.log", name="feed") as server:
        overrides |= {"model.server": f"127.0.0.1:{server.port}", "gateway.deadline": "20s"}
        overrides |= {"model.deadline": "10s"}
        settings = feed_settings(overrides)
        with (
            running(settings) as job,
            GatewayProcess(CONFIG, folder / "gateway.log", overrides) as gateway,
        ):
            yield Feed(settings, gateway.port), server, models, booster
            assert restarts(job) == 0


def warm_users(feed: Feed) -> list[str]:
    """Tell the job what three users bought before the version's time; their names."""
    log = small_log().before(NOW_MS)
    users = np.unique(log.users, return_counts=True)
    chosen = users[0][largest(users[1], 3)].tolist()
    for basket in log.in_baskets():
        if basket.user not in chosen:
            continue
        ids = log.item_ids[basket.items].tolist()
        order = np.argsort(keys_of(ids))  # as a basket that is taken as a whole
        feed.post(
            "/events",
            [
                {
                    "kind": "purchase",
                    "user": log.user_ids[basket.user],
                    "item": ids[n],
                    "price": float(basket.prices[n]),
                    "event_time_ms": basket.time_ms,
                }
                for n in order
            ],
        )
    return [str(log.user_ids[n]) for n in chosen]


def expected(booster: xgboost.Booster, user: str, items: int) -> dict[str, float]:
    """Item and score of what should come, by the core and the model alone."""
    log, replay = small_log(), offline(user)
    numbers = {str(name): n for n, name in enumerate(log.user_ids.tolist())}
    request = replay.request(numbers.get(user, -1), NOW_MS)
    matrix = np.concatenate([request.features, np.zeros((len(request.features), 1))], axis=1)
    scores = booster.inplace_predict(matrix.astype(np.float32), missing=np.nan)
    best = largest(scores, items)
    ids = small_index().ids[request.found.rows[best]].tolist()
    return dict(zip(ids, scores[best].tolist(), strict=True))


def test_the_answer_is_what_the_core_computes(stage: Any) -> None:
    feed, _, _, booster = stage
    users = warm_users(feed)
    for user in (*users, "nobody"):
        answer = feed.rank(user)
        assert answer["fallback"] is False, answer
        assert answer["candidates"] == OPTIONS.count and answer["item_version"] == 1
        assert answer["model"] == {"name": "feed", "version": 1}
        got = {one["item"]: one["score"] for one in answer["items"]}
        wanted = expected(booster, user, 10)
        assert list(got.values()) == pytest.approx(list(wanted.values()), abs=1e-6)
        assert got == pytest.approx(wanted, abs=1e-6)
        assert all(one["reason"] for one in answer["items"])


def test_clicks_become_labels(stage: Any) -> None:
    feed, _, _, _ = stage
    answer = feed.rank("clicker", items=5)
    clicked = answer["items"][1]["item"]
    click = {"kind": "click", "user": "clicker", "item": clicked}
    click |= {"request_id": answer["request_id"], "event_time_ms": NOW_MS + 1_000}
    feed.post("/events", click)
    # An hour later in event time: the window and the lateness are over.
    wait_until(lambda: bool(found(feed, answer["request_id"], tick=True)), 60, "the example")
    (example,) = found(feed, answer["request_id"])
    assert [one["label"] for one in example["items"]] == [0, 1, 0, 0, 0]
    assert example["items"][1]["kinds"] == ["click"]
    assert len(example["items"][0]["features"]) == len(example["columns"])


def found(feed: Feed, request_id: str, tick: bool = False) -> list[dict[str, Any]]:
    """The request's examples; a tick is another request of an hour later."""
    if tick:
        feed.rank("clicker", time_ms=NOW_MS + 3_600_000)
    examples = feed.read(feed.settings.topics.examples or "")
    return [one for one in examples if one.get("example_id") == request_id]


def test_purchases_become_popularity(stage: Any) -> None:
    feed, _, _, _ = stage
    item = str(small_index().ids[0])
    buy = {"kind": "purchase", "user": "buyer", "item": item, "event_time_ms": NOW_MS + 5_000}
    feed.post("/events", buy)
    topic = feed.settings.topics.popularity or ""

    def counted() -> bool:
        newest = [one["last_ms"] for one in feed.read(topic) if one["item"] == item]
        return NOW_MS + 5_000 in newest  # before it, what the version knows of the item

    wait_until(counted, 30, "popularity")


def test_with_the_server_killed_popular_items_come_in_time(stage: Any) -> None:
    feed, server, _, _ = stage
    server.kill()
    answers = [feed.rank("nobody") for _ in range(20)]
    assert all(answer["fallback"] for answer in answers)
    assert {answer["fallback_reason"] for answer in answers} <= {"unavailable", "circuit_open"}
    assert all(len(answer["items"]) == 10 for answer in answers)
    assert all(one["reason"] == "popular" for one in answers[0]["items"])
    server.__init__(feed.settings.model.path, server._log, server.port, "feed")  # type: ignore[misc]
    server.start()
    wait_until(lambda: not feed.rank("nobody")["fallback"], 30, "the model again")


def test_a_new_version_is_taken_without_a_restart(stage: Any) -> None:
    feed, _, models, _ = stage
    write_version(models, 2)

    def is_new() -> bool:
        answer = feed.rank("nobody")
        return bool(answer["item_version"] == 2 and (answer["model"] or {}).get("version") == 2)

    wait_until(is_new, 60, "version 2")


def test_nothing_was_refused_and_every_request_has_one_reply(stage: Any) -> None:
    feed, _, _, _ = stage
    topics = feed.settings.topics
    assert feed.read(topics.dead_letters) == [] and feed.read(topics.duplicates) == []
    asked = {one["event_id"] for one in feed.read(topics.events) if one["kind"] == "request"}

    def replied() -> list[str]:
        return [one["request_id"] for one in feed.read(topics.predictions)]

    begun_s = time.monotonic()
    wait_until(lambda: set(replied()) == asked, 30, "all replies")
    assert len(replied()) == len(asked), time.monotonic() - begun_s
