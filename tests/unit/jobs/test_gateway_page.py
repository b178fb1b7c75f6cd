"""The gateway's page in Chromium: it ranks as one scrolls, and sends what is clicked."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.browser import MISSING, WHY, Browser, browser
from tests.support.gateways import PlayedJob, served

pytestmark = pytest.mark.skipif(MISSING, reason=WHY)

_COUNT = "return document.querySelectorAll('#feed li').length"
_STATUS = "return document.getElementById('status').textContent"


def scroll_and_click(window: Browser, url: str) -> None:
    window.open(url)
    window.wait_for(f"{_COUNT} >= 20", "the first items")
    assert "feed version 3" in window.run(_STATUS)
    before = window.run(_COUNT)
    window.run("window.scrollTo(0, document.body.scrollHeight)")
    window.wait_for(f"{_COUNT} > {before}", "more items after a scroll")
    window.run("document.querySelector('#feed li button[data-kind=purchase]').click()")
    pressed = "return document.querySelector('button[aria-pressed=true]') !== null"
    window.wait_for(pressed, "the purchase to be confirmed")


async def test_it_ranks_as_one_scrolls_and_sends_clicks() -> None:
    job = PlayedJob()
    async with served(job, token="s3 cret") as (_, client, _):
        url = f"{client._base_url}#s3%20cret"
        with browser() as window:
            await asyncio.to_thread(scroll_and_click, window, url)
    bought = [e.document for e in job.written if e.document["kind"] == "purchase"]
    assert len(bought) == 1 and bought[0]["item"] == "i0" and bought[0]["user"] == "visitor"
    assert bought[0]["request_id"] == job.asked[0].document["event_id"]


async def test_popular_items_are_shown_as_such() -> None:
    job = PlayedJob(lambda request: None)
    async with served(job, deadline=50) as (_, client, _):
        url = str(client._base_url)

        def look(window: Browser) -> None:
            window.open(url)
            window.wait_for("return document.querySelector('li.fallback') !== null", "an item")
            assert "popular items (timeout)" in window.run(_STATUS)

        with browser() as window:
            await asyncio.to_thread(look, window)
