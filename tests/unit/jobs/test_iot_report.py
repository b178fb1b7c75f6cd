"""The machines' report: episodes beside the truth, charts, and an account that adds up."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from jobs import settings
from jobs.demo import document, score_charts
from jobs.demo.iot import detection, evaluation, pictures, runs
from jobs.demo.iot.evaluation import Measured, Rates, Scored
from jobs.demo.iot.fleet import NO_FAULTS, Fleet, Truth
from jobs.demo.watch import Tally
from jobs.environment import ROOT
from udfs.alerting.hysteresis import Rules

START_MS = 1_767_225_600_000
RATES = Rates(0.8, 0.1, 0.2)
MEASURED = Measured([0.9, 0.8], RATES, RATES, RATES, [20.0, None], [1, 0])


def truth(machine: str, *spans: tuple[int, int], silent: int | None = None) -> Truth:
    return Truth(machine, "valve1/1", spans, silent)


def episode(machine: str, opened_ms: int, state: str = "open", revision: int = 1) -> dict[str, Any]:
    return {
        "alert_id": f"{machine}@{opened_ms}#{revision}",
        "episode_id": f"{machine}@{opened_ms}",
        "kind": "scores",
        "state": state,
        "revision": revision,
        "entity": {"field": "machine", "value": machine},
        "opened_ms": opened_ms,
        "closed_ms": None if state == "open" else opened_ms + 30_000,
        "peak": {"score": 0.7, "threshold": 0.5},
        "moved_most": {"feature": "flow_zscore_first40", "value": -7.25},
        "last_scores": [[opened_ms - 10_000, 0.4], [opened_ms, 0.7]],
    }


def silence(machine: str) -> dict[str, Any]:
    return {"kind": "silent", "event_id": f"{machine}@silent@5", "key": machine}


def window(machine: str, end_s: int, score: float, readings: int = 10) -> bytes:
    return orjson.dumps(
        {
            "prediction_id": f"readings-0-{machine}{end_s}",
            "event_id": f"{machine}@{end_s}",
            "key": machine,
            "score": score,
            "fallback_reason": None,
            "event_time_ms": START_MS + 1_000 * end_s,
            "ingest_time_ms": 1_000,
            "scored_time_ms": 1_010,
            "window": {"readings": readings},
        }
    )


def test_episodes_are_put_beside_the_truth() -> None:
    known = [
        truth("m1", (100_000, 200_000)),
        truth("m2", (100_000, 200_000)),
        truth("m3", silent=50_000),
        truth("m4", silent=50_000),
    ]
    told = [
        episode("m1", 130_000),
        episode("m1", 130_000, "closed", 2),
        episode("m1", 300_000),
        episode("m4", 90_000),
        silence("m3"),
    ]
    found = detection.found_of(told, known)
    assert (found.anomalies, found.found, found.delays_s) == (2, 1, [30.0])
    assert found.others == 2
    assert (found.silent, found.stopped) == (1, 2)


def test_a_tally_counts_a_windows_readings_and_every_kind_of_alert() -> None:
    tally = Tally("readings", None)
    for record in (window("m1", 10, 0.9), window("m1", 20, 0.9, readings=7)):
        tally.add("predictions", record, 1_020)
    tally.add("predictions", window("m1", 10, 0.9), 1_020)
    for alert in (episode("m1", 5), episode("m1", 5), silence("m1")):
        tally.add("alerts", orjson.dumps(alert), 1_030)
    assert (tally.accounted, tally.predictions, tally.repeats) == (17, 2, 2)
    assert tally.alerts_due == 0
    assert [a.key for a in tally.alerts] == ["m1", "m1"]
    assert tally.alerts[0].reasons == ("scores open", "flow_zscore_first40 = -7.25")


def test_the_sections_show_machines_episodes_and_the_published_table() -> None:
    made = runs.synthetic_runs(3)
    fleet = Fleet(made, 8, 600, START_MS, disturbed=0.5, faults=NO_FAULTS)
    tally = Tally("readings", None)
    for name in fleet.names:
        for end_s in range(10, 600, 10):
            tally.add("predictions", window(name, end_s, 0.4), 1_020)
    tally.add("alerts", orjson.dumps(episode("m00001", START_MS + 90_000)), 1_030)
    chosen = settings.load(ROOT / "conf" / "iot.yaml")
    known = fleet.truth()
    found = detection.found_of(tally.alert_records, known)
    text = "".join(pictures.sections(chosen, tally, fleet, known, found, MEASURED))
    assert text.count("Scores of m0") >= 6
    assert "flow_zscore_first40 -7.2" in text
    assert "SYNTHETIC" in text and "published" not in text
    fleet.source = "SKAB"
    real = "".join(pictures.sections(chosen, tally, fleet, known, found, MEASURED))
    assert "Conv-AE (published)" in real and "SYNTHETIC" not in real


def test_a_chart_marks_anomaly_episode_and_threshold() -> None:
    at = np.arange(10.0, 500.0, 10.0)
    chart = score_charts.scores_chart("m1", at, at / 1_000, 0.5, [(100, 200)], [(120, 150)])
    for cls in ("anomaly", "episode", "threshold", "scores"):
        assert f'class="{cls}"' in chart
    assert "100 to 200 s" in chart and "120 to 150 s" in chart
    assert document.figure(chart).startswith("<figure")


def scored(anomaly: tuple[int, int], above: tuple[int, int], rows: int = 800) -> Scored:
    """One run of a reading a second; its windows score 0.9 in a span of rows, else 0.1."""
    seconds = np.arange(rows)
    is_anomaly = (seconds >= anomaly[0]) & (seconds < anomaly[1])
    ends = np.arange(10, rows + 10, 10)
    scores = np.where((ends > above[0]) & (ends <= above[1]), 0.9, 0.1)
    run = runs.Run("valve1/1", seconds, np.zeros((rows, 8)), is_anomaly)
    return Scored(run, ends, scores, seconds // 10)


def test_rates_and_delays_of_a_run() -> None:
    one = scored((500, 600), (520, 620))
    # Of pairs of an anomalous and a normal row, with half of those of equal scores.
    expected = 0.8 * 280 / 300 + 0.5 * (0.8 * 20 / 300 + 0.2 * 280 / 300)
    assert evaluation.auc(one) == pytest.approx(expected)
    rates = evaluation.at([one], 0.5)
    assert rates.mar == pytest.approx(0.2)
    assert rates.far == pytest.approx(20 / 300)
    is_open, opened = evaluation.alarms(one, 0.5, Rules(2, 3, 1))
    assert opened == [540]
    assert evaluation.delay_s(one, opened) == 40.0
    known = evaluation.rows_known(one, is_open, 0.5)
    assert not known[:540].any() and known[541:620].all()
    assert evaluation.delay_s(scored((500, 600), (0, 0)), []) is None
