"""The replayed machines: the same by seed, counted before they are sent."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from jobs.demo.iot import runs
from jobs.demo.iot.fleet import DELAYED_S, LATE_S, NO_FAULTS, Faults, Fleet
from jobs.demo.iot.runs import SENSORS, Runs
from jobs.demo.replay import Item
from jobs.environment import NotReadyError

START_MS = 1_767_225_600_000
SECONDS = 700


@pytest.fixture(scope="module")
def made() -> Runs:
    return runs.synthetic_runs(seed=5)


def fleet(made: Runs, faults: Faults = NO_FAULTS, **options: Any) -> Fleet:
    arguments = {"machines": 30, "seconds": SECONDS, "seed": 3, "disturbed": 0.2} | options
    return Fleet(made, start_ms=START_MS, faults=faults, **arguments)


def items(of: Fleet) -> list[Item]:
    return [item for chunk in of.chunks() for item in chunk.items]


def parsed(sent: list[Item]) -> list[dict[str, Any]]:
    found = []
    for item in sent:
        try:
            document = orjson.loads(item.value)
        except orjson.JSONDecodeError:
            continue
        found.append(document)
    return found


def test_the_same_seed_sends_the_same_bytes(made: Runs) -> None:
    one, two = (items(fleet(made, Faults())) for _ in range(2))
    assert one == two != items(fleet(made, Faults(), seed=4))


def test_what_is_counted_is_sent(made: Runs) -> None:
    faults = Faults(bad=0.01, late=0.01, delayed=0.02)
    of = fleet(made, faults)
    sent = items(of)
    assert len(sent) == of.events
    times = Counter(item.value for item in sent)
    good = [d for d in parsed(list(map(lambda v: Item("events", b"", v), times))) if "at_ms" in d]
    readings = [d for d in good if not isinstance(d["Current"], str)]
    assert len(readings) == of.counts["readings"]
    assert sum(n - 1 for v, n in times.items() if v != b"ping") == of.counts["duplicate"]
    assert sum(None in d.values() for d in readings) == pytest.approx(of.counts["missing"], abs=0)
    assert all(of.counts[kind] > 0 for kind in ("missing", "delayed", "late", "bad", "duplicate"))


def test_places_rise_and_readings_come_in_time_order_but_for_those_delayed(made: Runs) -> None:
    places = np.concatenate([chunk.places for chunk in fleet(made, Faults()).chunks()])
    assert (np.diff(places) >= 0).all() and places[0] >= 0 and places[-1] <= 1
    calm = [d["at_ms"] for d in parsed(items(fleet(made)))]
    assert calm == sorted(calm)
    newest: dict[str, int] = defaultdict(int)
    behind: Counter[int] = Counter()
    delayed = fleet(made, replace(NO_FAULTS, delayed=0.02, late=0.01))
    for reading in parsed(items(delayed)):
        machine, at_ms = reading["machine"], reading["at_ms"]
        behind[max(0, newest[machine] - at_ms) // 1_000] += 1
        newest[machine] = max(newest[machine], at_ms)
    assert max(behind) <= LATE_S
    assert sum(behind[s] for s in DELAYED_S) > 0 < sum(n for s, n in behind.items() if s > 40)


def test_a_machine_is_its_run_with_a_gain_and_an_offset(made: Runs) -> None:
    of = fleet(made)
    truth = {t.machine: t for t in of.truth()}
    by_name = {run.name: run for run in (made.normal, *made.labelled)}
    of_machine = defaultdict(list)
    for reading in parsed(items(of)):
        of_machine[reading["machine"]].append([reading[name] for name in SENSORS])
    gains = []
    for machine, rows in of_machine.items():
        run, values = by_name[truth[machine].run], np.array(rows)
        first = where_it_moves_alike(run.values[:, 6], values[:20, 6])
        gains.append(np.polyfit(run.values[first : first + 20, 6], values[:20, 6], 1)[0])
    assert np.ptp(gains) > 0.5


def where_it_moves_alike(run: np.ndarray[Any, Any], part: np.ndarray[Any, Any]) -> int:
    """Where a run's values are a linear function of this part's."""
    windows = np.lib.stride_tricks.sliding_window_view(run, len(part))
    one = windows - windows.mean(axis=1, keepdims=True)
    two = part - part.mean()
    alike = one @ two / np.sqrt((one**2).sum(axis=1) * (two**2).sum())
    assert alike.max() > 0.9999
    return int(alike.argmax())


def test_the_truth_tells_the_anomalies(made: Runs) -> None:
    of = fleet(made)
    disturbed = [t for t in of.truth() if t.anomalies_ms]
    assert len(disturbed) == 6
    for truth in disturbed:
        ((begun, ended),) = truth.anomalies_ms
        assert 500_000 < begun - START_MS < 572_000
        assert ended - START_MS > (SECONDS - 5) * 1_000


def test_silence_gaps_and_stuck_sensors(made: Runs) -> None:
    silent = fleet(made, replace(NO_FAULTS, silent=1.0))
    last = {d["machine"]: d["at_ms"] for d in parsed(items(silent))}
    for truth in silent.truth():
        assert truth.silent_from_ms is not None
        assert truth.silent_from_ms - 30_000 < last[truth.machine] < truth.silent_from_ms
    calm, gaps = (fleet(made, replace(NO_FAULTS, gap=part)).events for part in (0.0, 1.0))
    assert 30 * 15 < calm - gaps < 30 * 61
    stuck = fleet(made, replace(NO_FAULTS, stuck=1.0), disturbed=0.0)
    of_first = [d for d in parsed(items(stuck)) if d["machine"] == "m00000"]
    runs_of_one = max(longest_standing([d[name] for d in of_first]) for name in SENSORS)
    assert 20 < runs_of_one <= 91


def longest_standing(values: list[float]) -> int:
    best = now = 1
    for one, two in pairwise(values):
        now = now + 1 if one == two else 1
        best = max(best, now)
    return best


def test_an_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / runs.ARCHIVE
    path.write_bytes(b"no archive")
    with pytest.raises(NotReadyError, match="SKAB's archive"):
        runs.skab_runs(path)


def test_without_an_archive_the_runs_are_synthetic(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STREAMSCORE_SHARED", str(tmp_path))
    found = runs.load()
    assert found.source == "synthetic"
    assert len(found.labelled) == runs.SYNTHETIC_RUNS
    assert not found.normal.anomaly.any()
    assert found.normal.times_s[0] > 1_500_000_000  # a job refuses what is of 1970


@pytest.mark.skipif(
    not runs.archive().is_file(), reason=f"no {runs.ARCHIVE}: set STREAMSCORE_SHARED"
)
def test_skab_is_read() -> None:
    found = runs.load()
    assert found.source == "SKAB"
    assert len(found.labelled) == 34
    assert all(run.anomaly.any() and len(run) > runs.WARM_UP_ROWS for run in found.labelled)
    assert len(found.normal) == 9_405
    assert os.path.basename(found.labelled[0].name) == "1"
