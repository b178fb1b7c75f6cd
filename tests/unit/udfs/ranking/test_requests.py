"""Requests of a micro-batch: who is still waited for, and all their candidates together."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from tests.support.purchases import middle_ms, replay_before, small_index, small_log
from udfs.batches.batch import FeatureBatch
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.live_items import LiveItems
from udfs.ranking.requests import Asked, candidate_batch, has_expired

OPTIONS = CandidateOptions(count=60, popular=10, fresh=5)
ORDER = np.array([0, 1, 6], np.intp)  # the request has one feature, FEATURES are after it


@pytest.mark.parametrize(
    ("document", "expired"),
    [
        ({"deadline_ms": 99}, True),
        ({"deadline_ms": 100}, False),
        ({"deadline_ms": "99"}, False),
        ({}, False),
    ],
)
def test_a_request_expires_at_its_deadline(document, expired):
    assert has_expired(document, 100) is expired


def requests(users: list[int]) -> tuple[FeatureBatch, list[Asked]]:
    n = len(users)
    batch = FeatureBatch(
        keys=[f"u{user}" for user in users],
        ids=[f"r{k}" for k in range(n)],
        raw=[b"{}"] * n,
        positions=np.arange(3 * n).reshape(n, 3),
        times=np.full(n, middle_ms(small_log())),
        entities={},
        values={},
        features=np.arange(1.0, n + 1).reshape(n, 1),
        order=np.empty((n, 0), np.int64),
        late=np.zeros(n, np.bool_),
    )
    log = small_log()
    replay = replay_before(log, small_index(), middle_ms(log), OPTIONS)
    views = [replay.request(user, middle_ms(log)).view for user in users]
    asked = [Asked(k, {"items": k + 1, "gateway": "g"}, view) for k, view in enumerate(views)]
    return batch, asked


def items() -> LiveItems:
    log = small_log()
    replay = replay_before(log, small_index(), middle_ms(log), OPTIONS)
    return LiveItems(3, small_index(), replay.counters)


def test_requests_together_get_what_each_gets_alone():
    batch, asked = requests([0, 7, -1])
    together = candidate_batch(items(), batch, asked, OPTIONS, ORDER)
    alone = [candidate_batch(items(), batch, [one], OPTIONS, ORDER) for one in asked]
    one_by_one = FeatureBatch.merged(alone)
    assert together.ids == one_by_one.ids and together.raw == one_by_one.raw
    assert together.keys == one_by_one.keys and len(together) == 3 * OPTIONS.count
    np.testing.assert_array_equal(together.features, one_by_one.features)
    np.testing.assert_array_equal(together.positions, one_by_one.positions)
    for name, values in together.values.items():
        np.testing.assert_array_equal(values, one_by_one.values[name])


def test_a_request_begins_with_what_it_asked_for():
    batch, asked = requests([0, 7])
    together = candidate_batch(items(), batch, asked, OPTIONS, ORDER)
    heads = [orjson.loads(raw) for raw in together.raw if raw]
    assert [head["items"] for head in heads] == [1, 2]
    assert [head["request_id"] for head in heads] == ["r0", "r1"]
    assert {head["gateway"] for head in heads} == {"g"} and heads[0]["item_version"] == 3
    assert together.features[0, 0] == 1.0 and together.features[-1, 0] == 2.0


def test_a_view_is_of_the_request_whatever_is_bought_later():
    log = small_log()
    replay = replay_before(log, small_index(), middle_ms(log), OPTIONS)
    before = replay.request(0, middle_ms(log)).view
    baskets = before.state.baskets
    replay.take(next(iter(log.since(middle_ms(log)).in_baskets())))
    replay.users[0].add(replay.keys[:3], middle_ms(log) + 1)
    assert before.state.baskets == baskets
