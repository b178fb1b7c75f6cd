"""What bench/overload.py makes of its readings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from bench.overload import Ends, Memory


def ends(times: list[tuple[int, int]], shed: list[int]) -> Ends:
    high = np.arange(len(times)) % 2 == 0
    times_ms = np.array([(*t, t[1]) for t in times])
    shed_ms = np.array([(at, 30) for at in shed], np.int64).reshape(-1, 2)
    return Ends(Counter(), times_ms, high, shed_ms, 0, 0, 0)


def test_percentiles_are_of_a_span_and_a_priority() -> None:
    found = ends([(0, 10), (1, 91), (2, 12), (100, 900)], [])
    assert found.p99(0, 100) == 90
    assert found.p99(0, 100, True) == 10
    assert found.p99(0, 100, False) == 90
    assert found.p99(200, 300) is None


@pytest.mark.parametrize(
    ("shed", "slow_ms", "expected"),
    [
        ([], 0, 0.0),
        ([21_500], 0, 1.5),
        ([19_000], 0, 0.0),
        ([], 27_000, 10.0),
        ([32_000], 27_000, 12),
    ],
)
def test_normal_is_when_nothing_is_shed_and_nothing_is_slow(
    shed: list[int], slow_ms: int, expected: float
) -> None:
    times = [(at, at + (900 if at == slow_ms else 50)) for at in range(0, 60_000, 100)]
    assert ends(times, shed).normal_after_s(20_000, 60_000, 100) == expected


def test_memory_grows_from_the_second_quarter_to_the_last() -> None:
    sizes = [500, 100, 100, 150]
    samples: list[Any] = [(n * 1_000, {"job": (sizes[n // 4], n / 2)}) for n in range(16)]
    memory = Memory({"job": 1}, [(-5, {"job": (9_999, 0.0)}), *samples])
    assert memory.growth(0, 15_000) == {"job": pytest.approx(0.5)}
    assert memory.cores(0, 15_000) == {"job": pytest.approx(0.5)}
    assert memory.growth(90_000, 95_000) == {}


def test_memory_is_told_every_ten_seconds_from_the_span_s_begin() -> None:
    samples: list[Any] = [(n * 2_000, {"job": (n << 20, 0.0)}) for n in range(20)]
    told = Memory({"job": 1}, samples).course("job", 4_000, 27_000)
    assert told == [{"s": 0, "mib": 2}, {"s": 10, "mib": 7}, {"s": 20, "mib": 12}]
