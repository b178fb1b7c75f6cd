"""Readings of some machines: gaps, stuck sensors, nulls, repeats, late and bad ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from jobs import training
from jobs.demo.iot.runs import SENSORS
from jobs.environment import ROOT
from jobs.settings import load
from tests.support.kafka import Record

IOT = ROOT / "conf" / "iot.yaml"


def reading(machine: int, begin_ms: int, second: int, rng: random.Random) -> dict[str, Any]:
    """One reading; pressure is stuck on every third machine."""
    values: dict[str, float | None] = {
        name: None if rng.random() < 0.05 else rng.gauss(20.0 * n, 1.0 + n)
        for n, name in enumerate(SENSORS)
    }
    if machine % 3 == 0:
        values["Pressure"] = 1.25
    return {
        "reading": f"m{machine}-{begin_ms + 1_000 * second}",
        "at_ms": begin_ms + 1_000 * second,
        "machine": f"m{machine}",
        "machine_type": f"type {machine % 2}",
        **values,
    }


def history(machines: int, seconds: int, begin_ms: int = 1_700_000_000_000) -> pd.DataFrame:
    """Clean readings with a label: every fifth half-minute is an anomaly."""
    rng = random.Random(1)
    rows = [
        reading(machine, begin_ms, second, rng) | {"anomaly": float(second // 30 % 5 == 4)}
        for second in range(seconds)
        for machine in range(machines)
    ]
    return pd.DataFrame(rows)


def trained(folder: Path) -> Path:
    """Version 1 of a small model, of windows by the same roll-up; returns the folder."""
    settings = load(IOT, {"model.path": str(folder), "training.trees": 5})
    training.train(settings, history(4, 300))
    return folder


def arrivals(machines: int, seconds: int, begin_ms: int, seed: int = 2) -> Iterator[dict[str, Any]]:
    """Readings in the order in which they come; of a machine some seconds are missing."""
    rng = random.Random(seed)
    sent: list[dict[str, Any]] = []
    for second in range(seconds):
        for machine in range(machines):
            kind = rng.random()
            if machine == 1 and second // 25 % 3 == 1:
                continue  # a gap
            one = reading(machine, begin_ms, second, rng)
            if kind < 0.05:
                one["at_ms"] -= rng.choice([300, 12_000])
            elif kind < 0.1 and sent:
                one = rng.choice(sent[-60:])
            elif kind < 0.13 and sent:
                one = rng.choice(sent[-30:]) | {"Current": 99.0}
            sent.append(one)
            yield one


def record_of(one: dict[str, Any], partitions: int) -> Record:
    """As a producer sends it: keyed by machine."""
    machine = str(one["machine"])
    return Record(int(machine[1:]) % partitions, machine.encode(), orjson.dumps(one))
