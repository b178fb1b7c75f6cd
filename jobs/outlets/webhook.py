"""Posts alerts to an HTTP server, several at once, those of one entity one after the other."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from urllib.parse import quote

import aiohttp

from jobs.outlets.alerts import Alert
from jobs.outlets.settings import WebhookSettings
from jobs.outlets.target import DONE, Fate, Message, Outcome

_AGAIN = (408, 425, 429)
"""Refusals that pass; any other status from 400 to 499 says that this alert will never be taken."""
_SHOWN = 200


class WebhookTarget:
    """POST with a JSON body and ``Idempotency-Key``: the alert's id, of a list a hash of its ids.

    2xx is delivered. 408, 425, 429, 5xx, redirects and no answer are tried again; another 4xx is
    refused. When nothing has been taken and the first ``in_flight`` requests have failed, the rest
    of the batch is not tried: the server is down.

    Args:
        settings: The server.
    """

    name = "webhook"

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings

    def open(self) -> None:
        """Make the session; it connects with the first request."""
        self._runner = asyncio.Runner()
        self._session = self._runner.run(self._new_session())

    async def _new_session(self) -> aiohttp.ClientSession:
        token = self._settings.token
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout / 1_000),
            connector=aiohttp.TCPConnector(limit=self._settings.in_flight),
        )

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._session.close())
        self._runner.close()

    def deliver(self, messages: Sequence[Message]) -> list[Outcome]:
        """See ``Target``."""
        return self._runner.run(self._deliver(messages))

    async def _deliver(self, messages: Sequence[Message]) -> list[Outcome]:
        outcomes = [Outcome(Fate.RETRY, "not tried: the server does not answer")] * len(messages)
        lanes = iter(self._lanes(messages))
        tally = _Tally(self._settings.in_flight)

        async def work() -> None:
            for lane in lanes:
                for part in lane:
                    if tally.is_down:
                        return
                    found = await self._part([messages[n] for n in part])
                    for n, outcome in zip(part, found, strict=True):
                        outcomes[n] = outcome
                        tally.count(outcome)
                    if found[-1].fate is Fate.RETRY:
                        break

        await asyncio.gather(*(work() for _ in range(self._settings.in_flight)))
        return outcomes

    def _lanes(self, messages: Sequence[Message]) -> list[list[list[int]]]:
        """What goes one after the other: the alerts of a key, or, of lists, all of them."""
        size = self._settings.per_request
        if size > 1:
            rows = list(range(len(messages)))
            return [[rows[n : n + size] for n in range(0, len(rows), size)]]
        lanes: dict[bytes, list[list[int]]] = {}
        for n, message in enumerate(messages):
            lanes.setdefault(message.key, []).append([n])
        return list(lanes.values())

    async def _part(self, messages: Sequence[Message]) -> list[Outcome]:
        """A request's alerts; of a list that is refused, each alone: one of them is at fault."""
        outcome = await self._post(messages)
        if len(messages) == 1 or outcome.fate is not Fate.REFUSED:
            return [outcome] * len(messages)
        return [await self._post([message]) for message in messages]

    async def _post(self, messages: Sequence[Message]) -> Outcome:
        try:
            alerts = [Alert(message) for message in messages]
            headers = {"Content-Type": "application/json", "Idempotency-Key": _key(alerts)}
        except ValueError as exc:
            return Outcome(Fate.REFUSED, f"not readable: {exc}")
        url = self._settings.url
        try:
            async with self._session.post(
                url, data=self._body(messages), headers=headers, allow_redirects=False
            ) as answer:
                return _outcome(answer.status, await answer.text(errors="replace"))
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return Outcome(Fate.RETRY, f"{type(exc).__name__}: {exc}")

    def _body(self, messages: Sequence[Message]) -> bytes:
        values = [message.value for message in messages]
        return values[0] if self._settings.per_request == 1 else b"[" + b",".join(values) + b"]"


class _Tally:
    """Whether a server is down: so many requests have failed, and none was answered."""

    def __init__(self, failures: int) -> None:
        self._left = failures
        self._answered = False

    def count(self, outcome: Outcome) -> None:
        self._answered |= outcome.fate is not Fate.RETRY
        self._left -= outcome.fate is Fate.RETRY

    @property
    def is_down(self) -> bool:
        return not self._answered and self._left <= 0


def _key(alerts: Sequence[Alert]) -> str:
    if len(alerts) == 1:
        return quote(alerts[0].id, safe="@#/:")  # a header holds ASCII
    return hashlib.sha256("\n".join(alert.id for alert in alerts).encode()).hexdigest()


def _outcome(status: int, body: str) -> Outcome:
    if 200 <= status < 300:
        return DONE
    told = f"HTTP {status}: {body[:_SHOWN].strip()}"
    is_final = 400 <= status < 500 and status not in _AGAIN
    return Outcome(Fate.REFUSED if is_final else Fate.RETRY, told)
