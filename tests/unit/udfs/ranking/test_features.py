import numpy as np
import pytest

from tests.support.purchases import (
    OPTIONS,
    decayed,
    middle_ms,
    replay_before,
    small_index,
    small_log,
)
from udfs.ranking.arrays import DAY_MS
from udfs.ranking.building import build_index
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.counters import HALF_LIVES_DAYS, ItemCounters
from udfs.ranking.features import FEATURES, pair_features
from udfs.ranking.log import item_keys
from udfs.ranking.replay import Replay
from udfs.ranking.users import UserState
from udfs.ranking.views import view_of

ASK = CandidateOptions(count=40, popular=10, fresh=5)


def column(request, name: str) -> np.ndarray:
    return request.features[:, FEATURES.index(name)]


def asked_in_the_middle():
    """Each request of two days after the middle, with its basket."""
    log = small_log()
    begin = middle_ms(log)
    replay = replay_before(log, small_index(), begin, ASK)
    end = log.place_of(begin + 2 * DAY_MS)
    return list(replay.requests(log.part(slice(log.place_of(begin), end))))


def test_features_equal_what_the_log_before_the_request_gives():
    log, index = small_log(), small_index()
    asked = asked_in_the_middle()
    assert len(asked) > 5
    for basket, request in asked:
        past = log.before(basket.time_ms)
        own = past.users == basket.user
        for place, item in enumerate(request.found.rows[:10]):
            bought = past.times_ms[own & (past.items == item)]
            count = column(request, "bought_count")[place]
            assert count == len(bought)
            ago = column(request, "bought_days_ago")[place]
            if len(bought):
                assert ago == pytest.approx((basket.time_ms - bought.max()) / DAY_MS, rel=1e-5)
            else:
                assert np.isnan(ago)
            for days in HALF_LIVES_DAYS:
                total = sum(decayed(past, i, basket.time_ms, days) for i in range(len(index)))
                share = decayed(past, item, basket.time_ms, days) / total
                expected = np.log(share * len(index) + 1e-3)
                seen = column(request, f"item_log_share_{days:g}d")[place]
                assert seen == pytest.approx(expected, rel=1e-4, abs=1e-5)
        if own.any():
            idle = (basket.time_ms - past.times_ms[own].max()) / DAY_MS
            assert column(request, "user_idle_days")[0] == pytest.approx(idle, rel=1e-5)
            price = np.log(past.prices[own].mean())
            assert column(request, "user_log_price")[0] == pytest.approx(price, rel=1e-4)


def test_no_future_purchase_is_in_a_feature():
    """Whatever happens from a moment on, what was asked before it sees the same."""
    log = small_log()
    moment = middle_ms(log) + 2 * DAY_MS
    kept = log.before(moment)

    def features(part):
        index = build_index(part, middle_ms(log), OPTIONS)
        replay = replay_before(part, index, middle_ms(log), ASK)
        return [
            request.features.tobytes()
            for basket, request in replay.requests(part.since(middle_ms(log)))
            if basket.time_ms < moment
        ]

    assert len(features(kept)) > 5
    assert features(kept) == features(log)


def test_a_later_split_changes_no_feature_before_the_earlier_one():
    log = small_log()
    early, late = middle_ms(log), middle_ms(log) + 10 * DAY_MS
    index = small_index()

    def features(split):
        replay = Replay(index, item_keys(log), ASK, ItemCounters.empty(len(index), split))
        found = replay.requests(log.before(split))
        return [r.features.tobytes() for basket, r in found if basket.time_ms < early]

    # Counts are kept relative to the split, so the last bit of a float32 may differ.
    for one, other in zip(features(early), features(late), strict=True):
        a, b = (np.frombuffer(f, np.float32) for f in (one, other))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_basket_is_not_in_its_own_request_nor_in_others_of_its_time():
    log = small_log()
    at = middle_ms(log)
    together = log.part(slice(log.place_of(at), log.place_of(at) + 12))
    moved = type(together)(
        together.users,
        together.items,
        np.full(len(together), at),
        together.prices,
        together.baskets,
        *(getattr(log, name) for name in ("item_ids", "categories", "user_ids")),
    )
    asked = list(replay_before(log, small_index(), at, ASK).requests(moved))
    alone = replay_before(log, small_index(), at, ASK)
    for basket, request in asked:
        expected = alone.request(basket.user, at).features
        assert request.features.tobytes() == expected.tobytes()


def test_packed_state_gives_the_same_features():
    log, index = small_log(), small_index()
    replay = replay_before(log, index, middle_ms(log), ASK)
    for user in list(replay.users)[:20]:
        request = replay.request(user, middle_ms(log))
        state = UserState.unpack(replay.users[user].pack())
        view = view_of(index, state, middle_ms(log))
        again = pair_features(index, replay.counters, view, request.found)
        assert again.tobytes() == request.features.tobytes()


def test_a_cold_user_misses_what_only_a_history_gives():
    log = small_log()
    request = replay_before(log, small_index(), middle_ms(log), ASK).request(-1, middle_ms(log))
    for name in ("user_idle_days", "user_log_price", "category_share", "bought_days_ago"):
        assert np.isnan(column(request, name)).all()
    for name in ("covisit_users", "similarity", "bought_count", "session_items"):
        assert not column(request, name).any()
    assert not np.isinf(request.features).any()
