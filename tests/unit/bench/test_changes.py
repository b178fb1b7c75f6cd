"""What the bench of changes reads off the times of predictions."""

from __future__ import annotations

import numpy as np
import pytest

from bench.changes_judge import Seen


def seen(appended_ms: list[int], latency_ms: list[int]) -> Seen:
    return Seen(np.array(appended_ms, np.int64), np.array(latency_ms, np.int64))


def test_the_gap_of_a_change_is_the_longest_step_around_it() -> None:
    before, after = list(range(0, 10_000, 100)), list(range(14_000, 20_000, 100))
    caught_up_ms = 16_000
    late = [(caught_up_ms - at) * 2 if at < caught_up_ms else 20 for at in after]
    found = seen(before + after, [20] * len(before) + late).between(9_950, 20_000)
    assert found.gap_s == pytest.approx(4.1)
    assert found.normal_s == pytest.approx((15_400 - 9_900) / 1_000)  # later than 1 s


def test_a_change_without_a_gap_is_normal_at_once() -> None:
    found = seen(list(range(0, 20_000, 100)), [20] * 200).between(10_000, 20_000)
    assert (found.gap_s, found.normal_s) == (0.1, 0.0)


def test_a_longer_gap_of_another_change_is_not_counted() -> None:
    times = [*range(0, 5_000, 100), *range(9_000, 20_000, 100), *range(30_000, 40_000, 100)]
    assert seen(times, [20] * len(times)).between(10_000, 25_000).gap_s == pytest.approx(0.1)
