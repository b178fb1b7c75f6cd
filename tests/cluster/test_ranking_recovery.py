"""A ranking job loses a TaskManager while people ask and click.

Every request gets items in time, and what the job has written afterwards is what a recomputation
over its topics gives: one example for each ranking that was shown, with each click in it, the
windows of clicks, and the counts of purchases. What at-least-once writes twice is the same twice.
Requests that waited for the restart are expired: a reply without items, and no impression.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from jobs.demo.feed.topics import documents
from jobs.running_job import RunningJob
from jobs.settings import Settings
from tests.support.feedback_oracle import clicks_before, first_of, labels_of, popularity_of
from tests.support.flink_cluster import FlinkCluster
from tests.support.purchases import middle_ms, small_index, small_log
from tests.support.ranking import CONFIG, NAMES, feed_overrides, feed_settings, write_version
from tests.support.running import restarts, running
from tests.support.servers import GatewayProcess, ModelServerProcess
from tests.support.waiting import wait_until
from udfs.ranking.live_popularity import ItemPopularity

pytestmark = [pytest.mark.cluster, pytest.mark.kafka, pytest.mark.timeout(300)]

NOW_MS = middle_ms(small_log())
USERS = 6
BEFORE, AFTER = 60, 60  # rankings by the model before the fault and after it
DEADLINE_S = 2.0
_BUSY_S = 10.0  # that long a process may stand still on a busy machine
CLICKS = NAMES[-1]
OVER_MS, LATER_MS = NOW_MS + 3_600_000, NOW_MS + 7_200_000  # visits are before, the last ask after


class Visitors:
    """Each asks, clicks on the third item, buys the first, and asks again until it is enough."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.answers: list[dict[str, Any]] = []
        self.sent = 0
        self.wanted = sys.maxsize

    @property
    def ranked(self) -> int:
        return sum(not one["fallback"] for one in self.answers)

    @property
    def asked(self) -> set[str]:
        """Requests that the gateway has written to Kafka."""
        return {one["request_id"] for one in self.answers if one["fallback_reason"] != "overloaded"}

    async def run(self) -> None:
        async with aiohttp.ClientSession(self._url) as http, asyncio.TaskGroup() as group:
            for n in range(USERS):
                group.create_task(self._visit(http, f"visitor-{n}"))

    async def _visit(self, http: aiohttp.ClientSession, user: str) -> None:
        time_ms = NOW_MS
        while self.ranked < self.wanted:
            time_ms += 1_000
            answer = await self._ask(http, user, time_ms)
            if answer["fallback"]:
                continue
            for kind, place in (("click", 2), ("purchase", 0)):
                one = {"user": user, "kind": kind, "item": answer["items"][place]["item"]}
                one |= {"request_id": answer["request_id"], "event_time_ms": time_ms + 500}
                await self.post(http, "/events", **one)
                self.sent += 1

    async def _ask(self, http: aiohttp.ClientSession, user: str, time_ms: int) -> dict[str, Any]:
        answer = await self.post(http, "/rank", user=user, items=10, event_time_ms=time_ms)
        self.answers.append(answer)
        return answer

    async def post(self, http: aiohttp.ClientSession, path: str, **body: Any) -> Any:
        async with http.post(path, json=body) as response:
            assert response.ok, await response.text()
            return await response.json()

    async def close_windows(self) -> None:
        """Have each ranked once more, much later, so that what came before is over."""
        async with aiohttp.ClientSession(self._url) as http:
            for n in range(USERS):
                while (await self._ask(http, f"visitor-{n}", LATER_MS))["fallback"]:
                    pass


async def struck(visitors: Visitors, cluster: FlinkCluster, job: RunningJob) -> None:
    """Visits before, during and after the loss of a TaskManager."""
    async with asyncio.timeout(180), asyncio.TaskGroup() as group:
        group.create_task(visitors.run())
        while visitors.ranked < BEFORE:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(cluster.kill, "tm-0")
        while not await asyncio.to_thread(restarts, job):
            await asyncio.sleep(0.2)
        visitors.wanted = visitors.ranked + AFTER
    assert cluster.task_managers_of(job.job_id) == {"tm-1"}
    async with asyncio.timeout(30):
        await visitors.close_windows()


def test_a_killed_task_manager(bootstrap: str, tmp_path: Path) -> None:
    write_version(tmp_path / "models")
    with (
        ModelServerProcess(tmp_path / "models", tmp_path / "server.log", name="feed") as server,
        FlinkCluster(tmp_path / "flink", task_managers=2, slots=2) as cluster,
    ):
        overrides = feed_overrides(bootstrap, tmp_path / "models", tmp_path) | {
            "model.server": f"127.0.0.1:{server.port}",
            "model.deadline": "1s",
            "gateway.deadline": f"{DEADLINE_S * 1_000:.0f}ms",
            "flink.parallelism": 2,
            "flink.restart_attempts": 100,
        }
        settings = feed_settings(overrides)
        with (
            running(settings, cluster.rest.address) as job,
            GatewayProcess(CONFIG, tmp_path / "gateway.log", overrides) as gateway,
        ):
            visitors = Visitors(f"http://127.0.0.1:{gateway.port}")
            asyncio.run(struck(visitors, cluster, job))
            check_answers(visitors)
            check_topics(settings, visitors)


def check_answers(visitors: Visitors) -> None:
    """Nobody was left without items, nor longer than the gateway's limit and a little."""
    assert all(len(one["items"]) == 10 for one in visitors.answers)
    assert max(one["took_ms"] for one in visitors.answers) < (DEADLINE_S + _BUSY_S) * 1_000
    known = {None, "timeout", "circuit_open", "unavailable", "overloaded"}
    assert {one["fallback_reason"] for one in visitors.answers} <= known


def check_topics(settings: Settings, visitors: Visitors) -> None:
    names = settings.topics
    events = list(documents(settings, names.events))
    assert {one["event_id"] for one in events if one["kind"] == "request"} == visitors.asked
    assert sum(one["kind"] in ("click", "purchase") for one in events) == visitors.sent

    def replies() -> list[dict[str, Any]]:
        return list(documents(settings, names.predictions))

    wait_until(
        lambda: {one["request_id"] for one in replies()} == visitors.asked,
        60,
        "a reply of the job to every request",
    )
    expired = {one["request_id"] for one in replies() if one["fallback_reason"] == "expired"}
    assert expired, "nobody asked while the job was down"

    def shown() -> list[dict[str, Any]]:
        return list(documents(settings, names.impressions or ""))

    wait_until(
        lambda: {one["request_id"] for one in shown()} >= visitors.asked - expired,
        60,
        "an impression of all that did not wait too long",
    )
    impressions = shown()
    check_impressions(impressions, events, visitors)
    feedback = settings.feedback
    expected = labels_of(events, impressions, feedback.kinds, feedback.window, OVER_MS)

    def examples() -> list[dict[str, Any]]:
        return list(documents(settings, names.examples or ""))

    wait_until(
        lambda: len({one["example_id"] for one in examples()}) >= len(expected), 60, "examples"
    )
    check_examples(examples(), expected)
    check_popularity(settings, popularity_of(events, small_index()))


def check_impressions(
    impressions: list[dict[str, Any]],
    events: list[dict[str, Any]],
    visitors: Visitors,
) -> None:
    """Each is of a request, with the clicks before it."""
    assert {one["request_id"] for one in impressions} <= visitors.asked
    for one in impressions:  # those that were made twice, too
        clicks = one["items"][0]["features"][one["columns"].index(CLICKS)]
        came = clicks_before(events, one["user"], one["event_time_ms"])
        assert clicks == (came if one["event_time_ms"] < OVER_MS else 0)


def check_examples(
    examples: list[dict[str, Any]], expected: dict[str, dict[str, list[str]]]
) -> None:
    first = first_of(examples, "example_id")
    assert all(one == first[one["example_id"]] for one in examples), "a repeat differs"
    found = {
        name: {item["item"]: item["kinds"] for item in one["items"]} for name, one in first.items()
    }
    assert found == expected
    labels = sum(len(kinds) for items in expected.values() for kinds in items.values())
    assert labels >= BEFORE + AFTER


def check_popularity(settings: Settings, expected: dict[str, list[float]]) -> None:
    index = small_index()
    topic = settings.topics.popularity or ""

    def published() -> dict[str, Any]:
        newest = {one["item"]: one for one in documents(settings, topic)}
        return {
            item: ItemPopularity.of_record(newest[item]).sums_at(index.as_of_ms).tolist()
            for item in expected.keys() & newest.keys()
        }

    wanted = {item: pytest.approx(sums, rel=1e-6) for item, sums in expected.items()}
    wait_until(lambda: published() == wanted, 30, "the counts of purchases")
