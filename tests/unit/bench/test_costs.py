"""Unit costs from steady rates, and settings beside their base."""

from __future__ import annotations

import pytest

from bench import scaling_costs, tuning
from bench.scaling_costs import FITTED, Measured
from bench.tuning import EMBEDDED, HUNG, SERVED, Outcome


def point(rate: float) -> dict[str, float]:
    """A job of which an event takes 30 us of Python and 20 of the JVM, a batch 500 us."""
    return {"events": rate, "python": rate * 30e-6 + 100 * 500e-6, "jvm": rate * 20e-6 + 0.1}


def measured(keys: int = 1_000) -> Measured:
    return Measured(
        keys=keys,
        events=100_000,
        fitted={rate: point(rate) for rate in FITTED},
        checked={},
        checkpoint_s=2.0,
        checkpoint_bytes=6_000_000,
        batches_s=100.0,
        stages=2,
        columns=29,
        event_bytes=150.04,
        prediction_bytes=1_000.0,
    )


def test_costs_are_what_two_rates_differ_by() -> None:
    one = measured()
    assert one.python_us == pytest.approx(30)
    assert one.jvm_us == pytest.approx(20)
    assert one.batch_us == pytest.approx(500)


def test_the_model_gives_the_points_back_and_those_between() -> None:
    costs = scaling_costs.costs_of([measured(), measured(100_000)], {"cpu": "a slow one"})
    assert costs.state_bytes == 30
    assert costs.checkpoint_bytes_s == 3_000_000
    assert (costs.event_bytes, costs.prediction_bytes) == (150.0, 1_000.0)
    for rate in (FITTED[0], 4_321.0):
        found = scaling_costs.modelled_cores(costs, measured(), point(rate))
        assert found == pytest.approx(point(rate)["python"])


def test_a_setting_is_beside_the_file_as_it_is() -> None:
    found = {
        EMBEDDED: Outcome(40.0, 80.0, 100.0, 20_000.0),
        SERVED: Outcome(50.0, 90.0, 120.0, 10_000.0),
        "window_2ms": Outcome(20.0, 60.0, 150.0, 15_000.0),
        "one_call": Outcome(60.0, 95.0, 120.0, 5_000.0),
    }
    ratios = {r.name: r.ratio for r in tuning.results_of(found)}
    assert ratios["window_2ms_p50"] == 0.5
    assert ratios["one_call_per_s"] == 0.5
    assert ratios["embedded_p50"] is None


def test_the_base_comes_along() -> None:
    assert [case.name for case in tuning.chosen(["one_call"])] == [SERVED, "one_call"]
    assert [case.name for case in tuning.chosen(["hung_breaker_1"])] == [HUNG, "hung_breaker_1"]
