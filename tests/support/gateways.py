"""A gateway on a free port, before a job that a test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from jobs.gateway.app import OPEN_PATHS, Gateway
from jobs.gateway.bodies import Event
from jobs.sections.ranking import GatewaySettings
from model_server.web import HttpServer

Play = Callable[[Event], dict[str, Any] | None]


def ranked(request: Event) -> dict[str, Any]:
    """A reply as the job writes it."""
    items = [
        {"item": f"i{n}", "position": n, "score": 1.0 - n / 100, "reason": "popular"}
        for n in range(request.document["items"])
    ]
    return {
        "request_id": request.document["event_id"],
        "user": request.user,
        "items": items,
        "model": {"name": "feed", "version": 3},
        "fallback_reason": None,
    }


class PlayedJob:
    """Answers as it is told to; a request without an answer waits for its deadline."""

    def __init__(self, play: Play = ranked) -> None:
        self.gateway, self.late, self.trouble = "gateway-test", 0, ""
        self.play = play
        self.asked: list[Event] = []
        self.waits_s: list[float] = []
        self.written: list[Event] = []

    async def ask(self, request: Event, timeout_s: float) -> dict[str, Any]:
        self.asked.append(request)
        self.waits_s.append(timeout_s)
        reply = self.play(request)
        if reply is None:
            async with asyncio.timeout(timeout_s):
                await asyncio.Event().wait()
        assert reply is not None
        return reply

    async def write(self, events: list[Event]) -> None:
        self.written += events

    def tell(self, event: Event) -> None:
        self.written.append(event)


@asynccontextmanager
async def served(
    job: PlayedJob,
    grace_s: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
    **limits: Any,
) -> AsyncIterator[tuple[Gateway, aiohttp.ClientSession, HttpServer]]:
    """The gateway, a client of it, and its server."""
    settings = GatewaySettings(**{"deadline": 100, **limits})
    gateway = Gateway(settings, job, lambda count: [f"p{n}" for n in range(count)], clock)
    server = HttpServer(
        gateway.routes(),
        max_message_bytes=settings.max_body_bytes,
        grace_s=grace_s,
        timeout_s=10.0,
        token=settings.token,
        open_paths=OPEN_PATHS,
    )
    port = await server.listen("127.0.0.1", 0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        yield gateway, client, server
    await server.stop()
