"""Popularity against the sum that it stands for."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.ranking.counters import HALF_LIVES_MS, ItemCounters
from udfs.ranking.live_popularity import ItemPopularity, PopularItems, PopularityError

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000

purchases = st.lists(
    st.tuples(st.integers(0, 90 * DAY_MS), st.sampled_from([1.0, 2.0, 3.0])),
    min_size=1,
    max_size=30,
)


def counted(given_purchases: list[tuple[int, float]]) -> ItemPopularity:
    popularity = ItemPopularity()
    for after_ms, weight in given_purchases:
        popularity = popularity.add(START_MS + after_ms, weight)
    return popularity


@given(purchases, st.randoms())
def test_it_is_the_decayed_sum_in_any_order(found: list[tuple[int, float]], random: object) -> None:
    now_ms = START_MS + 90 * DAY_MS
    expected = [
        sum(w * 2.0 ** ((START_MS + t - now_ms) / half_life) for t, w in found)
        for half_life in HALF_LIVES_MS
    ]
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for order in (found, shuffled):
        popularity = counted(order)
        assert popularity.sums_at(now_ms) == pytest.approx(expected, rel=1e-9)
        assert popularity.first_ms == START_MS + min(t for t, _ in found)
        assert popularity.last_ms == START_MS + max(t for t, _ in found)


@given(purchases)
def test_it_is_what_the_counters_of_training_count(found: list[tuple[int, float]]) -> None:
    counters = ItemCounters.empty(1, START_MS)
    for after_ms, _ in found:
        counters.add(np.zeros(1, np.int32), START_MS + after_ms)
    popularity = counted([(after_ms, 1.0) for after_ms, _ in found])
    assert popularity.sums_at(counters.origin_ms) == pytest.approx(counters.sums[0], rel=1e-9)
    assert (popularity.first_ms, popularity.last_ms) == (counters.first_ms[0], counters.last_ms[0])


@given(purchases)
def test_state_and_record_keep_it(found: list[tuple[int, float]]) -> None:
    popularity = counted(found)
    assert ItemPopularity.unpacked(popularity.packed()) == popularity
    assert ItemPopularity.of_record(orjson.loads(popularity.record("i"))) == popularity


def test_it_goes_on_from_an_index() -> None:
    known = counted([(0, 1.0), (DAY_MS, 1.0)])
    origin_ms = START_MS + 2 * DAY_MS
    again = ItemPopularity.of_sums(known.sums_at(origin_ms), origin_ms, START_MS, START_MS + DAY_MS)
    assert again.log2 == pytest.approx(known.log2, rel=1e-12)


@pytest.mark.parametrize("data", [b"", b"\x02" + counted([(0, 1.0)]).packed()[1:], b"\x01" * 9])
def test_another_layout_is_refused(data: bytes) -> None:
    with pytest.raises(PopularityError):
        ItemPopularity.unpacked(data)


@pytest.mark.parametrize("document", [None, {}, {"schema_version": 2}, {"schema_version": 1}])
def test_another_document_is_refused(document: object) -> None:
    with pytest.raises(PopularityError):
        PopularItems().row_of(document)


def test_the_most_popular_come_first_and_changes_are_seen() -> None:
    items = PopularItems()
    for n in range(5):
        items.put(f"i{n}", counted([(n * DAY_MS, 1.0)]), 0)
    assert items.top(2) == ["i4", "i3"]
    assert set(items.take_changed()) == {f"i{n}" for n in range(5)}
    items.put("i0", counted([(60 * DAY_MS, 3.0)]), 0)
    items.put("i4", None, 0)
    assert items.top(10) == ["i0", "i3", "i2", "i1"]
    assert set(items.take_changed()) == {"i0"}
