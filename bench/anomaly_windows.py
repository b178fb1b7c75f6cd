"""Windows of the job beside the same windows by pandas, for bench/anomaly.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pandas as pd

from jobs.demo.iot.fleet import Fleet
from jobs.settings import Settings

TOLERANCE = 1e-9


def differences(
    chosen: Settings, fleet: Fleet, windows: Sequence[dict[str, Any]]
) -> tuple[int, list[str]]:
    """How many fields were compared, and which differ by more than 1e-9 of their size.

    Compared are windows that have all of the readings that pandas has: a reading that came after
    its window had closed is a dead letter, and so is counted elsewhere.

    Args:
        chosen: The job's settings; its roll-up says what is compared.
        fleet: What was sent.
        windows: Of the predictions, of whole machines.
    """
    rollup = chosen.rollup
    assert rollup is not None
    names = {window["machine"] for window in windows}
    readings = pd.DataFrame(_readings(fleet, names)).drop_duplicates("reading")
    readings["end"] = readings["at_ms"] // rollup.every * rollup.every + rollup.every
    groups = {key: rows.sort_values("at_ms") for key, rows in readings.groupby(["machine", "end"])}
    compared, wrong = 0, []
    for window in windows:
        rows = groups.get((window["machine"], window["window_end_ms"]))
        if rows is None or len(rows) < window["readings"]:
            wrong.append(f"{window['window']}: {window['readings']} readings were not sent")
            continue
        if len(rows) > window["readings"]:
            continue
        for spec in rollup.fields:
            for aggregate, column in zip(spec.aggregates, spec.columns, strict=True):
                compared += 1
                expected = _aggregate(aggregate, rows["at_ms"], rows[spec.value])
                if not is_close(window[column], expected):
                    wrong.append(f"{window['window']} {column}: {window[column]}, not {expected}")
    return compared, wrong


def is_close(found: float | None, expected: float) -> bool:
    """Whether both are missing, or differ by at most 1e-9 of their size."""
    if found is None or np.isnan(expected):
        return found is None and bool(np.isnan(expected))
    return abs(found - expected) <= TOLERANCE * max(1.0, abs(expected))


def _readings(fleet: Fleet, names: set[str]) -> Iterator[dict[str, Any]]:
    keys = {name.encode() for name in names}
    for chunk in fleet.chunks():
        for item in chunk.items:
            if item.key in keys:
                try:
                    reading = orjson.loads(item.value)
                except orjson.JSONDecodeError:
                    continue
                if "at_ms" in reading and not isinstance(reading["Current"], str):
                    yield reading


def _aggregate(name: str, times_ms: pd.Series[int], values: pd.Series[float]) -> float:
    known = values.notna()
    column, at_s = values[known].astype(float), (times_ms[known] - times_ms.min()) / 1_000
    if name == "slope":
        off = at_s - at_s.mean()
        return float((off * column).sum() / (off * off).sum()) if len(column) > 1 else np.nan
    return float(getattr(column, name)())
