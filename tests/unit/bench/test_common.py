"""The benchmarks' arithmetic: percentiles, rates, pacing, and the document they write."""

from __future__ import annotations

import argparse
import json

import jsonschema
import numpy as np
import pytest

from bench import common
from bench.common import BenchError, Pacer, Result, Sample


class Clock:
    """Time that passes only in ``sleep``, and by ``cost_s`` at each look."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.cost_s = cost_s

    def __call__(self) -> float:
        self.now_s += self.cost_s
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7], {"p50": 7, "p90": 7, "p99": 7, "max": 7}),
        (range(1, 101), {"p50": 50, "p90": 90, "p99": 99, "max": 100}),
        ([3, 1, 2], {"p50": 2, "p90": 3, "p99": 3, "max": 3}),
        ([1] * 98 + [9] * 2, {"p50": 1, "p90": 1, "p99": 9, "max": 9}),
    ],
)
def test_percentiles_are_measured_values(values, expected):
    assert common.percentiles(list(values)) == expected
    assert common.percentiles(np.array(list(values))) == expected


def test_percentiles_of_nothing():
    with pytest.raises(BenchError, match="nothing"):
        common.percentiles([])


def samples(*pairs: tuple[float, int]) -> list[Sample]:
    return [Sample(at_s, records) for at_s, records in pairs]


def test_rate_leaves_out_the_warm_up():
    # |-- start --|-- slow, 40 % --|------ 300/s ------|
    # 0           2                6                   8
    growth = samples((0, 0), (2, 0), (4, 150), (6, 400), (7, 700), (8, 1_000))
    rate = common.growth_rate(growth)
    assert rate.per_s == 300
    assert (rate.records, rate.seconds, rate.ignored_records) == (600, 2, 400)


def test_rate_ends_with_the_growth():
    growth = samples((0, 0), (1, 400), (2, 700), (3, 1_000), (4, 1_000), (60, 1_000))
    assert common.growth_rate(growth).per_s == 300


def test_rate_can_ignore_seconds_since_the_last_empty_sample():
    growth = samples((0, 0), (50, 0), (51, 500), (60, 600), (65, 650), (70, 1_000))
    rate = common.growth_rate(growth, ignore_s=12)
    assert (rate.ignored_records, rate.seconds) == (650, 5)


@pytest.mark.parametrize("growth", [[], samples((0, 0), (1, 0)), samples((0, 0), (1, 1_000))])
def test_rate_needs_two_samples_of_growth(growth):
    with pytest.raises(BenchError, match="too few"):
        common.growth_rate(growth)


@pytest.mark.parametrize("per_s", [1, 500, 999.5, 20_000])
def test_pacer_sends_each_record_once_when_due(per_s):
    clock = Clock()
    start_s = clock.now_s
    pacer = Pacer(per_s, clock=clock, sleep=clock.sleep)
    sent = 0
    for first, end in pacer.batches(total=1_000):
        assert first == sent
        elapsed_s = clock.now_s - start_s
        assert (end - 1) / per_s <= elapsed_s + 1e-9  # none before it is due
        assert end == 1_000 or end / per_s > elapsed_s - 1e-9  # all that is due
        sent = end
    assert sent == 1_000
    assert clock.now_s - start_s == pytest.approx(999 / per_s, abs=2.5 * pacer.tick_s)
    assert pacer.late_max_s <= 1e-6


def test_pacer_makes_up_for_a_pause():
    clock = Clock()
    pacer = Pacer(1_000, clock=clock, sleep=clock.sleep)
    sizes = []
    for first, end in pacer.batches(total=2_000):
        sizes.append(end - first)
        if len(sizes) == 10:
            clock.now_s += 0.5
    assert max(sizes) == pytest.approx(500, abs=3)
    assert pacer.late_max_s == pytest.approx(0.5, abs=0.003)
    assert clock.now_s - 100.0 == pytest.approx(2.0, abs=0.003)


def test_pacer_ends_although_every_look_at_the_clock_costs_more_than_a_tick():
    clock = Clock(cost_s=0.005)
    batches = list(Pacer(1_000, clock=clock, sleep=clock.sleep).batches(total=100))
    assert batches[-1][1] == 100


@pytest.mark.parametrize(
    ("value", "baseline", "ratio"),
    [(30.0, 10.0, 3.0), (30.0, None, None), (None, 10.0, None), (30.0, 0.0, None)],
)
def test_compared(value, baseline, ratio):
    result = common.compared("a", value, "records/s", baseline)
    assert (result.value, result.baseline, result.ratio) == (value, baseline, ratio)


@pytest.fixture
def document(tmp_path, monkeypatch) -> dict:
    monkeypatch.setattr(common, "BENCH", tmp_path)
    parts = {
        "machine": common.machine(),
        "versions": common.versions(),
        "settings": {"changed": {}},
        "runs": [{"name": "whole_job_served"}],
        "failures": [],
    }
    results = [
        Result("stock_served", 1_999.87654, "records/s"),
        common.compared("whole_job_served", 29_876.54321, "records/s", 1_999.87654, "a note"),
        Result("whole_job_embedded", None, "records/s", note="invalid: 5 fallbacks"),
    ]
    assert common.finish("throughput", "Throughput", parts, results, quick=False) == 0
    return json.loads((tmp_path / "throughput.json").read_text())


def test_document_fits_its_schema(document):
    jsonschema.validate(document, common.SCHEMA)
    assert document["machine"]["cores"] >= 1
    assert [r["value"] for r in document["results"]] == [2_000, 29_880, None]
    assert document["results"][0]["ratio"] is None
    assert document["results"][1]["ratio"] == pytest.approx(14.94)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["results"][0].pop("unit"),
        lambda d: d["results"][0].update(value="fast"),
        lambda d: d["results"][0].update(name="Whole job"),
        lambda d: d["machine"].pop("kernel"),
        lambda d: d["versions"].update(java=None),
        lambda d: d.pop("failures"),
    ],
)
def test_schema_refuses_a_spoilt_document(document, spoil):
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, common.SCHEMA)


def test_a_failure_is_the_exit_code_and_a_smoke_test_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "BENCH", tmp_path)
    parts = {"settings": {"changed": {}}, "failures": ["it broke"]}
    assert common.finish("latency", "", parts, [], quick=True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["latency-quick.json"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch.window=100ms", ("batch.window", "100ms")),
        ("model.embedded=true", ("model.embedded", True)),
        ("batch.buckets=4", ("batch.buckets", 4)),
        ("a.b=c=d", ("a.b", "c=d")),
    ],
)
def test_override(text, expected):
    assert common.override(text) == expected


@pytest.mark.parametrize("text", ["batch.window", "=1", "a=[1"])
def test_override_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        common.override(text)
