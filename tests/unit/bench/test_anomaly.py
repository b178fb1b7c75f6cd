"""The plain windows that the job is measured beside, and the comparison with pandas."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from bench import anomaly, anomaly_windows
from bench.machine_windows import BASELINE, FIGURES, SENSORS, Machines, window_figures
from jobs import settings
from jobs.demo.iot import runs
from jobs.demo.iot.fleet import Faults, Fleet
from jobs.environment import ROOT

START_MS = 1_767_225_600_000
CONFIG = ROOT / "conf" / "iot.yaml"


def fleet(seconds: int = 120) -> Fleet:
    made = runs.synthetic_runs(3)
    return Fleet(made, 4, seconds, START_MS, faults=Faults(gap=0, silent=0, late=0, delayed=0))


def readings(of: Fleet) -> list[bytes]:
    """Each good reading once, in order."""
    found: dict[str, bytes] = {}
    for chunk in of.chunks():
        for item in chunk.items:
            try:
                reading = orjson.loads(item.value)
            except orjson.JSONDecodeError:
                continue
            if "at_ms" in reading and not isinstance(reading["Current"], str):
                found.setdefault(reading["reading"], item.value)
    return list(found.values())


def test_a_windows_figures_are_pandas() -> None:
    chance = np.random.default_rng(1)
    values = chance.normal(5, 2, (10, len(SENSORS)))
    values[3, 2] = np.nan
    times = np.arange(10.0) * 1_000 + chance.integers(0, 400, 10)
    found = dict(zip(FIGURES, window_figures(times, values), strict=True))
    frame = pd.DataFrame(values)
    for name in ("mean", "std", "min", "max", "count"):
        np.testing.assert_allclose(found[name], getattr(frame, name)(), rtol=1e-12)
    for sensor in range(len(SENSORS)):
        known = ~np.isnan(values[:, sensor])
        slope = np.polyfit(times[known] / 1_000, values[known, sensor], 1)[0]
        assert found["slope"][sensor] == pytest.approx(slope)


def plain_windows(of: Fleet) -> list[dict[str, Any]]:
    """What the job's predictions would carry, by the plain windows."""
    machines = Machines()
    found = []
    for window in machines.add(readings(of)):
        prefixes = [f.prefix for f in settings.load(CONFIG).rollup.fields]  # type: ignore[union-attr]
        columns = {
            f"{prefix}_{name}": value
            for name, row in zip(FIGURES, window["figures"].tolist(), strict=True)
            for prefix, value in zip(prefixes, row, strict=True)
        }
        found.append(window | columns)
    return found


def test_windows_that_differ_from_pandas_are_told() -> None:
    of, chosen = fleet(), settings.load(CONFIG)
    windows = plain_windows(of)
    compared, wrong = anomaly_windows.differences(chosen, of, windows)
    assert compared > 40 * 6 * 8
    assert wrong == []
    windows[5]["flow_mean"] += 1e-6
    windows[7]["readings"] += 1
    _, wrong = anomaly_windows.differences(chosen, of, windows)
    assert len(wrong) == 2
    assert "flow_mean" in wrong[0] and "were not sent" in wrong[1]


def test_plain_z_scores_are_against_the_first_windows() -> None:
    of = fleet(10 * (BASELINE + 5))
    windows = [w for w in Machines().add(readings(of)) if w["machine"] == "m00000"]
    means = np.array([w["figures"][0] for w in windows])
    first = means[:BASELINE]
    expected = (means[-1] - first.mean(axis=0)) / first.std(axis=0, ddof=1)
    np.testing.assert_allclose(windows[-1]["z"], expected)


def test_quick_and_full_runs_have_their_sizes() -> None:
    full = anomaly.complete(anomaly.parser().parse_args([]))
    quick = anomaly.complete(anomaly.parser().parse_args(["--quick", "--seconds", "25"]))
    assert (full.machines, full.seconds) == (10_000, 600)
    assert (quick.machines, quick.seconds) == (300, 25)


def test_a_rate_is_held_if_all_is_accounted_for_in_time() -> None:
    phase = anomaly.Phase(10, 60, alert_ms=[100.0] * 98 + [1_900.0, 5_000.0], sent=5, accounted=5)
    assert phase.is_held
    phase.accounted = 4
    assert not phase.is_held
    late = anomaly.Phase(10, 60, alert_ms=[2_100.0], sent=5, accounted=5)
    assert not late.is_held
