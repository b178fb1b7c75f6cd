import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from udfs.ranking.users import UserLimits, UserState

MINUTE_MS = 60_000
LIMITS = UserLimits(items=4, session_gap_ms=30 * MINUTE_MS)

baskets = st.lists(
    st.tuples(st.integers(0, 200), st.lists(st.integers(0, 7), min_size=1, max_size=5)),
    max_size=12,
)


def keys(*items: int) -> np.ndarray:
    return np.array(items, np.uint64)


def taken(found) -> UserState:
    state = UserState()
    for minute, items in found:
        prices = np.array(items, np.float32)
        state.add(keys(*items), minute * MINUTE_MS, prices, LIMITS)
    return state


@given(baskets)
def test_state_is_what_the_whole_history_gives(found):
    found = sorted(found, key=lambda basket: basket[0])
    state = UserState()
    entries: dict[int, tuple[int, int]] = {}
    for minute, items in found:
        state.add(keys(*items), minute * MINUTE_MS, None, LIMITS)
        for item in items:
            entries[item] = (minute, entries.get(item, (0, 0))[1] + 1)
        # Of one event time, those with the largest keys stay.
        kept = sorted(entries, key=lambda item: (entries[item][0], item))[-LIMITS.items :]
        entries = {item: entries[item] for item in kept}
    rows = [(int(e["key"]), int(e["last_ms"]) // MINUTE_MS, int(e["count"])) for e in state.entries]
    assert sorted(rows) == sorted((item, *entry) for item, entry in entries.items())
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    assert state.baskets == len({minute for minute, _ in found})


@given(baskets)
def test_the_running_session_is_what_a_gap_cuts_off(found):
    found = sorted(found, key=lambda basket: basket[0])
    start, items, last = None, 0, None
    for minute, bought in found:
        if last is None or minute - last > 30:
            start, items = minute, 0
        items += len(bought)
        last = minute
    state = taken(found)
    if start is not None:
        assert (state.session_start_ms, state.session_items) == (start * MINUTE_MS, items)


@given(baskets)
def test_packed_state_goes_on_as_if_never_packed(found):
    state = UserState()
    for minute, items in found:
        state = UserState.unpack(state.pack())
        state.add(keys(*items), minute * MINUTE_MS, np.array(items, np.float32), LIMITS)
    assert state.pack() == taken(found).pack()


def test_a_late_basket_counts_in_the_totals_and_leaves_the_session():
    state = taken([(100, [1, 2])])
    state.add(keys(3), 10 * MINUTE_MS, None, LIMITS)
    assert state.session_items == 2
    assert state.first_ms == 10 * MINUTE_MS
    assert state.last_ms == 100 * MINUTE_MS
    assert state.entries["key"].tolist() == [3, 1, 2]


def test_an_unknown_price_is_left_out_of_the_mean():
    state = UserState()
    state.add(keys(1, 2), 0, np.array([4, np.nan], np.float32), LIMITS)
    assert (state.price_sum, state.prices) == (4.0, 1)


def test_the_state_is_bounded():
    state = UserState()
    for time_ms in range(50):
        state.add(keys(time_ms, time_ms + 1), time_ms)
    assert len(state.pack()) <= 56 + 20 * UserLimits().items
