"""What the bench of changes reads off the times of predictions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from bench.changes_judge import Seen, read
from bench.common import FRAUD
from jobs import settings as job_settings


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


def test_an_event_that_a_rollback_predicts_again_has_all_features_once() -> None:
    settings = job_settings.load(FRAUD, {})
    columns = settings.schema_.columns

    def prediction(offset: int, names: Any) -> Any:
        document = {
            "ingest_time_ms": 0,
            "features": dict.fromkeys(names, 1.0),
            "model": {"version": 1},
            "score": 0.5,
            "source": {"partition": 1, "offset": offset},
        }
        value = orjson.dumps(document)
        return SimpleNamespace(value=lambda: value, timestamp=lambda: (1, 5))

    # Of the job before a feature was added, of the one after, and of what it was rolled back to.
    told = [prediction(0, columns[:-1]), *(prediction(n, columns) for n in (1, 2, 2, 3))]
    place = SimpleNamespace(topics=SimpleNamespace(read=lambda topic: iter(told)))
    found = read(place, settings)  # type: ignore[arg-type]
    assert (len(found.appended_ms), found.wide) == (5, 3)
