"""Watch a job's output topic grow until a measurement may end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from bench.common import BenchError, Sample, say


class Watched(Protocol):
    """What writes the records."""

    name: str

    def check(self) -> None:
        """Do nothing while it runs; ``BenchError`` if it ended."""


_SAMPLE_EVERY_S = 0.5
_FIRST_OUTPUT_S = 120.0
_STALL_S = 30.0


def watch(
    size: Callable[[str], int],
    topic: str,
    total: int,
    jobs: Sequence[Watched],
    is_enough: Callable[[int, float], bool],
) -> list[Sample]:
    """Sample a topic's size.

    Args:
        size: Gives the number of a topic's records.
        topic: The output topic.
        total: How many records there may be.
        jobs: The processes that write them.
        is_enough: Whether the measurement may end with so many records, so many seconds after
            the first.

    Raises:
        BenchError: a job ended, or nothing more is written although records are left.
    """
    samples = [Sample(time.monotonic(), 0)]
    first_s = grown_s = said_s = samples[0].at_s
    while not is_enough(samples[-1].records, samples[-1].at_s - first_s):
        time.sleep(_SAMPLE_EVERY_S)
        for job in jobs:
            job.check()
        samples.append(_sample(size, topic))
        last = samples[-1]
        if samples[-2].records == 0:
            first_s = last.at_s
        if last.records > samples[-2].records:
            grown_s = last.at_s
        if last.at_s - grown_s > (_STALL_S if last.records else _FIRST_OUTPUT_S):
            missing = total - last.records
            raise BenchError(f"no output for {last.at_s - grown_s:.0f} s, {missing:,} missing")
        if last.at_s - said_s > 10:
            said_s = last.at_s
            say(f"{jobs[0].name}: {last.records:,} records")
    return samples


def _sample(size: Callable[[str], int], topic: str) -> Sample:
    before_s = time.monotonic()
    records = size(topic)
    return Sample((before_s + time.monotonic()) / 2, records)
