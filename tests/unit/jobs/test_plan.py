"""A plan follows from its unit costs, and names the limit that is met first."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import settings
from jobs.cluster.plan import Costs, plan, python_load
from jobs.environment import ROOT, NotReadyError

FRAUD = ROOT / "conf" / "fraud.yaml"
GIVEN = Costs(
    python_us={1_000: 20.0, 100_000: 40.0},
    jvm_us={1_000: 5.0, 100_000: 15.0},
    batch_us=500.0,
    event_bytes=150.0,
    prediction_bytes=1_000.0,
    state_bytes=30.0,
    checkpoint_bytes_s=20e6,
    columns=29,
    utilization=0.5,
    measured={"cpu": "a slow one"},
)


def planned(rate: float, **overrides: Any) -> dict[str, str]:
    chosen = settings.load(FRAUD, {k.replace("__", "."): v for k, v in overrides.items()})
    return {line.what: line.value for line in plan(chosen, rate, 1_000, 10, GIVEN)}


def test_python_is_a_core_per_task_manager() -> None:
    """10,000 events take 0.2 cores and 400 batches 0.2; half a core of one is planned for."""
    columns = len(settings.load(FRAUD).schema_.columns)
    assert columns == GIVEN.columns
    assert math.isclose(python_load(GIVEN, columns, 10_000, 400, keys=1_000), 0.4)
    assert planned(10_000)["TaskManagers"] == "1 of one slot"
    assert planned(100_000)["TaskManagers"] == "5 of one slot"


@pytest.mark.parametrize(
    ("keys", "us"), [(1, 20.0), (1_000, 20.0), (10_000, 30.0), (100_000, 40.0), (10**7, 40.0)]
)
def test_more_keys_cost_more(keys: int, us: float) -> None:
    assert math.isclose(GIVEN.python_us_at(keys), us)
    assert math.isclose(GIVEN.jvm_us_at(keys), us / 2 - 5)


@pytest.mark.parametrize(
    ("overrides", "limit"),
    [
        ({}, "batch.buckets"),
        ({"batch__buckets": 8}, "topics.partitions"),
        ({"batch__buckets": 8, "topics__partitions": 8}, "flink.parallelism"),
        (
            {"batch__buckets": 8, "topics__partitions": 8, "flink__parallelism": 8},
            "Python's cores",
        ),
    ],
)
def test_the_first_limit(overrides: dict[str, Any], limit: str) -> None:
    assert planned(100_000, **overrides)["first limit"] == limit


def test_the_costs_that_are_shipped_say_where_they_are_of() -> None:
    shipped = Costs.read()
    assert {"cpu", "cores", "started", "command"} <= shipped.measured.keys()
    assert shipped.columns == len(settings.load(FRAUD).schema_.columns)


def test_costs_that_nobody_measured(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match=r"python -m bench\.scaling --write"):
        Costs.read(tmp_path / "costs.yaml")


def test_costs_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(GIVEN.__dict__))
    assert Costs.read(path) == GIVEN
