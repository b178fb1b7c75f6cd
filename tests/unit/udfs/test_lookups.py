"""The cache, and look-ups against stores that answer, fail and hang on command."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.definition.enrichment import CacheSpec, LookupSpec
from udfs.enrichment.lookup_cache import Cache, Found
from udfs.enrichment.lookup_metrics import LookupMetrics
from udfs.enrichment.lookups import Lookup, LookupCounts
from udfs.enrichment.store import Answer


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def found(value: float) -> Found:
    return Found((value,))


ABSENT = Found((0.0,), is_there=False)


def test_an_answer_is_used_until_it_is_too_old() -> None:
    clock = Clock()
    cache = Cache(CacheSpec(ttl=1_000, negative_ttl=100), clock)
    cache.put("a", found(1))
    cache.put("b", ABSENT)
    clock.now_s += 0.099
    assert (cache.get("a"), cache.get("b")) == (found(1), ABSENT)
    clock.now_s += 0.001
    assert (cache.get("a"), cache.get("b")) == (found(1), None)
    clock.now_s += 0.9
    assert cache.get("a") is None and len(cache) == 0


def test_nothing_is_kept_for_no_time() -> None:
    cache = Cache(CacheSpec(ttl=1_000, negative_ttl=0), Clock())
    cache.put("a", found(1))
    cache.put("a", ABSENT)
    assert cache.get("a") is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9)), max_size=50))
def test_the_oldest_answers_go(puts: list[tuple[str, int]]) -> None:
    cache = Cache(CacheSpec(entries=3), Clock())
    last: dict[str, int] = {}
    for key, value in puts:
        cache.put(key, found(value))
        last.pop(key, None)
        last[key] = value
    newest = dict([*last.items()][-3:])
    assert {k: f.values[0] for k in "abcdef" if (f := cache.get(k))} == newest


class ToldStore:
    """Has what it is given; can fail, and can be held back."""

    def __init__(self, has: dict[str, Answer]) -> None:
        self.has = has
        self.calls: list[list[str]] = []
        self.fails = False
        self.open = asyncio.Event()
        self.open.set()

    async def fetch(self, keys: Sequence[str]) -> Sequence[Answer]:
        self.calls.append([*keys])
        await self.open.wait()
        if self.fails:
            raise ConnectionError("told to")
        return [self.has.get(key) for key in keys]

    async def connect(self) -> None:
        await self.fetch([])

    async def close(self) -> None:
        pass


def lookup(store: ToldStore, clock: Clock | None = None, **changes: Any) -> Lookup:
    fields = ({"name": "n", "type": "int", "default": 7}, {"name": "x", "type": "float"})
    whole = {
        "name": "profile",
        "key": "card",
        "redis": {"url": "redis://nowhere"},
        "fields": fields,
        "deadline": 20,
    }
    return Lookup(LookupSpec.model_validate(whole | changes), store, clock or Clock())


HAS: dict[str, Answer] = {"a": {"n": 1, "x": 0.5}, "b": {"n": b"2", "x": b"1.5"}}


async def test_a_batch_asks_once_for_what_it_does_not_know() -> None:
    store = ToldStore(HAS)
    look = lookup(store)
    values, failed = await look.of(["a", "c", "a", None, "", "b"])
    expected = [[1, 0.5], [7, np.nan], [1, 0.5], [7, np.nan], [7, np.nan], [2, 1.5]]
    np.testing.assert_array_equal(values, expected)
    assert not failed.any()
    await look.of(["b", "d", "c"])
    assert store.calls == [["a", "c", "b"], ["d"]]
    assert look.counts == LookupCounts(hits=2 + 2, misses=4 + 1, negative=3 + 2)


async def test_batches_at_the_same_time_share_a_call() -> None:
    store = ToldStore(HAS)
    store.open.clear()
    look = lookup(store, deadline=10_000)
    batches = [asyncio.create_task(look.of(keys)) for keys in (["a"], ["a", "b"], ["b"])]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    store.open.set()
    for values, failed in await asyncio.gather(*batches):
        assert len(values) and not failed.any()
    assert store.calls == [["a"], ["b"]]


async def test_a_late_answer_is_a_fallback_and_then_cached() -> None:
    store = ToldStore(HAS)
    look = lookup(store)
    await look.of(["b"])
    store.open.clear()
    values, failed = await look.of(["a", "b", "a"])
    np.testing.assert_array_equal(values, [[7, np.nan], [2, 1.5], [7, np.nan]])
    assert failed.tolist() == [True, False, True]
    call = look._asked["a"].answer
    store.open.set()
    await call
    values, failed = await look.of(["a"])
    assert values.tolist() == [[1, 0.5]] and not failed.any()
    assert look.counts == LookupCounts(hits=2, misses=1 + 2, timeouts=2)
    assert len(store.calls) == 2


async def test_a_store_that_fails_is_left_alone_and_then_tried() -> None:
    store, clock = ToldStore(HAS), Clock()
    store.fails = True
    look = lookup(store, clock)
    for _ in range(5):
        values, failed = await look.of(["a"])
        assert values[0, 0] == 7 and failed.all()
    assert len(store.calls) == 3
    clock.now_s += 0.6
    assert (await look.of(["a"]))[1].all()
    assert len(store.calls) == 4
    store.fails = False
    assert (await look.of(["a"]))[1].all()
    clock.now_s += 0.6
    values, failed = await look.of(["a"])
    assert values.tolist() == [[1, 0.5]] and not failed.any()
    assert look.counts == LookupCounts(misses=8, errors=7)


async def test_a_hung_store_costs_no_more_than_a_few_deadlines() -> None:
    store = ToldStore(HAS)
    store.open.clear()
    look = lookup(store)
    for n in range(50):
        assert (await look.of([f"k{n}"]))[1].all()
    assert len(store.calls) == 3
    assert look.counts == LookupCounts(misses=50, timeouts=3, errors=47)
    await look.close()
    assert not look._asked


@pytest.mark.parametrize(
    "answer",
    [ValueError("no JSON"), {"n": 1.5}, {"n": "one"}, {"x": "nan"}, {"x": [1]}, {"n": b"\xff"}],
)
async def test_a_value_that_cannot_be_read_is_a_fallback_of_its_own_row(answer: Answer) -> None:
    look = lookup(ToldStore(HAS | {"bad": answer}))
    values, failed = await look.of(["a", "bad"])
    np.testing.assert_array_equal(values, [[1, 0.5], [7, np.nan]])
    assert failed.tolist() == [False, True]
    assert look.counts == LookupCounts(misses=2, errors=1)


async def test_truth_values() -> None:
    fields = ({"name": "vip", "type": "bool"},)
    texts: dict[str, Any] = {"a": True, "b": b"false", "c": "1", "d": None}
    look = lookup(ToldStore({k: {"vip": v} for k, v in texts.items()}), fields=fields)
    values, failed = await look.of([*texts])
    np.testing.assert_array_equal(values[:, 0], [1, 0, 1, np.nan])
    assert not failed.any()


async def test_a_store_that_is_down_at_the_start_is_only_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ToldStore(HAS)
    store.fails = True
    await lookup(store).connect()
    assert "look-up 'profile' fails: ConnectionError told to" in caplog.text


class Group:
    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    def add_group(self, name: str, value: str) -> Group:
        assert (name, value) == ("lookup", "profile")
        return self

    def counter(self, name: str) -> Any:
        class Counter:
            def inc(_, n: int) -> None:
                self.values[name] = self.values.get(name, 0) + n

        return Counter()


def test_metrics_are_what_came_since() -> None:
    group, counts = Group(), LookupCounts(hits=2, errors=1)
    metrics = LookupMetrics([lookup_spec()], group)
    metrics.tell([counts])
    counts.hits += 3
    metrics.tell([counts])
    metrics.tell([counts])
    assert group.values == {"lookup_hits": 5, "lookup_errors": 1}


def lookup_spec() -> LookupSpec:
    return LookupSpec.model_validate(
        {
            "name": "profile",
            "key": "card",
            "redis": {"url": "redis://nowhere"},
            "fields": [{"name": "n", "type": "int"}],
        }
    )
