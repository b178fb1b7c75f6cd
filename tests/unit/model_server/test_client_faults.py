"""Servers that hang, lie or die: every call ends, and says why."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import numpy as np
import pytest

from model_server.breaker import BreakerOptions, BreakerState
from model_server.errors import ERROR_BY_STATUS, PredictError

ROWS = np.zeros((3, 5), dtype=np.float32)
# Generous: the machine may be busy. What would be waited for in vain takes longer.
SOON_S = 10.0
NEVER_OPEN = BreakerOptions(failure_threshold=1_000_000)


async def reason_of(call: Any) -> str:
    with pytest.raises(PredictError) as caught:
        await call
    return caught.value.reason


async def hang(request: Any, context: Any) -> Any:
    await asyncio.Event().wait()


def always(response: Any) -> Any:
    async def handler(request: Any, context: Any) -> Any:
        return response

    return handler


def failing(code: grpc.StatusCode, details: str = "told to") -> Any:
    async def handler(request: Any, context: Any) -> Any:
        await context.abort(code, details)

    return handler


@pytest.mark.parametrize("method", ["predict", "explain"])
async def test_hung_server_is_a_timeout(
    faking: Any, connecting: Any, answer: Any, method: str
) -> None:
    async def answer_once(request: Any, context: Any) -> Any:
        return answer([0.1, 0.2, 0.3]) if fake.service.calls == 1 else await hang(request, context)

    async with faking(answer_once) as fake, connecting(fake.port) as client:
        await client.predict(ROWS)  # so that no connecting is left for the short deadline
        begun_s = time.monotonic()
        assert await reason_of(getattr(client, method)(ROWS, deadline_ms=500)) == "timeout"
        assert time.monotonic() - begun_s < SOON_S
        assert fake.service.calls == 2  # a timeout is not repeated


async def test_black_hole_is_a_timeout(black_hole: int, connecting: Any) -> None:
    async with connecting(black_hole, deadline_ms=100) as client:
        begun_s = time.monotonic()
        assert await reason_of(client.predict(ROWS)) == "timeout"
        assert await reason_of(client.metadata()) == "timeout"
        assert time.monotonic() - begun_s < SOON_S


async def test_dead_port_is_unavailable(dead_port: int, connecting: Any) -> None:
    async with connecting(dead_port) as client:
        begun_s = time.monotonic()
        assert await reason_of(client.predict(ROWS)) == "unavailable"
        assert time.monotonic() - begun_s < SOON_S


async def test_many_calls_to_a_hung_server_all_end(faking: Any, connecting: Any) -> None:
    settings = {"deadline_ms": 100, "breaker": NEVER_OPEN}
    async with faking(hang) as fake, connecting(fake.port, **settings) as client:
        begun_s = time.monotonic()
        reasons = await asyncio.gather(*(reason_of(client.predict(ROWS)) for _ in range(50)))
        assert set(reasons) == {"timeout"}
        assert time.monotonic() - begun_s < SOON_S


async def test_slow_server_within_the_deadline_is_fine(
    faking: Any, connecting: Any, answer: Any
) -> None:
    async def slow(request: Any, context: Any) -> Any:
        await asyncio.sleep(0.05)
        return answer([0.1, 0.2, 0.3])

    async with faking(slow) as fake, connecting(fake.port) as client:
        assert (await client.predict(ROWS)).model_version == 3


async def test_pauses_never_outlast_the_deadline(dead_port: int, connecting: Any) -> None:
    settings = {"deadline_ms": 5_000, "backoff_ms": 60_000}
    async with connecting(dead_port, **settings) as client:
        begun_s = time.monotonic()
        assert await reason_of(client.predict(ROWS)) == "unavailable"
        assert time.monotonic() - begun_s < SOON_S


async def test_deadline_holds_even_when_the_clock_stands_still(
    dead_port: int, connecting: Any
) -> None:
    """The event loop keeps the deadline too, whatever the attempts believe."""
    settings = {"deadline_ms": 100, "max_attempts": 1_000_000, "backoff_ms": 1}
    async with connecting(dead_port, clock=lambda: 0.0, **settings) as client:
        begun_s = time.monotonic()
        assert await reason_of(client.predict(ROWS)) == "timeout"
        assert time.monotonic() - begun_s < SOON_S


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ([0.1, 0.2], {}),
        ([0.1, 0.2, 0.3, 0.4], {}),
        ([], {}),
        ([[0.1, 0.2, 0.3]], {}),
        ([[0.1, 0.2]] * 3, {}),
        (0.5, {}),
        ([0.1, np.nan, 0.3], {}),
        ([0.1, np.inf, 0.3], {}),
        ([0.1, 1.0001, 0.3], {}),
        ([0.1, -0.0001, 0.3], {}),
        ([0.1, 0.2, 0.3], {"output": "other"}),
        ([0.1, 0.2, 0.3], {"version": None}),
        ([0.1, 0.2, 0.3], {"name": "another"}),
        ([b"a", b"b", b"c"], {"dtype": object}),
        ([True, False, True], {"dtype": bool}),
    ],
)
async def test_wrong_answer_is_a_bad_response(
    faking: Any, connecting: Any, answer: Any, values: Any, changes: Any
) -> None:
    handler = always(answer(values, **changes))
    async with faking(handler) as fake, connecting(fake.port) as client:
        assert await reason_of(client.predict(ROWS)) == "bad_response"
        assert fake.service.calls == 1


@pytest.mark.parametrize(
    "values", [np.zeros((3, 4)), np.zeros((2, 5)), np.zeros(15), np.full((3, 5), np.nan)]
)
async def test_wrong_contributions_are_a_bad_response(
    faking: Any, connecting: Any, answer: Any, values: Any
) -> None:
    handler = always(answer(values, output="contributions"))
    async with faking(handler) as fake, connecting(fake.port) as client:
        assert await reason_of(client.explain(ROWS)) == "bad_response"


async def test_scores_without_values_are_a_bad_response(
    faking: Any, connecting: Any, answer: Any
) -> None:
    response = answer([0.1, 0.2, 0.3])
    response.outputs["scores"].tensor_content = b""
    async with faking(always(response)) as fake, connecting(fake.port) as client:
        assert await reason_of(client.predict(ROWS)) == "bad_response"


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"", b"not a message"])
async def test_garbage_is_a_bad_response(raw_faking: Any, connecting: Any, garbage: bytes) -> None:
    async with raw_faking(garbage) as port, connecting(port) as client:
        assert await reason_of(client.predict(ROWS)) == "bad_response"


async def test_other_version_than_pinned_is_a_bad_response(
    faking: Any, connecting: Any, answer: Any
) -> None:
    handler = always(answer([0.1, 0.2, 0.3], version=4))
    async with faking(handler) as fake, connecting(fake.port, model_version=3) as client:
        assert await reason_of(client.predict(ROWS)) == "bad_response"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
async def test_every_status_arrives_as_its_reason(
    faking: Any, connecting: Any, code: grpc.StatusCode
) -> None:
    async with faking(failing(code)) as fake, connecting(fake.port, max_attempts=1) as client:
        expected = ERROR_BY_STATUS[code.name].reason
        assert await reason_of(client.predict(ROWS)) == expected


async def test_handler_that_raises_is_a_bad_response(faking: Any, connecting: Any) -> None:
    async def broken(request: Any, context: Any) -> Any:
        raise RuntimeError("boom")

    async with faking(broken) as fake, connecting(fake.port) as client:
        assert await reason_of(client.predict(ROWS)) == "bad_response"


@pytest.mark.parametrize(
    ("code", "attempts"),
    [
        (grpc.StatusCode.UNAVAILABLE, 3),
        (grpc.StatusCode.ABORTED, 3),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 1),
    ],
)
async def test_only_an_absent_server_is_asked_again(
    faking: Any, connecting: Any, code: grpc.StatusCode, attempts: int
) -> None:
    async with faking(failing(code)) as fake, connecting(fake.port, backoff_ms=1) as client:
        await reason_of(client.predict(ROWS))
        assert fake.service.calls == attempts


async def test_later_attempt_succeeds(faking: Any, connecting: Any, answer: Any) -> None:
    async def third_time(request: Any, context: Any) -> Any:
        if fake.service.calls < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return answer([0.1, 0.2, 0.3])

    async with faking(third_time) as fake, connecting(fake.port, backoff_ms=1) as client:
        assert len((await client.predict(ROWS)).values) == 3
        assert fake.service.calls == 3
        assert client.breaker_state is BreakerState.CLOSED


async def test_server_sees_the_time_that_is_left(faking: Any, connecting: Any, answer: Any) -> None:
    seen_s: list[float] = []

    async def note(request: Any, context: Any) -> Any:
        seen_s.append(context.time_remaining())
        return answer([0.1, 0.2, 0.3])

    async with faking(note) as fake, connecting(fake.port, deadline_ms=5_000) as client:
        await client.predict(ROWS)
    assert 0 < seen_s[0] < 6.0  # gRPC rounds what it sends up a little


async def test_server_killed_during_a_call_is_unavailable(faking: Any, connecting: Any) -> None:
    async with faking(hang) as fake, connecting(fake.port) as client:
        call = asyncio.create_task(client.predict(ROWS))
        await fake.service.entered.wait()
        await fake.server.stop(None)
        assert await reason_of(call) == "unavailable"


async def test_restarted_server_is_found_soon(faking: Any, connecting: Any, answer: Any) -> None:
    handler = always(answer([0.1, 0.2, 0.3]))
    async with faking(handler) as first:
        port = first.port
        async with connecting(port, breaker=NEVER_OPEN, max_attempts=1) as client:
            await client.predict(ROWS)
            await first.server.stop(None)
            for _ in range(20):  # let the channel fall into its reconnect pauses
                assert await reason_of(client.predict(ROWS)) == "unavailable"
            async with faking(handler, port):
                begun_s = time.monotonic()
                while await _fails(client):
                    assert time.monotonic() - begun_s < SOON_S
                    await asyncio.sleep(0.01)


async def test_lost_server_is_looked_for_often(connecting: Any) -> None:
    """gRPC's own pauses, 1 s and growing, would give the sixth attempt after some 13 s."""
    sixth = asyncio.Event()
    attempts = 0

    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()
        if attempts == 6:
            sixth.set()

    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, connecting(port, breaker=NEVER_OPEN, max_attempts=1) as client:
        async with asyncio.timeout(SOON_S):
            while not sixth.is_set():
                assert await _fails(client)
                await asyncio.sleep(0.01)


async def _fails(client: Any) -> bool:
    try:
        await client.predict(ROWS)
    except PredictError:
        return True
    return False


async def test_breaker_opens_then_tries_again(faking: Any, connecting: Any, answer: Any) -> None:
    now_s = [0.0]
    broken = [True]

    async def handler(request: Any, context: Any) -> Any:
        if broken[0]:
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        return answer([0.1, 0.2, 0.3])

    options = BreakerOptions(failure_threshold=2, open_ms=1_000)
    async with (
        faking(handler) as fake,
        connecting(fake.port, breaker=options, clock=lambda: now_s[0]) as client,
    ):
        for _ in range(2):
            assert await reason_of(client.predict(ROWS)) == "bad_response"
        assert client.breaker_state is BreakerState.OPEN
        assert await reason_of(client.predict(ROWS)) == "circuit_open"
        assert fake.service.calls == 2
        now_s[0] = 1.0
        broken[0] = False
        await client.predict(ROWS)
        assert client.breaker_state is BreakerState.CLOSED


async def test_refusals_do_not_open_the_breaker(faking: Any, connecting: Any) -> None:
    handler = failing(grpc.StatusCode.INVALID_ARGUMENT)
    options = BreakerOptions(failure_threshold=1)
    async with faking(handler) as fake, connecting(fake.port, breaker=options) as client:
        for _ in range(3):
            assert await reason_of(client.predict(ROWS)) == "rejected"
        assert client.breaker_state is BreakerState.CLOSED


async def test_callers_cancellation_passes_through(faking: Any, connecting: Any) -> None:
    options = BreakerOptions(failure_threshold=1)
    async with faking(hang) as fake, connecting(fake.port, breaker=options) as client:
        call = asyncio.create_task(client.predict(ROWS))
        await fake.service.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert client.breaker_state is BreakerState.CLOSED


async def test_close_during_a_call_is_unavailable(faking: Any, connecting: Any) -> None:
    async with faking(hang) as fake, connecting(fake.port) as client:
        call = asyncio.create_task(client.predict(ROWS))
        await fake.service.entered.wait()
        await client.close()
        assert await reason_of(call) == "unavailable"
        assert await reason_of(client.predict(ROWS)) == "unavailable"
