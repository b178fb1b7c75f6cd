"""Readings to windows to scores, with every reading accounted for; a model that is replaced."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs import runner, training
from jobs.features import topics
from jobs.features.parity import compare
from jobs.features.replay import silent
from jobs.settings import Settings, load
from tests.support.fixtures import own_overrides
from tests.support.kafka import Record, Traffic
from tests.support.machines import IOT, arrivals, history, reading, record_of, trained
from tests.support.running import restarts, running
from tests.support.waiting import wait_until
from tests.support.windows import Recomputed

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

MACHINES, SECONDS = 6, 240
BAD = (b"", b"no reading", b'{"reading": "x"}')

MakeIot = Callable[[dict[str, Any]], Settings]


@pytest.fixture(scope="module")
def iot_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 of a small model, of windows by the same roll-up."""
    return trained(tmp_path_factory.mktemp("iot-models"))


@pytest.fixture
def make(bootstrap: str, iot_models: Path, tmp_path: Path) -> MakeIot:
    models = tmp_path / "models"
    shutil.copytree(iot_models, models)
    return lambda overrides: load(IOT, own_overrides(bootstrap, models, tmp_path) | overrides)


def window_counts(traffic: Traffic) -> dict[str, int]:
    """How many readings each window says it has, by the window's id."""
    return {
        out.document["event_id"]: out.document["window"]["readings"]
        for out in traffic.outputs["predictions"]
    }


def test_every_reading_is_in_one_window_or_told(make: MakeIot) -> None:
    by_readings = {"rollup.idle": "10m", "rollup.overdue": None, "rollup.silent_after": "20m"}
    settings = make({"kafka.stop_at_end": True, **by_readings})
    sent = [*arrivals(MACHINES, SECONDS, time.time_ns() // 1_000_000 - 1_000 * SECONDS)]
    partitions = settings.topics.partitions
    with Traffic(settings) as traffic:
        traffic.send(*(record_of(one, partitions) for one in sent))
        traffic.send(*(Record(n % partitions, b"m0", raw) for n, raw in enumerate(BAD)))
        job = runner.start(settings)
        try:
            wait_until(lambda: job.state() in ("FINISHED", "FAILED"), 120, "the job's end")
            assert job.state() == "FINISHED", job.failure()
        finally:
            job.cancel()
        traffic.read_to_end()
    codes = Counter(out.document["code"] for out in traffic.outputs["dead_letters"])
    windows = window_counts(traffic)
    assert len(windows) == len(traffic.outputs["predictions"]), "each window is scored once"
    told = len(traffic.outputs["duplicates"]) + sum(codes.values())
    assert sum(windows.values()) + told == len(sent) + len(BAD)
    assert codes["late"] and codes["id_conflict"] and traffic.outputs["duplicates"]
    check_features(settings, traffic, pd.DataFrame(sent), codes)
    parity = compare(settings, topics.read(settings, {}, silent), None, silent)
    assert parity.is_equal and parity.compared == len(windows), parity.first


def check_features(
    settings: Settings, traffic: Traffic, frame: pd.DataFrame, codes: Counter[str]
) -> None:
    """Every window and every feature equals the roll-up of the table of what was sent."""
    expected = Recomputed(settings, frame)
    assert expected.codes == {c: n for c, n in codes.items() if c in ("late", "id_conflict")}
    assert expected.duplicates == len(traffic.outputs["duplicates"])
    assert expected.windows.keys() == window_counts(traffic).keys()
    expected.check(traffic.outputs["predictions"])


def test_silent_machines_are_told_and_a_newer_model_takes_over(make: MakeIot) -> None:
    by_clock = {"rollup.idle": "2s", "rollup.silent_after": "3s"}
    ahead = {"event.time.max_future": "30d"}  # each reading for the newer model ends a window
    settings = make({"model.follow": "100ms", **by_clock, **ahead})
    rng_readings = [*arrivals(MACHINES, 25, begin_ms := time.time_ns() // 1_000_000 - 60_000)]
    clean = list({one["reading"]: one for one in rng_readings}.values())
    with Traffic(settings) as traffic, running(settings) as job:
        places = traffic.send(*(record_of(one, 4) for one in clean))
        silences = lambda: [  # noqa: E731
            o.document for o in traffic.outputs["alerts"] if o.document.get("kind") == "silent"
        ]
        traffic.poll_until(lambda: len(silences()) >= MACHINES, 60)
        refused = traffic.outputs["dead_letters"]  # they and windows are in topics of their own
        told = lambda: sum(window_counts(traffic).values()) + len(refused)  # noqa: E731
        traffic.poll_until(lambda: told() == len(places), 60)
        assert {s["key"] for s in silences()} == {f"m{n}" for n in range(MACHINES)}
        assert {o.document["model"]["version"] for o in traffic.outputs["predictions"]} == {1}
        training.train(settings, history(4, 300))
        second = 30

        def newer_scores() -> bool:
            nonlocal second
            rng = random.Random(second)
            traffic.send(record_of(reading(0, begin_ms, second, rng), 4))
            second += 10
            return any(o.document["model"]["version"] == 2 for o in traffic.outputs["predictions"])

        traffic.poll_until(newer_scores, 60)
        assert restarts(job) == 0
