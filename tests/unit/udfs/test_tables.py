"""The versioned table against one that keeps everything, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.batches.events import Events
from udfs.definition.enrichment import TableSpec
from udfs.enrichment.tables import ALWAYS, TableRecordError, VersionedTable

FIELDS = (
    {"name": "risk", "type": "float"},
    {"name": "country", "type": "string"},
    {"name": "chains", "type": "int", "default": 1},
    {"name": "open", "type": "bool"},
)


def spec(**changes: Any) -> TableSpec:
    whole = {"name": "shop", "key": "merchant", "topic": "shops", "fields": FIELDS} | changes
    return TableSpec.model_validate(whole)


def table(**changes: Any) -> VersionedTable:
    return VersionedTable(spec(**changes))


def row(value: float) -> dict[str, Any]:
    return {"risk": value, "country": "NO", "chains": 2, "open": True}


def events(keys: list[str | None], times: list[int]) -> Events:
    n = len(keys)
    return Events(
        raw=[b""] * n,
        positions=np.zeros((n, 3), np.int64),
        times=np.array(times, np.int64),
        texts={"merchant": keys},  # type: ignore[dict-item]
        numbers={"amount": np.ones(n)},
    )


def test_fields_are_joined_by_key() -> None:
    shops = table(as_of="latest")
    shops.put("m1", shops.row_of(row(0.5)), 10)
    joined = shops.join(events(["m1", "m2", None], [0, 0, 0]))
    assert joined.texts["shop_country"] == ["NO", None, None]
    np.testing.assert_array_equal(joined.numbers["shop_risk"], [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(joined.numbers["shop_chains"], [2, 1, 1])
    np.testing.assert_array_equal(joined.numbers["shop_open"], [1, np.nan, np.nan])
    assert list(joined.numbers["amount"]) == [1, 1, 1]


def test_an_event_sees_the_row_of_its_time() -> None:
    shops = table()
    for time_ms, risk in ((100, 0.1), (200, 0.2)):
        shops.put("m1", shops.row_of(row(risk)), time_ms)
    shops.put("m1", None, 300)
    shops.put("m1", shops.row_of(row(0.15)), 150)  # late
    joined = shops.join(events(["m1"] * 7, [99, 100, 149, 150, 199, 299, 300]))
    expected = [np.nan, 0.1, 0.1, 0.15, 0.15, 0.2, np.nan]
    np.testing.assert_array_equal(joined.numbers["shop_risk"], expected)
    assert len(shops) == 0  # now it has none


def test_latest_is_what_came_last() -> None:
    shops = table(as_of="latest")
    shops.put("m1", shops.row_of(row(0.2)), 200)
    shops.put("m1", shops.row_of(row(0.1)), 100)
    assert shops.at("m1", 0)[0] == 0.1
    shops.put("m1", None, 50)
    assert math.isnan(shops.at("m1", 0)[0]) and not shops.keys()


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "a JSON list, not an object"),
        ({"risk": "high"}, "shop_risk must be float, is str"),
        ({"chains": 1.5}, "shop_chains must be int, is float"),
        ({"open": 1}, "shop_open must be bool, is int"),
        ({"country": 5}, "shop_country must be string, is int"),
        ({"risk": math.inf}, "shop_risk is too large or not finite"),
        ({"chains": 10**400}, "shop_chains is too large or not finite"),
    ],
)
def test_a_wrong_value_is_refused(document: Any, why: str) -> None:
    with pytest.raises(TableRecordError, match=why):
        table().row_of(document)


PUTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.one_of(st.none(), st.integers(0, 50)),
        st.integers(0, 40),
    ),
    max_size=60,
)


class Naive:
    """Sorts and searches anew for every question."""

    def __init__(self, versions: int) -> None:
        self.versions = versions
        self.puts: dict[str, dict[int, int | None]] = {}

    def put(self, key: str, value: int | None, time_ms: int) -> None:
        kept = self.puts.setdefault(key, {})
        kept[time_ms] = value
        for old in sorted(kept)[: -self.versions]:
            del kept[old]

    def at(self, key: str, time_ms: int) -> float:
        times = [t for t in self.puts.get(key, {}) if t <= time_ms]
        value = self.puts[key][max(times)] if times else None
        return math.nan if value is None else float(value)


@given(puts=PUTS, versions=st.integers(1, 5))
def test_versions_are_those_of_a_naive_table(
    puts: list[tuple[str, int | None, int]], versions: int
) -> None:
    shops, naive = table(versions=versions), Naive(versions)
    for key, value, time_ms in puts:
        document = None if value is None else shops.row_of(row(value))
        shops.put(key, document, time_ms)
        naive.put(key, value, time_ms)
    for key in "abc":
        found = [shops.at(key, time_ms)[0] for time_ms in range(-1, 42)]
        np.testing.assert_array_equal(found, [naive.at(key, t) for t in range(-1, 42)])
    now = [k for k in naive.puts if not math.isnan(naive.at(k, 99))]
    assert len(shops) == len(now)


@given(puts=PUTS, keep=st.integers(1, 30))
def test_what_holds_within_keep_is_never_forgotten(
    puts: list[tuple[str, int | None, int]], keep: int
) -> None:
    shops, whole = table(versions=1_000, keep=keep), table(versions=1_000)
    for key, value, time_ms in puts:
        for one in (shops, whole):
            one.put(key, None if value is None else one.row_of(row(value)), time_ms)
    newest = max((time_ms for *_, time_ms in puts), default=0)
    for key in "abc":
        for time_ms in range(newest - keep, newest + 2):
            np.testing.assert_array_equal(shops.at(key, time_ms)[0], whole.at(key, time_ms)[0])


def test_few_versions_are_kept_of_a_busy_key() -> None:
    shops = table(versions=10**6, keep=10)
    for time_ms in range(1_000):
        shops.put("m1", shops.row_of(row(time_ms)), time_ms)
    assert len(shops._known["m1"].times) <= 12


def test_a_row_that_always_held() -> None:
    shops = table()
    shops.put("m1", shops.row_of(row(0.5)), ALWAYS)
    assert shops.at("m1", -(10**15))[0] == 0.5
