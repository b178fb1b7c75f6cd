"""The gateway's HTTP before a job that the test plays."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from jobs.gateway.bodies import Event
from jobs.gateway.partitions import partition_of
from tests.support.gateways import PlayedJob, ranked, served


async def post(client: aiohttp.ClientSession, path: str, document: Any) -> tuple[int, Any]:
    body = {"data": document} if isinstance(document, bytes) else {"json": document}
    async with client.post(path, **body) as response:
        return response.status, await response.json()


async def text(client: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with client.get(path) as response:
        return response.status, await response.text()


class SlowJob(PlayedJob):
    """Answers nobody; the deadline of those who wait passes when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = asyncio.Event()

    async def ask(self, request: Event, timeout_s: float) -> dict[str, Any]:
        self.asked.append(request)
        await self._passed.wait()
        raise TimeoutError

    def pass_deadline(self) -> None:
        self._passed.set()
        self._passed = asyncio.Event()


async def test_a_request_gets_the_jobs_ranking() -> None:
    job = PlayedJob()
    async with served(job) as (_, client, _):
        status, answer = await post(client, "/rank", {"user": "u1", "items": 3})
    assert status == 200
    assert [one["item"] for one in answer["items"]] == ["i0", "i1", "i2"]
    assert answer["model"] == {"name": "feed", "version": 3}
    assert answer["fallback"] is False
    asked = job.asked[0].document
    assert asked["kind"] == "request" and asked["gateway"] == job.gateway
    (told,) = job.written
    assert told.document["kind"] == "shown" and told.document["request_id"] == asked["event_id"]


async def test_without_a_reply_in_time_it_gets_popular_items_marked() -> None:
    job = PlayedJob(lambda request: None)
    async with served(job, clock=lambda: 100.0, deadline=30) as (_, client, _):
        status, answer = await post(client, "/rank", {"user": "u1", "items": 2})
    assert status == 200
    assert answer["fallback"] is True and answer["fallback_reason"] == "timeout"
    assert [one["item"] for one in answer["items"]] == ["p0", "p1"]
    assert job.waits_s == [0.03]
    assert not job.written, "what was not the job's is not told as shown"


async def test_a_request_says_until_when_it_is_waited_for() -> None:
    job = PlayedJob()
    async with served(job, deadline=150) as (_, client, _):
        before_ms = time.time_ns() // 1_000_000
        await post(client, "/rank", {"user": "u1", "event_time_ms": 5})
        after_ms = time.time_ns() // 1_000_000
    assert before_ms + 150 <= job.asked[0].document["deadline_ms"] <= after_ms + 150


async def test_a_reply_without_items_as_it_came_too_late_is_a_timeout() -> None:
    job = PlayedJob(lambda request: ranked(request) | {"items": [], "fallback_reason": "expired"})
    async with served(job) as (_, client, _):
        _, answer = await post(client, "/rank", {"user": "u1", "items": 2})
    assert answer["fallback_reason"] == "timeout"
    assert [one["item"] for one in answer["items"]] == ["p0", "p1"]
    assert not job.written


async def test_a_job_that_does_not_keep_up_is_asked_less_and_the_others_answered_at_once() -> None:
    job, now_s = SlowJob(), 100.0
    async with served(job, clock=lambda: now_s, deadline=200) as (_, client, _):

        async def answers(to_the_job: int) -> tuple[list[Any], list[Any]]:
            """To 12 at once: those before the deadline passes, and those after it."""
            nonlocal now_s
            begun = len(job.asked)
            calls = [asyncio.create_task(post(client, "/rank", {"user": "u"})) for _ in range(12)]
            at_once = asyncio.as_completed(calls)
            early = [(await next(at_once))[1] for _ in range(12 - to_the_job)]
            while len(job.asked) < begun + to_the_job:
                await asyncio.sleep(0.01)
            now_s += 0.2
            job.pass_deadline()
            return early, [(await one)[1] for one in at_once]

        async with asyncio.timeout(60):
            assert await answers(12)  # which makes the limit fall
            refused, waited = await answers(9)
        _, metrics = await text(client, "/metrics")
    assert [one["fallback_reason"] for one in waited] == ["timeout"] * 9
    assert [one["fallback_reason"] for one in refused] == ["overloaded"] * 3
    assert all(one["items"] and one["took_ms"] == 0.0 for one in refused)
    assert 'streamscore_gateway_answers_total{by="overloaded"} 3.0' in metrics


async def test_without_kafka_it_gets_popular_items_at_once() -> None:
    job = PlayedJob(lambda request: None)
    job.trouble = "no Kafka broker answers"
    async with served(job, deadline=10_000) as (_, client, _):
        status, answer = await post(client, "/rank", {"user": "u1"})
        ready, _ = await text(client, "/ready")
    assert status == 200 and answer["fallback_reason"] == "unavailable"
    assert ready == 503 and not job.asked


async def test_more_than_in_flight_are_refused_with_when_to_come_back() -> None:
    released = asyncio.Event()
    job = PlayedJob()
    at_work = asyncio.Event()

    async def ask(request: Any, timeout_s: float) -> dict[str, Any]:
        at_work.set()
        await released.wait()
        return ranked(request)

    job.ask = ask  # type: ignore[method-assign]
    async with served(job, in_flight=1, deadline=10_000, retry_after=2_000) as (_, client, _):
        first = asyncio.create_task(post(client, "/rank", {"user": "u1"}))
        await at_work.wait()
        async with client.post("/rank", json={"user": "u2"}) as refused:
            assert refused.status == 429 and refused.headers["Retry-After"] == "2"
        released.set()
        assert (await first)[0] == 200
        _, metrics = await text(client, "/metrics")
    assert 'streamscore_gateway_refused_total{reason="too_many"} 1.0' in metrics
    assert 'streamscore_gateway_answers_total{by="model"} 1.0' in metrics


async def test_a_stop_lets_requests_at_work_end_and_takes_no_more() -> None:
    released, at_work = asyncio.Event(), asyncio.Event()
    job = PlayedJob()

    async def ask(request: Any, timeout_s: float) -> dict[str, Any]:
        at_work.set()
        await released.wait()
        return ranked(request)

    job.ask = ask  # type: ignore[method-assign]
    async with served(job, deadline=10_000) as (gateway, client, server):
        first = asyncio.create_task(post(client, "/rank", {"user": "u1"}))
        await at_work.wait()
        gateway.draining = True
        async with client.post("/rank", json={"user": "u2"}) as refused:
            assert refused.status == 503 and "Retry-After" in refused.headers
        stopping = asyncio.create_task(server.stop())
        released.set()
        assert (await first)[0] == 200
        await stopping


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        {},
        {"user": ""},
        {"user": "u\n"},
        {"user": "u", "items": 0},
        {"user": "u", "items": 201},
        {"user": "u", "event_time_ms": -1},
        {"user": "u", "more": 1},
        {"user": 7},
        [],
    ],
)
async def test_a_malformed_request_is_refused(body: Any) -> None:
    async with served(PlayedJob()) as (_, client, _):
        status, answer = await post(client, "/rank", body)
    assert status == 400 and answer["error"]


async def test_a_body_that_is_too_large_is_refused() -> None:
    async with served(PlayedJob(), max_body_bytes=1_024) as (_, client, _):
        status, _ = await post(client, "/rank", {"user": "u" * 2_000})
    assert status == 413


async def test_events_are_written_before_they_are_confirmed() -> None:
    job = PlayedJob()
    click = {"kind": "click", "user": "u1", "item": "i1", "request_id": "r1", "position": 0}
    bought = {"kind": "purchase", "user": "u1", "item": "i2", "event_id": "e2", "price": 2.5}
    async with served(job) as (_, client, _):
        status, answer = await post(client, "/events", [click, bought])
    assert status == 202 and answer["event_ids"][1] == "e2"
    assert [event.document["kind"] for event in job.written] == ["click", "purchase"]
    assert all(event.document["event_time_ms"] > 0 for event in job.written)


@pytest.mark.parametrize(
    "body",
    [[], {"kind": "shown", "user": "u", "item": "i"}, {"kind": "click", "user": "u"}, [{}] * 501],
)
async def test_malformed_events_are_refused_as_a_whole(body: Any) -> None:
    job = PlayedJob()
    async with served(job) as (_, client, _):
        status, _ = await post(client, "/events", body)
    assert status == 400 and not job.written


@pytest.mark.parametrize("shown", [None, "Bearer wrong", "s3cret", "Bearer s3cret"])
async def test_with_a_token_only_those_who_show_it_are_answered(shown: str | None) -> None:
    job, right = PlayedJob(), shown == "Bearer s3cret"
    headers = {} if shown is None else {"Authorization": shown}
    click = {"kind": "click", "user": "u1", "item": "i1"}
    async with served(job, token="s3cret") as (_, client, _):
        for path, body, taken in (("/rank", {"user": "u1"}, 200), ("/events", click, 202)):
            async with client.post(path, json=body, headers=headers) as answer:
                assert answer.status == (taken if right else 401)
        async with client.get("/metrics", headers=headers) as answer:
            assert answer.status == (200 if right else 401)
        for probe in ("/health", "/ready", "/"):
            assert (await text(client, probe))[0] == 200
    assert bool(job.asked) == bool(job.written) == right


async def test_health_and_readiness() -> None:
    async with served(PlayedJob()) as (gateway, client, _):
        assert (await text(client, "/health"))[0] == 200
        assert (await text(client, "/ready"))[0] == 200
        gateway.draining = True
        assert (await text(client, "/ready"))[0] == 503


def test_a_key_leads_to_the_partition_that_java_chooses() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    hashes = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    for key, value in hashes.items():
        assert partition_of(key, 1_000_003) == (value & 0x7FFFFFFF) % 1_000_003
