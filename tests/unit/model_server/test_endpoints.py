"""One client, several servers: where calls go, and where they do not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest

from model_server.breaker import BreakerOptions, BreakerState
from model_server.client import ClientOptions, PredictClient
from model_server.endpoints import ChannelSecurity, Endpoint, Endpoints, RetryBudget
from model_server.errors import BadResponse, CircuitOpen, Rejected, Timeout, Unavailable

ROWS = np.zeros((2, 5), np.float32)
FAILURES = 3


@asynccontextmanager
async def client_of(*ports: int, **changes: Any) -> AsyncIterator[PredictClient]:
    target = ", ".join(f"127.0.0.1:{port}" for port in ports)
    breaker = BreakerOptions(failure_threshold=FAILURES, open_ms=60_000.0)
    settings: dict[str, Any] = {"deadline_ms": 20_000.0, "breaker": breaker} | changes
    client = PredictClient(ClientOptions(target, "fraud", **settings))
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def two(faking: Any, answer: Any) -> AsyncIterator[tuple[list[int], Counter[int]]]:
    """Two servers, and how many calls each had."""
    counts: Counter[int] = Counter()

    def handler(number: int) -> Callable[..., Any]:
        async def predict(request: Any, context: Any) -> Any:
            counts[number] += 1
            return answer([0.5, 0.5])

        return predict

    async with AsyncExitStack() as held:
        ports = [(await held.enter_async_context(faking(handler(n)))).port for n in (0, 1)]
        yield ports, counts


async def test_calls_are_spread(two: Any) -> None:
    ports, counts = two
    async with client_of(*ports) as client:
        for _ in range(20):
            await asyncio.gather(*(client.predict(ROWS) for _ in range(10)))
    assert sum(counts.values()) == 200
    assert min(counts.values()) > 60


async def test_a_server_that_is_down_costs_nothing(two: Any, dead_port: int) -> None:
    ports, counts = two
    async with client_of(dead_port, ports[0], max_attempts=2, backoff_ms=10_000.0) as client:
        for _ in range(50):  # a pause before a retry would outlast the deadline
            await client.predict(ROWS)
    assert counts == {0: 50}


async def test_a_server_that_hangs_is_left_alone(two: Any, black_hole: int) -> None:
    ports, _ = two
    timeouts = 0
    options = {"deadline_ms": 300.0, "breaker": BreakerOptions(failure_threshold=FAILURES)}
    async with client_of(black_hole, ports[0], **options) as client:
        for _ in range(60):
            try:
                await client.predict(ROWS)
            except Timeout:
                timeouts += 1
    # It is tried again each second; its first failures are few.
    assert 1 <= timeouts <= FAILURES + 3


async def test_a_hedged_call_does_not_wait_for_a_server_that_hangs(
    two: Any, black_hole: int
) -> None:
    ports, counts = two
    async with client_of(black_hole, ports[0], hedge_ms=20.0) as client:
        for _ in range(40):
            await client.predict(ROWS)
    assert counts[0] == 40


async def test_a_hung_server_is_left_alone_by_hedged_calls_too(two: Any, black_hole: int) -> None:
    ports, _ = two
    async with client_of(black_hole, ports[0], hedge_ms=20.0) as client:
        for _ in range(60):
            await client.predict(ROWS)
        hung = client._endpoints._endpoints[0]
        assert hung.breaker.state is BreakerState.OPEN


async def test_bad_answers_count_against_the_server(faking: Any, answer: Any) -> None:
    async def good(request: Any, context: Any) -> Any:
        return answer([0.5, 0.5])

    async def bad(request: Any, context: Any) -> Any:
        return answer([7.0, 7.0])

    refused = 0
    async with faking(good) as one, faking(bad) as other, client_of(one.port, other.port) as client:
        for _ in range(60):
            try:
                await client.predict(ROWS)
            except BadResponse:
                refused += 1
    assert refused == FAILURES


async def test_without_another_healthy_server_there_is_a_pause_and_no_hedge(two: Any) -> None:
    ports, counts = two
    async with client_of(ports[0], ports[1], hedge_ms=1.0) as client:
        first, second = client._endpoints._endpoints
        for _ in range(FAILURES):
            second.breaker.acquire().fail()
        assert not client._endpoints.has_another({first})
        assert client._endpoints.has_another(set())
        for _ in range(20):
            await client.predict(ROWS)
    assert counts == {0: 20}


async def test_if_all_are_sick_nobody_is_asked(dead_port: int) -> None:
    async with client_of(dead_port, dead_port, max_attempts=1) as client:
        assert client.breaker_state is BreakerState.CLOSED
        for _ in range(2 * FAILURES):
            with pytest.raises(Unavailable):
                await client.predict(ROWS)
        with pytest.raises(CircuitOpen):
            await client.predict(ROWS)
        assert client.breaker_state is BreakerState.OPEN


async def test_a_refusal_is_no_reason_to_leave_a_server_alone(serving: Any) -> None:
    async with serving() as running, client_of(running.port, running.port) as client:
        for _ in range(3 * FAILURES):
            with pytest.raises(Rejected):
                await client.predict(np.zeros((1, 4), np.float32))
        await client.predict(ROWS)


def endpoints(**changes: Any) -> Endpoints:
    settings: dict[str, Any] = {
        "breaker": BreakerOptions(failure_threshold=1, open_ms=1_000.0),
        "security": ChannelSecurity(),
        "channel_options": [],
        "clock": lambda: 0.0,
        "shuffle": lambda _: None,
    }
    return Endpoints(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"], **settings | changes)


async def test_the_fewest_open_calls_win_and_tried_ones_come_last() -> None:
    group = endpoints()
    with group.attempt(1.0) as first, group.attempt(1.0) as second:
        assert first is not second
        with group.attempt(1.0, tried={first, second}) as third:
            assert third not in (first, second)
        with group.attempt(1.0, tried=set(group._endpoints)) as again:
            assert again is third  # it has no open call
    await group.close()


async def test_a_pause_ends_with_one_trial() -> None:
    now = [0.0]
    group = endpoints(clock=lambda: now[0])

    def fail() -> Endpoint:
        with pytest.raises(Unavailable), group.attempt(99.0) as endpoint:
            raise Unavailable("down")
        return endpoint

    sick = fail()
    for _ in range(5):
        with group.attempt(99.0) as chosen:
            assert chosen is not sick
    now[0] = 1.5
    with group.attempt(99.0) as trial:
        assert trial is sick
    with group.attempt(99.0) as chosen:
        assert chosen is sick  # healthy again, and first in the list
    await group.close()


async def test_to_be_cancelled_counts_only_when_the_time_is_over() -> None:
    group = endpoints()
    for ends_at_s, healthy in ((5.0, True), (0.0, False)):
        with pytest.raises(asyncio.CancelledError), group.attempt(ends_at_s) as endpoint:
            raise asyncio.CancelledError
        with group.attempt(5.0) as chosen:
            assert (chosen is endpoint) == healthy
    await group.close()


def test_the_retry_budget() -> None:
    budget = RetryBudget(0.25)
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(4):
        assert not budget.take()
        budget.called()
    assert [budget.take(), budget.take()] == [True, False]
    for _ in range(1_000):
        budget.called()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]


async def test_a_service_that_is_down_is_not_asked_many_times(dead_port: int) -> None:
    attempts = 0
    async with client_of(
        dead_port,
        max_attempts=4,
        backoff_ms=0.1,
        breaker=BreakerOptions(failure_threshold=1_000_000),
    ) as client:
        attempt = client._attempt

        async def counted(*given: Any) -> Any:
            nonlocal attempts
            attempts += 1
            return await attempt(*given)

        client._attempt = counted  # type: ignore[method-assign]
        for _ in range(100):
            with pytest.raises(Unavailable):
                await client.predict(ROWS)
    assert 100 < attempts <= 100 + 10 + 20


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="belong together"):
        ChannelSecurity(tls=True, certificate="x")  # type: ignore[arg-type]
