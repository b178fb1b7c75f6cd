"""Which figures the benchmarks report, and when they refuse to."""

from __future__ import annotations

import re
import time
from array import array
from types import SimpleNamespace

import pytest

from bench import latency, throughput
from bench.common import Rate
from bench.latency import Phase
from bench.throughput import Outcome, Run


def run(kind: str = "served", parallelism: int = 1, stock: bool = False) -> Run:
    return Run(kind, parallelism, stock, records=1_000, least_s=30, most_s=60)


def outcome(value: float | None, note: str = "", **about) -> Outcome:
    return Outcome(run(**about), value, note, {})


def test_each_of_ours_is_compared_with_the_stock_figure_of_its_kind():
    results = throughput.results_of(
        [
            outcome(2_000.0, kind="served", stock=True),
            outcome(8_000.0, kind="embedded", stock=True),
            outcome(30_000.0, kind="served"),
            outcome(40_000.0, kind="embedded", parallelism=2),
        ]
    )
    assert {r.name: (r.value, r.baseline, r.ratio) for r in results} == {
        "stock_served": (2_000.0, None, None),
        "stock_embedded": (8_000.0, None, None),
        "whole_job_served": (30_000.0, 2_000.0, 15.0),
        "whole_job_embedded_p2": (40_000.0, 8_000.0, 5.0),
        "ratio_to_stock": (15.0, 1.0, 15.0),
    }


def test_stock_at_the_same_parallelism_comes_first():
    results = throughput.results_of(
        [
            outcome(2_000.0, stock=True),
            outcome(3_000.0, stock=True, parallelism=2),
            outcome(30_000.0, parallelism=2),
        ]
    )
    assert results[-1].baseline == 3_000.0


def test_no_ratio_without_a_valid_figure():
    results = throughput.results_of(
        [outcome(2_000.0, stock=True), outcome(None, "invalid: 5 fallbacks")]
    )
    assert [(r.name, r.value, r.ratio) for r in results[1:]] == [
        ("whole_job_served", None, None),
        ("ratio_to_stock", None, None),
    ]
    assert results[1].note == "invalid: 5 fallbacks"


@pytest.mark.parametrize(
    ("records", "seconds", "expected"),
    [
        (0, 100, False),  # it has not begun
        (1_000, 10, False),  # enough records, too short
        (900, 40, False),
        (1_000, 30, True),
        (900, 60, True),
        (5_000, 1, True),  # there are no more
    ],
)
def test_when_a_measurement_may_end(records, seconds, expected):
    assert throughput._is_enough(run(), records, seconds, total=5_000) is expected


@pytest.mark.parametrize(
    ("fallbacks", "counts", "expected"),
    [
        (1, {}, ""),
        (2, {}, "2 fallbacks"),
        (0, {"dead_letters": 1}, "1 dead letters"),
        (0, {"duplicates": 3}, "3 duplicates"),
        (0, {"predictions": 2_001}, "1 predictions more than records"),
    ],
)
def test_what_makes_a_rate_invalid(fallbacks, counts, expected):
    counts = {"predictions": 2_000, "dead_letters": 0, "duplicates": 0, **counts}
    rate = Rate(500.0, records=1_000, seconds=2.0, ignored_records=1_000, from_s=0.0)
    text = throughput._objection(run(), rate, counts, fallbacks, total=2_000)
    assert re.search(expected, text) if expected else text == ""


class Message:
    """A Kafka message with a prediction."""

    def __init__(self, at_ms: float, text: bytes) -> None:
        self._at_ms, self._text = at_ms, text

    def value(self) -> bytes:
        return self._text

    def timestamp(self) -> tuple[int, int]:
        return 2, int(self._at_ms)


def test_fallbacks_of_the_warm_up_are_counted_apart():
    now_s, now_ms = time.monotonic(), time.time() * 1_000
    messages = [
        Message(now_ms - 5_000, b'{"fallback_reason":"deadline_exceeded"}'),
        Message(now_ms - 5_000, b'{"fallback_reason":null}'),
        Message(now_ms + 5_000, b'{"fallback_reason": null}'),
        Message(now_ms + 5_000, b'{"fallback_reason": "timeout"}'),
        Message(now_ms + 6_000, b'{"fallback_reason":"unavailable"}'),
    ]
    at = SimpleNamespace(topics=SimpleNamespace(read=lambda topic: iter(messages)))
    rate = Rate(500.0, records=1_000, seconds=2.0, ignored_records=1_000, from_s=now_s)
    assert throughput._fallbacks(at, {"predictions": "p"}, rate) == (1, 2)


def phase(rate: int, latencies_ms: list[int], **about) -> Phase:
    load = {"sent": len(latencies_ms) + 5, "warm": 5, "achieved_per_s": rate}
    made = Phase("served", rate, load=load, done_after_s=0.1, **about)
    made.latencies_ms = array("q", latencies_ms)
    return made


def test_latencies_are_compared_with_stock():
    stock, ours = phase(500, [900, 1_000], stock=True), phase(10_000, [20, 50])
    results = {r.name: r for r in latency.results_of([stock, ours])}
    assert list(results) == [
        "p50_stock_served_500",
        "p50_served_10000",
        "p99_stock_served_500",
        "p99_served_10000",
    ]
    p99 = results["p99_served_10000"]
    assert (p99.value, p99.baseline, p99.ratio, p99.unit) == (50, 1_000, 0.05, "ms")
    assert results["p50_stock_served_500"].baseline is None


def test_a_rate_that_is_not_held_has_no_value():
    stock, ours = phase(500, [900], stock=True), phase(10_000, [20], note="not held: 5 fallbacks")
    result = latency.results_of([stock, ours])[1]
    assert (result.value, result.ratio, result.note) == (None, None, "not held: 5 fallbacks")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ""),
        ({"done_after_s": 5.1}, "not held: done 5.1 s"),
        ({"done_after_s": None}, "not held: not done"),
        ({"load": {"sent": 3, "warm": 1, "achieved_per_s": 98.9}}, "not held: the load generator"),
        ({"load": {"sent": 4, "warm": 1, "achieved_per_s": 100}}, "failed: 2 predictions for 3"),
        ({"fallbacks": latency.Counter(deadline_exceeded=1)}, "not held: 1 fallbacks"),
    ],
)
def test_when_a_rate_is_held(change, expected):
    measured = phase(100, [7, 8])
    for name, value in change.items():
        setattr(measured, name, value)
    text = latency._objection(measured)
    assert text.startswith(expected) and bool(text) == bool(expected)
