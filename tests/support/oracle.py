"""The features of conf/fraud.yaml, recomputed from their definition with NumPy and pandas.

Nothing of the project's own feature code is used. An event at time ``t`` sees, for each key and
each window ``w``, the events of that key in ``(t - w, t]`` which had arrived when it did, itself
included; and the labels of that key in ``(t - 7d - w, t - 7d]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
CARD_WINDOWS = {"5m": 5 * MINUTE_MS, "1h": HOUR_MS, "24h": DAY_MS, "7d": 7 * DAY_MS}
TERMINAL_WINDOWS = {"24h": DAY_MS, "7d": 7 * DAY_MS}
LABEL_WINDOWS = {"24h": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}
LABEL_DELAY_MS = 7 * DAY_MS
EARTH_RADIUS_KM = 6_371.0088
TOLERANCE = 1e-9


def recompute(
    records: Sequence[bytes], order: pd.DataFrame, labels: Sequence[Mapping[str, Any]] = ()
) -> pd.DataFrame:
    """The features of accepted events.

    Args:
        records: The events' JSON.
        order: ``card_id`` and ``terminal_id`` of each: its place in the order of arrival there.
        labels: Labels that all came before the first event; the last one of an id counts.

    Returns:
        One row per record, in the order given, one column per feature; NaN is missing.
    """
    events = pd.DataFrame([json.loads(record) for record in records])
    result = _alone(events)
    for column, values in _of_key(events, "card_id", order, CARD_WINDOWS).items():
        aggregate, _, window = column.rpartition("_")
        result[f"card_{aggregate}_{window}"] = values
    for column, values in _of_key(events, "terminal_id", order, TERMINAL_WINDOWS).items():
        aggregate, _, window = column.rpartition("_")
        if aggregate in ("count", "mean"):
            result[f"terminal_{aggregate}_{window}"] = values
    for window, values in _fraud_rates(events, labels).items():
        result[f"terminal_fraud_rate_mean_{window}"] = values
    return result


def _alone(events: pd.DataFrame) -> pd.DataFrame:
    times = [datetime.fromtimestamp(ms / 1_000, UTC) for ms in events["event_time_ms"]]
    result = pd.DataFrame(index=events.index)
    result["amount"] = events["amount"].astype(float)
    result["hour"] = [float(moment.hour) for moment in times]
    for category in ("CNP", "CP"):
        result[f"type_{category}"] = (events["type"] == category).astype(float)
    result["billing_shipping_km"] = _distances(events, "billing", "shipping")
    result["billing_terminal_km"] = _distances(events, "billing", "terminal")
    return result


def _distances(events: pd.DataFrame, start: str, end: str) -> list[float]:
    names = [f"{start}_lat", f"{start}_lon", f"{end}_lat", f"{end}_lon"]
    columns = [events[n] if n in events else pd.Series(math.nan, events.index) for n in names]
    return [_distance_km(*map(float, point)) for point in zip(*columns, strict=True)]


def _distance_km(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """By the chord between two points of the unit sphere, not by the haversine formula."""
    if any(map(math.isnan, (lat1, lon1, lat2, lon2))):
        return math.nan
    chord = math.dist(_on_sphere(lat1, lon1), _on_sphere(lat2, lon2))
    return 2 * EARTH_RADIUS_KM * math.asin(min(chord / 2, 1.0))


def _on_sphere(lat: float, lon: float) -> tuple[float, float, float]:
    lat, lon = math.radians(lat), math.radians(lon)
    return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)


def _of_key(
    events: pd.DataFrame, key: str, order: pd.DataFrame, windows: Mapping[str, int]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    arrival = order[key].to_numpy()
    for rows in events.groupby(key).indices.values():
        rows = rows[np.argsort(arrival[rows], kind="stable")]
        assert len(set(arrival[rows])) == len(rows), f"two events of one {key} arrived as one"
        times = events["event_time_ms"].to_numpy()[rows]
        amounts = events["amount"].to_numpy(float)[rows]
        had_arrived = np.tri(len(rows), dtype=bool)  # row i: the events 0 to i
        for window, length_ms in windows.items():
            inside = (
                had_arrived
                & (times[None, :] > times[:, None] - length_ms)
                & (times[None, :] <= times[:, None])
            )
            count = inside.sum(axis=1)
            total = np.where(inside, amounts[None, :], 0.0).sum(axis=1)
            mean = total / count
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(mean == 0, np.nan, amounts / mean)
            for name, values in zip(
                ("count", "sum", "mean", "ratio_to_mean"), (count, total, mean, ratio), strict=True
            ):
                found.setdefault(f"{name}_{window}", np.full(len(events), np.nan))[rows] = values
    return found


def _fraud_rates(
    events: pd.DataFrame, labels: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    last = {(label["terminal_id"], label["transaction_id"]): label for label in labels}
    known = pd.DataFrame(
        [
            (terminal, label["event_time_ms"], label["is_fraud"])
            for (terminal, _), label in last.items()
        ],
        columns=["terminal_id", "time", "is_fraud"],
    )
    of_terminal = {key: group for key, group in known.groupby("terminal_id")}
    found = {window: np.full(len(events), np.nan) for window in LABEL_WINDOWS}
    times = events["event_time_ms"].to_numpy()
    for terminal, rows in events.groupby("terminal_id").indices.items():
        if terminal not in of_terminal:
            continue
        group = of_terminal[terminal]
        at, fraud = group["time"].to_numpy(), group["is_fraud"].to_numpy(float)
        until = times[rows] - LABEL_DELAY_MS
        for window, length_ms in LABEL_WINDOWS.items():
            inside = (at[None, :] <= until[:, None]) & (at[None, :] > until[:, None] - length_ms)
            with np.errstate(invalid="ignore"):
                found[window][rows] = (inside * fraud[None, :]).sum(axis=1) / inside.sum(axis=1)
    return found


def differences(
    expected: pd.DataFrame, found: Sequence[Mapping[str, float | None]]
) -> list[tuple[int, str, float, float]]:
    """Row, feature, expected and found value of each one that differs by more than 1e-9.

    The difference is relative to the expected value where that is above 1.
    """
    actual = pd.DataFrame(found, dtype=float)
    assert set(actual.columns) == set(expected.columns)
    wrong: list[tuple[int, str, float, float]] = []
    for name in expected.columns:
        want, have = expected[name].to_numpy(float), actual[name].to_numpy(float)
        both_missing = np.isnan(want) & np.isnan(have)
        with np.errstate(invalid="ignore"):
            close = np.abs(want - have) <= TOLERANCE * np.maximum(1.0, np.abs(want))
        wrong += [
            (int(row), name, float(want[row]), float(have[row]))
            for row in np.flatnonzero(~(close | both_missing))
        ]
    return wrong
