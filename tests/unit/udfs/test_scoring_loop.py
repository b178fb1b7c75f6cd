"""Calls in the event loop beside the operators."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.waiting import wait_until
from udfs.scoring import loop


def test_what_cannot_be_closed_does_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "_CLOSE_S", 0.05)
    closed: list[str] = []

    async def refuses() -> None:
        raise ConnectionError("it is gone")

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def closes() -> None:
        closed.append("last")

    loop.wait_closed(refuses(), hangs(), closes())
    wait_until(lambda: closed == ["last"], 30, "the last one is closed")
    assert "it is gone" in caplog.text
