"""Visitors of a feed: each asks for a ranking, then tells what was bought, as a log says."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp

from udfs.ranking.log import PurchaseLog

__all__ = ["Answer", "Bots", "Crowd", "Visit", "visits"]

TOP = 10
"""How many of an answer's first items count for a hit."""

_AFTER_MS = 1_000  # event time from the answer to what is bought of it


@dataclass(frozen=True, slots=True)
class Visit:
    """A basket of the log: who bought what, and when."""

    user: str
    time_ms: int
    items: tuple[str, ...]
    prices: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request.

    Attributes:
        at_s: When it was sent, seconds since the start.
        took_ms: Time from the request to its answer.
        by: ``model``, a fallback's reason, or ``HTTP 429``.
        version: The model's version, if one answered.
        hit: Whether one of the first ten was bought.
        reasons: Why each item was a candidate.
        bought: The reasons of those that were bought.
    """

    at_s: float
    took_ms: float
    by: str
    version: int | None = None
    hit: bool = False
    reasons: tuple[str, ...] = ()
    bought: tuple[str, ...] = ()


@dataclass
class Crowd:
    """Sends visits to a gateway at a constant rate, and slower where the answers take their time.

    Attributes:
        url: The gateway's.
        started_s: Monotonic time of the demo's start.
        at_once: Visits at a time; who comes then waits outside.
        answers: One for each request, in the order they came.
        linked: Interactions sent that name a request.
        bought: Purchases sent.
    """

    url: str
    started_s: float
    at_once: int = 8
    answers: list[Answer] = field(default_factory=list)
    linked: int = 0
    bought: int = 0

    def run(self, some: Sequence[Visit], seconds: float) -> None:
        """Send visits evenly over a time; returns when all are done."""
        asyncio.run(self._run(some, seconds))

    async def _run(self, some: Sequence[Visit], seconds: float) -> None:
        turns: dict[str, asyncio.Lock] = {}
        places = asyncio.Semaphore(self.at_once)
        begun_s = time.monotonic()
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(self.url, connector=connector) as http,
            asyncio.TaskGroup() as group,
        ):
            for n, visit in enumerate(some):
                due_s = begun_s + seconds * n / len(some)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                await places.acquire()
                turn = turns.setdefault(visit.user, asyncio.Lock())
                task = group.create_task(self._visit(http, visit, turn))
                task.add_done_callback(lambda _: places.release())

    async def _visit(self, http: aiohttp.ClientSession, visit: Visit, turn: asyncio.Lock) -> None:
        async with turn:  # a user's visits keep their order
            sent_s = time.monotonic()
            body = {"user": visit.user, "event_time_ms": visit.time_ms}
            async with http.post("/rank", json=body) as response:
                status, answer = response.status, await response.json()
            took_ms = (time.monotonic() - sent_s) * 1_000
            at_s = sent_s - self.started_s
            if status != 200:
                self.answers.append(Answer(at_s, took_ms, f"HTTP {status}"))
                answer = {"items": [], "request_id": None, "fallback_reason": "refused"}
            else:
                self.answers.append(_judged(visit, answer, at_s, took_ms))
            events = list(self._events(visit, answer))
            if not events:
                return
            async with http.post("/events", json=events) as response:
                response.raise_for_status()

    def _events(self, visit: Visit, answer: dict[str, object]) -> Iterator[dict[str, object]]:
        """What was bought; of what the model showed, with the request."""
        found = answer["items"]
        assert isinstance(found, list)
        shown = {one["item"]: one["position"] for one in found}
        for item, price in zip(visit.items, visit.prices, strict=True):
            self.bought += 1
            event: dict[str, object] = {
                "kind": "purchase",
                "user": visit.user,
                "item": item,
                "event_time_ms": visit.time_ms + _AFTER_MS,
            }
            if not math.isnan(price):
                event["price"] = price
            if item in shown and not answer["fallback_reason"]:
                self.linked += 1
                event |= {"request_id": answer["request_id"], "position": shown[item]}
            yield event


class Bots(Crowd):
    """Ask for real users and click on what is ranked last, and on nothing that they would buy."""

    def _events(self, visit: Visit, answer: dict[str, object]) -> Iterator[dict[str, object]]:
        found = answer["items"]
        assert isinstance(found, list)
        for one in found[len(found) // 2 :]:
            if one["item"] not in visit.items and not answer["fallback_reason"]:
                self.linked += 1
                yield {
                    "kind": "click",
                    "user": visit.user,
                    "item": one["item"],
                    "request_id": answer["request_id"],
                    "position": one["position"],
                    "event_time_ms": visit.time_ms + _AFTER_MS,
                }


def _judged(visit: Visit, answer: dict[str, object], at_s: float, took_ms: float) -> Answer:
    items, wanted = answer["items"], set(visit.items)
    assert isinstance(items, list)
    model = answer["model"] if isinstance(answer["model"], dict) else {}
    return Answer(
        at_s,
        took_ms,
        str(answer["fallback_reason"] or "model"),
        model.get("version"),
        any(one["item"] in wanted for one in items[:TOP]),
        tuple(one["reason"] for one in items),
        tuple(one["reason"] for one in items if one["item"] in wanted),
    )


def visits(log: PurchaseLog) -> Iterable[Visit]:
    """The baskets of a log in their order; at most 400 items of each."""
    for basket in log.in_baskets():
        yield Visit(
            str(log.user_ids[basket.user]),
            basket.time_ms,
            tuple(log.item_ids[basket.items].tolist()[:400]),
            tuple(basket.prices.tolist()[:400]),
        )
