"""The gateway's HTTP: POST /rank, POST /events, health, metrics, and a page that shows a feed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from jobs.gateway.admission import Admission
from jobs.gateway.bodies import Event, parse_events, parse_rank, shown
from jobs.gateway.exchange import NotDelivered
from jobs.gateway.metrics import GatewayMetrics
from jobs.sections.ranking import GatewaySettings
from model_server.errors import InvalidRequest
from model_server.web import json_response, metrics_routes, read_json

__all__ = ["OPEN_PATHS", "Asker", "Gateway"]

OPEN_PATHS = ("/", "/health", "/ready")
"""What needs no token: probes, and the page, which shows what is behind the ``#`` of its URL."""

_PAGE = Path(__file__).with_name("page.html")


class Asker(Protocol):
    """What carries events to the job and replies back; see ``Exchange``."""

    gateway: str
    late: int

    @property
    def trouble(self) -> str:
        """Why nothing can be asked now; empty if it can."""

    async def ask(self, request: Event, timeout_s: float) -> dict[str, Any]:
        """A request's reply."""

    async def write(self, events: list[Event]) -> None:
        """Write events; returns when they are safe."""

    def tell(self, event: Event) -> None:
        """Write an event soon, without waiting."""


class Gateway:
    """The handlers. Every request to /rank gets an answer: ranked, popular, or a refusal.

    Args:
        settings: Limits.
        asker: Reaches the job.
        popular: Gives so many popular items, the best one first.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        asker: Asker,
        popular: Callable[[int], list[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._asker = asker
        self._popular = popular
        self._clock = clock
        self._at_work = 0
        self._admission = Admission(settings.deadline / 1_000, settings.in_flight, clock)
        self.draining = False
        self.metrics = GatewayMetrics(
            lambda: self._at_work, lambda: asker.late, lambda: self._admission.limit
        )

    def routes(self) -> list[web.AbstractRouteDef]:
        """What is served."""

        async def exposed() -> bytes:
            return self.metrics.exposed()

        return [
            web.get("/", self._page),
            web.get("/health", self._health),
            web.get("/ready", self._ready),
            web.post("/rank", self._rank),
            web.post("/events", self._take_events),
            *metrics_routes(exposed),
        ]

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(text=_PAGE.read_text(encoding="utf-8"), content_type="text/html")

    async def _health(self, _request: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def _ready(self, _request: web.Request) -> web.Response:
        why = "draining" if self.draining else self._asker.trouble
        if why:
            return json_response({"status": why}, HTTPStatus.SERVICE_UNAVAILABLE)
        return json_response({"status": "ready", "gateway": self._asker.gateway})

    def _refusal(self) -> web.Response | None:
        """No, with when to come back, if this is more than can be done."""
        if self.draining:
            reason, status = "draining", HTTPStatus.SERVICE_UNAVAILABLE
        elif self._at_work >= self._settings.in_flight:
            reason, status = "too_many", HTTPStatus.TOO_MANY_REQUESTS
        else:
            return None
        self.metrics.refused.labels(reason).inc()
        response = json_response({"error": reason}, status)
        response.headers["Retry-After"] = str(math.ceil(self._settings.retry_after / 1_000))
        return response

    async def _rank(self, http: web.Request) -> web.Response:
        if (refusal := self._refusal()) is not None:
            return refusal
        begun_s = self._clock()
        self._at_work += 1
        try:
            document, wait_ms = await self._document(http), self._settings.deadline
            request, items = parse_rank(document, self._asker.gateway, wait_ms)
            answer = await self._answer(request, items, begun_s)
        finally:
            self._at_work -= 1
        took_s = self._clock() - begun_s
        self.metrics.seconds.observe(took_s)
        return json_response(answer | {"took_ms": round(took_s * 1_000, 1)})

    async def _answer(self, request: Event, items: int, begun_s: float) -> dict[str, Any]:
        if self._asker.trouble:
            return self._popular_answer(request, items, "unavailable")
        if not self._admission.enter():
            return self._popular_answer(request, items, "overloaded")
        left_s = self._settings.deadline / 1_000 - (self._clock() - begun_s)
        try:
            reply = await self._asker.ask(request, max(0.001, left_s))
        except TimeoutError:
            return self._popular_answer(request, items, "timeout")
        except NotDelivered:
            return self._popular_answer(request, items, "unavailable")
        finally:
            self._admission.leave(self._clock() - begun_s)
        if reply["fallback_reason"] == "expired":
            return self._popular_answer(request, items, "timeout")
        fell_back = reply["fallback_reason"] is not None
        self.metrics.answers.labels("job_fallback" if fell_back else "model").inc()
        self._asker.tell(shown(request))
        return {**reply, "items": reply["items"][:items], "fallback": fell_back}

    def _popular_answer(self, request: Event, items: int, why: str) -> dict[str, Any]:
        """What the job's own fallback gives, without the job."""
        self.metrics.answers.labels(why).inc()
        popular = self._popular(items)
        return {
            "request_id": request.document["event_id"],
            "user": request.user,
            "items": [
                {"item": item, "position": n, "score": None, "reason": "popular"}
                for n, item in enumerate(popular)
            ],
            "model": None,
            "fallback": True,
            "fallback_reason": why,
        }

    async def _take_events(self, http: web.Request) -> web.Response:
        if (refusal := self._refusal()) is not None:
            return refusal
        self._at_work += 1
        try:
            events = parse_events(await self._document(http), self._settings.max_events)
            await self._asker.write(events)
        except NotDelivered as exc:
            return json_response({"error": str(exc)}, HTTPStatus.SERVICE_UNAVAILABLE)
        finally:
            self._at_work -= 1
        for event in events:
            self.metrics.events.labels(event.document["kind"]).inc()
        ids = [event.document["event_id"] for event in events]
        return json_response({"event_ids": ids}, HTTPStatus.ACCEPTED)

    async def _document(self, http: web.Request) -> Any:
        try:
            return await read_json(http)
        except (InvalidRequest, web.HTTPException):
            self.metrics.refused.labels("malformed").inc()
            raise
