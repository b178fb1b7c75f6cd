"""Open-loop callers of a gateway; a process of its own.

Requests come at random moments (Poisson) at a constant mean rate, whether or not earlier ones are
answered, so that a gateway that stands still is not asked less. Prints one JSON object: what became
of the requests, and the percentiles of the time from the moment one was due to its answer, in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence

import aiohttp

from bench.common import percentiles


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m bench.ranking_load", description=__doc__)
    add = found.add_argument
    add("--url", required=True, help="the gateway's, http://host:port")
    add("--users", required=True, help="file with a user in each line")
    add("--time-ms", type=int, default=0, help="event time of the requests; 0 for the clock's")
    add("--rate", type=float, required=True, help="requests/s")
    add("--items", type=int, default=20, help="items wanted (%(default)s)")
    add("--warm-s", type=float, default=5.0, help="seconds that are not counted (%(default)s)")
    add("--seconds", type=float, default=20.0, help="seconds that are (%(default)s)")
    add("--seed", type=int, default=1, help="of all that is random (%(default)s)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Call, and print what came of it."""
    options = parser().parse_args(argv)
    calls = asyncio.run(Calls(options).run())
    print(json.dumps(calls))
    return 0


class Calls:
    """One run.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._random = random.Random(options.seed)
        with open(options.users, encoding="utf-8") as file:
            self._users = [line.strip() for line in file]
        self._by: Counter[str] = Counter()
        self._ms: list[float] = []
        self._late_ms = 0.0

    async def run(self) -> dict[str, object]:
        """Send all requests and wait for their answers."""
        options = self._options
        tasks = []
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(options.url, connector=connector) as client:
            begun_s = time.perf_counter()
            due_s = begun_s
            while (due_s := due_s + self._random.expovariate(options.rate)) < begun_s + (
                options.warm_s + options.seconds
            ):
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                counts = due_s >= begun_s + options.warm_s
                if counts:
                    self._late_ms = max(self._late_ms, (time.perf_counter() - due_s) * 1_000)
                tasks.append(asyncio.create_task(self._call(client, due_s, counts)))
            await asyncio.gather(*tasks)
        return {
            "asked": len(self._ms),
            "answered_by": dict(self._by),
            "per_s": len(self._ms) / options.seconds,
            "sent_late_ms": round(self._late_ms, 1),
            **percentiles(self._ms),
        }

    async def _call(self, client: aiohttp.ClientSession, due_s: float, counts: bool) -> None:
        body = {"user": self._random.choice(self._users), "items": self._options.items}
        if self._options.time_ms:
            body["event_time_ms"] = self._options.time_ms
        async with client.post("/rank", json=body) as response:
            answer = await response.json()
        if not counts:
            return
        self._ms.append((time.perf_counter() - due_s) * 1_000)
        if response.status != 200:
            self._by[f"HTTP {response.status}"] += 1
        else:
            self._by[answer["fallback_reason"] or "model"] += 1
            if len(answer["items"]) != self._options.items:
                self._by["too few items"] += 1


if __name__ == "__main__":
    sys.exit(main())
