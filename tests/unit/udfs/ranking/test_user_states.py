"""Users of a batch: one purchase after the other is the same as whole baskets."""

from __future__ import annotations

import numpy as np

from tests.support.purchases import small_log
from udfs.ranking.arrays import keys_of
from udfs.ranking.user_states import BatchUsers, IdleUsers
from udfs.ranking.users import UserLimits, UserState

LIMITS = UserLimits(items=20)


class Stored(dict[str, bytes]):
    """What Flink's map state offers of a dict."""

    put = dict.__setitem__
    remove = dict.__delitem__


def test_purchases_in_batches_of_any_size_make_whole_baskets() -> None:
    log = small_log()
    expected: dict[str, UserState] = {}
    for basket in log.in_baskets():
        keys = keys_of(log.item_ids[basket.items].tolist())
        state = expected.setdefault(str(log.user_ids[basket.user]), UserState())
        state.add(keys, basket.time_ms, basket.prices, LIMITS)
    stored = Stored()
    rng = np.random.default_rng(3)
    starts = np.flatnonzero(np.diff(log.baskets, prepend=-1))  # a batch ends with a basket here
    bounds = [0, *np.sort(rng.choice(starts[1:], 30, replace=False)).tolist(), len(log)]
    for start, stop in zip(bounds, bounds[1:], strict=False):  # noqa: RUF007
        users = BatchUsers(stored, LIMITS)
        for n in range(start, stop):
            user, item = str(log.user_ids[log.users[n]]), str(log.item_ids[log.items[n]])
            users.buy(user, int(log.times_ms[n]), item, float(log.prices[n]))
        users.write()
    assert {user: UserState.unpack(packed).pack() for user, packed in stored.items()} == {
        user: state.pack() for user, state in expected.items()
    }


def test_a_request_sees_what_was_bought_before_it_in_the_batch() -> None:
    users = BatchUsers(Stored(), LIMITS)
    assert users.of("u", 1_000).baskets == 0
    users.buy("u", 1_000, "a", None)
    users.buy("u", 1_000, "b", 2.5)
    assert users.of("u", 1_000).baskets == 1 and len(users.of("u", 1_000).entries) == 2
    assert users.of("v", 1_000).baskets == 0


IDLE = UserLimits(idle_ms=1_000)


def bought(stored: Stored, user: str, time_ms: int, item: str = "a") -> None:
    users = BatchUsers(stored, IDLE)
    users.buy(user, time_ms, item, None)
    users.write()


def test_a_user_who_was_idle_for_too_long_is_as_new() -> None:
    stored = Stored()
    bought(stored, "u", 5_000)
    assert BatchUsers(stored, IDLE).of("u", 6_000).baskets == 1
    assert BatchUsers(stored, IDLE).of("u", 6_001).baskets == 0
    bought(stored, "u", 6_001, "b")
    state = BatchUsers(stored, IDLE).of("u", 6_001)
    assert (state.baskets, state.first_ms, len(state.entries)) == (1, 6_001, 1)
    bought(stored, "u", 4_000)  # a late one revives nobody and is not idle itself
    assert BatchUsers(stored, IDLE).of("u", 6_001).first_ms == 4_000


def test_idle_users_are_freed_when_a_bucket_is_swept() -> None:
    stored, idle = Stored(), IdleUsers(1_000)
    for user, time_ms in (("old", 1_000), ("lagging", 2_500), ("new", 4_000)):
        bought(stored, user, time_ms)
    assert idle.sweep(0, 3_000, stored) == 0
    assert idle.sweep(0, 3_010, stored) == 0 and "old" in stored, "not looked at each time"
    assert idle.sweep(0, 4_000, stored) == 1
    assert set(stored) == {"lagging", "new"}
    assert IdleUsers(1_000).sweep(0, 9_000, stored) == 2, "a restart looks at once"
