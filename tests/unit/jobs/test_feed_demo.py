"""The feed demo's parts that need no Kafka and no Flink."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from jobs.demo.feed.crowd import Answer, Bots, Crowd, Visit, visits
from jobs.demo.feed.page import FeedOutcome, hit_rate, page
from jobs.gateway.bodies import Event
from tests.support.gateways import PlayedJob, ranked, served
from tests.support.purchases import small_log


def some_visits(count: int) -> list[Visit]:
    return [
        Visit(f"u{n % 3}", 1_000 * n, ("i0", "other"), (1.5, float("nan"))) for n in range(count)
    ]


async def test_visitors_ask_and_then_buy() -> None:
    job = PlayedJob()
    async with served(job) as (_, client, _):
        crowd = Crowd(str(client._base_url), time.monotonic())
        await asyncio.to_thread(crowd.run, some_visits(12), 0.2)
    assert len(crowd.answers) == 12 and all(one.by == "model" for one in crowd.answers)
    assert hit_rate(crowd.answers) == 1.0 and crowd.answers[0].bought == ("popular",)
    bought = [e.document for e in job.written if e.document["kind"] == "purchase"]
    assert len(bought) == crowd.bought == 24
    assert sum("request_id" in one for one in bought) == crowd.linked == 12
    assert all(("price" in one) == (one["item"] == "i0") for one in bought)
    asked = [e.document["event_time_ms"] for e in job.asked if e.user == "u0"]
    assert asked == sorted(asked), "a user's visits keep their order"


async def test_what_popular_items_led_to_names_no_request() -> None:
    job = PlayedJob(lambda request: None)
    async with served(job, deadline=20) as (_, client, _):
        crowd = Crowd(str(client._base_url), time.monotonic())
        await asyncio.to_thread(crowd.run, some_visits(2), 0.1)
    assert crowd.linked == 0 and [one.by for one in crowd.answers] == ["timeout"] * 2


async def test_visitors_wait_outside_while_enough_are_at_work() -> None:
    job, at_work, most = PlayedJob(), 0, 0

    async def ask(request: Event, timeout_s: float) -> dict[str, Any]:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        return ranked(request)

    job.ask = ask  # type: ignore[method-assign]
    async with served(job, deadline=5_000) as (_, client, _):
        crowd = Crowd(str(client._base_url), time.monotonic(), at_once=2)
        await asyncio.to_thread(crowd.run, some_visits(12), 0.0)
    assert len(crowd.answers) == 12 and most == 2


async def test_bots_click_on_what_is_ranked_last_and_nobody_would_buy() -> None:
    job = PlayedJob()
    async with served(job) as (_, client, _):
        bots = Bots(str(client._base_url), time.monotonic())
        await asyncio.to_thread(bots.run, [Visit("u1", 5_000, ("i19",), (1.0,))], 0.0)
    clicks = [e.document for e in job.written if e.document["kind"] == "click"]
    assert [one["item"] for one in clicks] == [f"i{n}" for n in range(10, 19)]
    assert bots.linked == 9 and bots.bought == 0
    assert {one["request_id"] for one in clicks} == {job.asked[0].document["event_id"]}


def test_visits_are_the_logs_baskets() -> None:
    log = small_log()
    found = list(visits(log))
    assert sum(len(one.items) for one in found) == len(log)
    assert [one.time_ms for one in found] == sorted(one.time_ms for one in found)


def outcome(found: int) -> FeedOutcome:
    rng = np.random.default_rng(1)
    answers = [
        Answer(n / 10, float(rng.gamma(4, 10)), "timeout" if 40 < n < 60 else "model",
               None if 40 < n < 60 else 1 + (n > 100), bool(n % 3), ("new", "popular"), ("new",))
        for n in range(200)
    ]  # fmt: skip
    accounts = [("requests, <sent> and found", 200, found)]
    return FeedOutcome(
        {"data": "a & b"}, answers, 0.25, [(4.0, 6.0)], [(10.0, 2)], accounts, ["It <learnt>."]
    )


def test_the_page_has_everything_and_escapes_it() -> None:
    text = page(outcome(200))
    assert "Everything is accounted for" in text and "&lt;sent&gt;" in text and "a &amp; b" in text
    assert "<li>It &lt;learnt&gt;.</li>" in text
    assert "hit rate, version 1" in text and "hit rate, version 2" in text
    assert "Hit rate over the replay" in text and "<script" not in text


def test_a_difference_is_shown() -> None:
    assert outcome(197).unaccounted == 3
    assert "3 unaccounted for" in page(outcome(197))
