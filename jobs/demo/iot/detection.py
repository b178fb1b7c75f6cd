"""What the job found of the machines' anomalies, beside what is known of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.demo.iot.fleet import Fleet, Truth
from jobs.demo.outcome import FloatArray
from jobs.demo.run import Stage
from jobs.demo.watch import Tally

WARM_UP_WINDOWS = 40
"""As many windows of a machine are its baseline; see conf/iot.yaml."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the episodes found of the machines' anomalies.

    Attributes:
        anomalies: How many there were, of which a part lies in the replay.
        found: Anomalies with an episode that opened while they lasted.
        delays_s: Of those, from the anomaly's start to the end of the window that opened it.
        others: Episodes that opened at no anomaly.
        silent: Machines told silent, of those that stopped.
        stopped: Machines that stopped sending for good.
    """

    anomalies: int
    found: int
    delays_s: list[float]
    others: int
    silent: int
    stopped: int


def found_of(alerts: Sequence[Mapping[str, Any]], truth: Sequence[Truth]) -> Found:
    """Put the episodes beside what is known of the machines."""
    opened: dict[str, list[int]] = defaultdict(list)
    for alert in alerts:
        if alert.get("kind") == "scores" and alert["state"] == "open":
            opened[alert["entity"]["value"]].append(alert["opened_ms"])
    silent = {_machine(alert) for alert in alerts if alert.get("kind") == "silent"}
    delays_s, anomalies, hits = [], 0, 0
    for one in truth:
        for begun_ms, ended_ms in one.anomalies_ms:
            anomalies += 1
            inside = [t for t in opened[one.machine] if begun_ms < t <= ended_ms + 10_000]
            hits += len(inside)
            delays_s += [(min(inside) - begun_ms) / 1_000] if inside else []
    stopped = {t.machine for t in truth if t.silent_from_ms is not None}
    return Found(
        anomalies=anomalies,
        found=len(delays_s),
        delays_s=delays_s,
        others=sum(map(len, opened.values())) - hits,
        silent=len(silent & stopped),
        stopped=len(stopped),
    )


def _machine(alert: Mapping[str, Any]) -> str:
    return str(alert["entity"]["value"] if "entity" in alert else alert["key"])


def test_part(
    stage: Stage, tally: Tally, fleet: Fleet, truth: Sequence[Truth]
) -> tuple[FloatArray, FloatArray]:
    """Scores and labels of the windows after each machine's warm-up, float64 (m,) each.

    A window is anomalous if it has a second of an anomaly.
    """
    rollup = stage.settings.rollup
    assert rollup is not None
    anomalies = {t.machine: t.anomalies_ms for t in truth}
    from_ms = fleet.start_ms + WARM_UP_WINDOWS * rollup.every
    scores, labels = [], []
    rows = zip(tally.keys, tally.event_times_ms, tally.scores, strict=True)
    for machine, end_ms, score in rows:
        if end_ms > from_ms:
            scores.append(score)
            spans = anomalies[machine]
            labels.append(any(a < end_ms and b > end_ms - rollup.every for a, b in spans))
    return np.array(scores, np.float64), np.array(labels, np.float64)
