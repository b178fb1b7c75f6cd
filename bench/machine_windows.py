"""Windows of machines and their scores in plain Python: what a program without Flink would do.

The same library calls as the job's, NumPy and ONNX Runtime: a window's figures, its means against
the machine's first 40 windows, one call of the model for all windows that a batch closes. Nothing
of it survives an end; readings out of order, repeats and bad records are not looked for.

It runs in the peers' environments too, so it imports nothing of this project.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnxruntime
import orjson

EVERY_MS = 10_000
LATENESS_MS = 500
BASELINE = 40
SENSORS = (
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
)
FIGURES = ("mean", "std", "min", "max", "slope", "count")


class Machine:
    """One machine's open window and its baseline."""

    __slots__ = ("baseline", "end_ms", "name", "rows", "times")

    def __init__(self, name: str) -> None:
        self.name = name
        self.end_ms = 0
        self.times: list[int] = []
        self.rows: list[list[float | None]] = []
        self.baseline: list[Any] = []

    def add(self, reading: dict[str, Any]) -> dict[str, Any] | None:
        """A reading; returns the window that it closes."""
        at_ms = reading["at_ms"]
        closed = None
        if self.rows and at_ms >= self.end_ms:
            closed = self.close()
        if not self.rows:
            self.end_ms = at_ms // EVERY_MS * EVERY_MS + EVERY_MS
        self.times.append(at_ms)
        self.rows.append([reading.get(name) for name in SENSORS])
        return closed

    def close(self) -> dict[str, Any]:
        """The open window's figures, and its means as z-scores."""
        values = np.array(self.rows, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            figures = window_figures(np.array(self.times, np.float64), values)
            means = figures[0]
            if len(self.baseline) < BASELINE:
                self.baseline.append(means)
            first = np.array(self.baseline)
            spread = first.std(axis=0, ddof=1) if len(first) > 1 else np.full(len(means), np.nan)
            z = (means - first.mean(axis=0)) / spread
        window = {
            "window": f"{self.name}@{self.end_ms}",
            "machine": self.name,
            "window_end_ms": self.end_ms,
            "readings": len(self.rows),
            "figures": figures,
            "z": np.where(np.isfinite(z), z, 0.0),
        }
        self.times, self.rows = [], []
        return window


def window_figures(times_ms: Any, values: Any) -> Any:
    """``FIGURES`` of each sensor, float64 (6, sensors); NaN values are left out."""
    count = (~np.isnan(values)).sum(axis=0)
    seconds = (times_ms - times_ms[0])[:, None] / 1_000 + np.where(np.isnan(values), np.nan, 0.0)
    mean = np.nanmean(values, axis=0)
    off, at = values - mean, seconds - np.nanmean(seconds, axis=0)
    slope = np.nansum(off * at, axis=0) / np.nansum(at * at, axis=0)
    std = np.sqrt(np.nansum(off * off, axis=0) / (count - 1))
    return np.array([mean, std, np.nanmin(values, 0), np.nanmax(values, 0), slope, count])


class Scorer:
    """The model's file, run by ONNX Runtime with one thread."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def records(self, windows: Sequence[dict[str, Any]]) -> list[tuple[bytes, bytes]]:
        """Key and JSON of each window with its score, in one call of the model."""
        rows = np.array([window["z"] for window in windows], np.float32)
        scores = self._session.run(["score"], {self._input: rows})[0].ravel().tolist()
        return [
            (window["machine"].encode(), _record(window, score))
            for window, score in zip(windows, scores, strict=True)
        ]


def _record(window: dict[str, Any], score: float) -> bytes:
    named = {
        f"{sensor}_{figure}": column
        for figure, row in zip(FIGURES, window["figures"].tolist(), strict=True)
        for sensor, column in zip(SENSORS, row, strict=True)
    }
    head = {name: window[name] for name in ("window", "machine", "window_end_ms", "readings")}
    return orjson.dumps({**head, "score": score, "features": window["z"].tolist(), **named})


class Machines:
    """All machines of a program."""

    def __init__(self) -> None:
        self._machines: dict[str, Machine] = {}

    def add(self, values: Iterable[bytes]) -> list[dict[str, Any]]:
        """Readings as JSON; returns the windows that they close."""
        closed = []
        for value in values:
            reading = orjson.loads(value)
            name = reading["machine"]
            machine = self._machines.get(name)
            if machine is None:
                machine = self._machines[name] = Machine(name)
            window = machine.add(reading)
            if window is not None:
                closed.append(window)
        return closed
