"""Runs of a water pump's test bed: SKAB's where its archive is, else synthetic ones.

SKAB (Katser and Kozitsin, Skoltech Anomaly Benchmark, 2020) has one run without an anomaly and 34
runs of about 20 minutes with one anomaly each, a reading of eight sensors a second. The archive
``skab.tar.gz`` is looked for in the folder that STREAMSCORE_SHARED names, else in ``shared`` beside
the project. Without it the demo works on ``synthetic_runs``, and its figures say so.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from jobs.environment import ROOT, NotReadyError
from udfs.batches.events import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

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
"""The fields of a reading, as SKAB names them."""

WARM_UP_ROWS = 400
"""The first rows of a labelled run: what its baseline is made of, as SKAB's authors do."""

ARCHIVE = "skab.tar.gz"
_NORMAL = "anomaly-free/anomaly-free"
SYNTHETIC_RUNS = 34


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One experiment.

    Attributes:
        name: SKAB's folder and number, e.g. ``valve1/3``.
        times_s: int64 (n,), epoch, ascending.
        values: float64 (n, 8), in the order of ``SENSORS``.
        anomaly: bool (n,), whether the machine was disturbed.
    """

    name: str
    times_s: IntArray
    values: FloatArray
    anomaly: BoolArray

    def __len__(self) -> int:
        return len(self.times_s)


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """All experiments.

    Attributes:
        source: ``SKAB`` or ``synthetic``.
        normal: The long one without an anomaly.
        labelled: Those with one anomaly each, by name.
    """

    source: str
    normal: Run
    labelled: tuple[Run, ...]


def archive() -> Path:
    """Where SKAB's archive would be."""
    folder = os.environ.get("STREAMSCORE_SHARED")
    return (Path(folder) if folder else ROOT.parent / "shared") / "data" / ARCHIVE


def load(seed: int = 1) -> Runs:
    """SKAB's runs if its archive is there, else synthetic ones.

    Args:
        seed: Of the synthetic ones.

    Raises:
        NotReadyError: the archive is there and cannot be read.
    """
    path = archive()
    return skab_runs(path) if path.is_file() else synthetic_runs(seed)


def skab_runs(path: Path) -> Runs:
    """Read SKAB's archive.

    Raises:
        NotReadyError: it is missing, damaged, or not SKAB's.
    """
    try:
        runs = {run.name: run for run in _unpacked(path)}
        normal = runs.pop(_NORMAL)
    except (OSError, tarfile.TarError, KeyError, ValueError) as exc:
        raise NotReadyError(
            f"SKAB's archive {path} cannot be read: {exc}",
            "put SKAB's repository, as a tar.gz of its data/ folder, there, or set "
            "STREAMSCORE_SHARED to the folder above its data/",
        ) from exc
    return Runs("SKAB", normal, tuple(runs[name] for name in sorted(runs, key=_order)))


def _order(name: str) -> tuple[str, int]:
    folder, number = name.split("/")
    return folder, int(number)


def _unpacked(path: Path) -> Iterator[Run]:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".csv") else None
            if file is not None:
                parts = Path(member.name).with_suffix("").parts
                yield _parsed("/".join(parts[-2:]), file.read())


def _parsed(name: str, content: bytes) -> Run:
    table = pd.read_csv(io.BytesIO(content), sep=";", parse_dates=["datetime"])
    times = table["datetime"].to_numpy("datetime64[s]").astype(np.int64)
    none = np.zeros(len(table), np.bool_)
    return Run(
        name=name,
        times_s=times,
        values=table[list(SENSORS)].to_numpy(np.float64),
        anomaly=table["anomaly"].to_numpy() > 0 if "anomaly" in table else none,
    )


# -- where there is no SKAB ---------------------------------------------------------------------

_LEVELS = np.array([0.03, 0.04, 1.2, 0.2, 72.0, 25.5, 228.0, 32.0])
_NOISE = np.array([0.0004, 0.0006, 0.25, 0.2, 0.4, 0.03, 9.0, 0.6])
_START_S = 1_583_020_800  # the spring in which SKAB was recorded
_NORMAL_S, _RUN_S, _ANOMALY_S = 9_400, 1_150, (570, 970)
_MEMORY = 0.9
"""Of one second's deviation, what is left of it in the next."""


def synthetic_runs(seed: int) -> Runs:
    """Runs of SKAB's shape: eight noisy sensors, and anomalies that shift some of them.

    Args:
        seed: The same gives the same runs.
    """
    chance = np.random.default_rng(seed)
    names = [f"synthetic/{n}" for n in range(SYNTHETIC_RUNS)]
    return Runs(
        "synthetic",
        _synthetic("synthetic/normal", _NORMAL_S, chance, is_disturbed=False),
        tuple(_synthetic(name, _RUN_S, chance, is_disturbed=True) for name in names),
    )


def _synthetic(name: str, seconds: int, chance: np.random.Generator, is_disturbed: bool) -> Run:
    sent = np.flatnonzero(chance.random(seconds) > 0.05)  # as often as in SKAB, none in a second
    shocks = chance.normal(0, 1, (seconds, len(SENSORS)))
    deviations = np.empty_like(shocks)
    state = shocks[0]
    for second, shock in enumerate(shocks):
        state = _MEMORY * state + np.sqrt(1 - _MEMORY**2) * shock
        deviations[second] = state
    clock: IntArray = np.arange(seconds)
    begun, ended = _ANOMALY_S
    anomaly: BoolArray = (clock >= begun) & (clock < ended) & is_disturbed
    if is_disturbed:
        moved = (chance.random(len(SENSORS)) < 0.4) * chance.normal(0, 3, len(SENSORS))
        rise = np.clip((clock - begun) / 60, 0, 1) * anomaly
        deviations += np.outer(rise, moved)
    values: FloatArray = np.add(_LEVELS, _NOISE * deviations)
    return Run(name, _START_S + clock[sent], values[sent], anomaly[sent])
