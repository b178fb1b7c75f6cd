import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.purchases import decayed, middle_ms, small_index, small_log
from udfs.ranking.arrays import DAY_MS
from udfs.ranking.counters import HALF_LIVES_DAYS, ItemCounters

events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3_000)), max_size=30)


@given(events, st.integers(-2_000, 2_000))
def test_counts_are_the_decayed_sums_whatever_the_order_of_events(found, origin_day):
    counters = ItemCounters.empty(4, origin_day * DAY_MS)
    for item, day in found:
        counters.add(np.array([item], np.int32), day * DAY_MS)
    now = 3_000
    for place, half_life in enumerate(HALF_LIVES_DAYS):
        for item in range(4):
            expected = sum(0.5 ** ((now - day) / half_life) for i, day in found if i == item)
            counted = counters.at(np.array([item]), now * DAY_MS)[0, place]
            assert counted == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_row_named_twice_counts_twice_and_an_unknown_item_not_at_all():
    counters = ItemCounters.empty(2, 0)
    counters.add(np.array([1, 1, -1], np.int32), 0)
    assert counters.at(np.arange(2), 0).tolist() == [[0.0] * 3, [2.0] * 3]


def test_a_version_starts_from_the_counts_it_was_made_with():
    log, index = small_log(), small_index()
    counters = ItemCounters.of_index(index)
    later = middle_ms(log) + 5 * DAY_MS
    item = int(np.argmax(index.popularity[:, 0]))
    before = decayed(log.before(middle_ms(log)), item, later, HALF_LIVES_DAYS[0])
    assert counters.at(np.array([item]), later)[0, 0] == pytest.approx(before)


def test_the_counts_of_a_log_are_those_of_its_purchases_one_by_one():
    log = small_log()
    origin_ms = int(log.times_ms[-1]) + 1
    counted = ItemCounters.of_log(log, origin_ms)
    one_by_one = ItemCounters.empty(len(log.item_ids), origin_ms)
    for item, time_ms in zip(log.items, log.times_ms.tolist(), strict=True):
        one_by_one.add(item[None], time_ms)
    assert np.allclose(counted.sums, one_by_one.sums, rtol=1e-9)
    assert (counted.first_ms == one_by_one.first_ms).all()
    assert (counted.last_ms == one_by_one.last_ms).all()
