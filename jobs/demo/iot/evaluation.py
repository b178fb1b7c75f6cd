"""How well the model finds SKAB's anomalies, as its authors measure it.

One model for all runs: it is trained on the run without an anomaly alone, cut into pieces that are
each a machine with a warm-up of its own. No row of the 34 labelled runs is learnt from; a run's
first 400 rows are its machine's warm-up and are not measured.

A row's score is that of its window, for the AUC and the rates of the authors' table. What a row
would have been called in the running job is told apart (``known``): by the last window that was
closed then, with the settings' hysteresis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from jobs.demo.iot.fleet import TYPES
from jobs.demo.iot.runs import SENSORS, WARM_UP_ROWS, BoolArray, Run, Runs
from jobs.metrics import roc_auc
from jobs.settings import Settings
from model_server.backends.onnx import OnnxTable
from udfs.alerting.hysteresis import Hysteresis, Rules, Score
from udfs.batches.events import FloatArray, IntArray
from udfs.definition.rollup import WINDOW_END
from udfs.offline.offline import features_of, history_of
from udfs.preparation.preparation import Preparation

PIECE_S, STEP_S = 1_200, 400
"""Length of the pieces that the normal run is cut into, and how far apart they begin."""


PUBLISHED = {
    "Conv-AE": (0.78, 13.55, 28.02),
    "MSET": (0.78, 39.73, 14.13),
    "T-squared+Q (PCA-based)": (0.76, 26.62, 24.92),
    "LSTM-AE": (0.74, 29.96, 25.92),
    "T-squared": (0.66, 19.21, 42.6),
    "LSTM-VAE": (0.56, 9.13, 55.03),
    "Vanilla LSTM": (0.54, 12.54, 59.53),
    "Vanilla AE": (0.39, 2.59, 75.15),
    "MSCRED": (0.36, 49.94, 69.88),
    "Isolation forest": (0.29, 2.56, 82.89),
}
"""F1, FAR % and MAR % of SKAB's leaderboard of outlier detection: each run its own model."""

BEST = "Conv-AE"
"""What the figures are put beside: the one of the highest F1."""

_THRESHOLDS = np.linspace(0.40, 0.80, 81)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One run with what the model made of it.

    Attributes:
        run: The run.
        ends_s: When each window ends, epoch, int64 (w,), ascending.
        scores: Of each window, float64 (w,).
        window_of: The window of each row, int64 (n,); -1 for none.
    """

    run: Run
    ends_s: IntArray
    scores: FloatArray
    window_of: IntArray

    @property
    def row_scores(self) -> FloatArray:
        """The score of each row's own window; 0 without one."""
        found: FloatArray = np.where(self.window_of >= 0, self.scores[self.window_of], 0.0)
        return found


@dataclass(frozen=True, slots=True)
class Rates:
    """What a rule makes of the rows that are measured, of all runs together.

    Attributes:
        f1: Harmonic mean of precision and recall.
        far: False alarm rate: normal rows that are called anomalous, as a part of 1.
        mar: Missed alarm rate: anomalous rows that are not, as a part of 1.
    """

    f1: float
    far: float
    mar: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures, and by run.

    Attributes:
        aucs: Of each run.
        at_threshold: With rows called by their own window's score.
        known: By what the running job would have said at the row's time.
        split: With the threshold of the best F1 on every second run, measured on the others, and
            the other way round; the mean of both.
        delays_s: Of each run, see ``delay_s``.
        opened: How many episodes each run had.
    """

    aucs: list[float]
    at_threshold: Rates
    known: Rates
    split: Rates
    delays_s: list[float | None]
    opened: list[int]

    @property
    def mean_auc(self) -> float:
        """Mean over the runs."""
        return float(np.mean(self.aucs))


def frame_of(runs: Iterable[tuple[str, Run]]) -> pd.DataFrame:
    """Runs as a history of readings: a machine each, with a column ``anomaly``."""
    return pd.concat([_readings(name, run) for name, run in runs], ignore_index=True)


def _readings(name: str, run: Run) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "reading": [f"{name}-{second}" for second in run.times_s.tolist()],
        "at_ms": run.times_s * 1_000,
        "machine": name,
        "machine_type": TYPES[0],
        **dict(zip(SENSORS, run.values.T, strict=True)),
        "anomaly": run.anomaly.astype(np.float64),
    }
    return pd.DataFrame(columns)


def normal_pieces(runs: Runs) -> Iterator[tuple[str, Run]]:
    """The normal run as machines whose warm-ups begin at different times."""
    run = runs.normal
    second = run.times_s - run.times_s[0]
    for begin in range(0, int(second[-1]) - PIECE_S, STEP_S):
        part = (second >= begin) & (second < begin + PIECE_S)
        yield (
            f"normal-{begin}",
            Run(run.name, run.times_s[part], run.values[part], run.anomaly[part]),
        )


def training_frame(runs: Runs) -> pd.DataFrame:
    """What the model is trained on: the normal run's pieces, their warm-ups without a label.

    A window of a warm-up is part of what it is measured against: its z-scores are too small.
    """
    frame = frame_of(normal_pieces(runs))
    warming = frame.groupby("machine").cumcount() < WARM_UP_ROWS
    return frame.assign(anomaly=frame["anomaly"].mask(warming))


def score(settings: Settings, version_dir: Path, runs: Sequence[Run]) -> list[Scored]:
    """Score runs with the job's own windows and features.

    Args:
        settings: The job's.
        version_dir: The model's folder.
        runs: Each is one machine.
    """
    schema = settings.schema_
    history = history_of(schema, frame_of((run.name, run) for run in runs))
    computed = features_of(schema, history.events)
    matrix = Preparation.load(version_dir).transform(computed.features)
    scores = np.full(len(history.events), np.nan)
    scores[computed.rows] = OnnxTable.load(version_dir).predict(matrix)
    machines = np.array(history.events.texts[schema.key])
    ends_s = np.array(history.events.numbers[WINDOW_END], np.int64) // 1_000
    assert history.window_of is not None
    begins = np.cumsum([0, *map(len, runs)])
    return [
        _scored(run, machines, ends_s, scores, history.window_of[begin : begin + len(run)])
        for run, begin in zip(runs, begins.tolist(), strict=False)
    ]


def _scored(
    run: Run, machines: npt.NDArray[Any], ends_s: IntArray, scores: FloatArray, window_of: IntArray
) -> Scored:
    own = np.flatnonzero(machines == run.name)
    own = own[np.argsort(ends_s[own], kind="stable")]
    place = np.full(len(machines) + 1, -1, np.int64)
    place[own] = np.arange(len(own))
    return Scored(run, ends_s[own], scores[own], place[window_of])


def auc(scored: Scored) -> float:
    """Area under the ROC curve over the rows after the warm-up."""
    rows = slice(WARM_UP_ROWS, None)
    return roc_auc(scored.run.anomaly[rows].astype(np.float64), scored.row_scores[rows])


def alarms(scored: Scored, threshold: float, rules: Rules) -> tuple[BoolArray, list[int]]:
    """The windows at which an episode is open, and when each one opened, epoch s."""
    state = Hysteresis([])
    is_open, opened = [], []
    for end_s, value in zip(scored.ends_s.tolist(), scored.scores.tolist(), strict=True):
        before = state.episode
        state.step(rules, Score(end_s * 1_000, 0, end_s, value, threshold))
        if state.episode is not None and before is None:
            opened.append(end_s)
        is_open.append(state.episode is not None)
    return np.array(is_open, np.bool_), opened


def rates(scored: Sequence[Scored], called: Sequence[BoolArray]) -> Rates:
    """F1, false and missed alarm rate over the rows after each run's warm-up.

    Args:
        scored: The runs.
        called: Which of each run's rows are called anomalous, bool (n,).
    """
    rows = slice(WARM_UP_ROWS, None)
    truth = np.concatenate([s.run.anomaly[rows] for s in scored])
    says = np.concatenate([c[rows] for c in called])
    hits, false = int((truth & says).sum()), int((~truth & says).sum())
    missed, calm = int((truth & ~says).sum()), int((~truth & ~says).sum())
    return Rates(
        f1=2 * hits / max(2 * hits + false + missed, 1),
        far=false / max(false + calm, 1),
        mar=missed / max(hits + missed, 1),
    )


def rows_above(scored: Scored, threshold: float) -> BoolArray:
    """Rows whose own window scores above a threshold: as a benchmark calls them, afterwards."""
    above: BoolArray = scored.row_scores > threshold
    return above


def rows_known(scored: Scored, is_open: BoolArray, delay_s: float) -> BoolArray:
    """Rows at whose time an alert was out: as the running job calls them.

    Args:
        scored: The run.
        is_open: Of each window, whether an episode is open after it.
        delay_s: From a window's end to its score.
    """
    last = np.searchsorted(scored.ends_s + delay_s, scored.run.times_s, "right") - 1
    found: BoolArray = (last >= 0) & is_open[last]
    return found


def delay_s(scored: Scored, opened_s: Sequence[int]) -> float | None:
    """Seconds from the anomaly's start to the end of the window that opened an episode.

    None if none opened while it lasted.
    """
    at = scored.run.times_s[scored.run.anomaly]
    hits = [end for end in opened_s if at[0] < end <= at[-1] + 1]
    return float(hits[0] - at[0]) if hits else None


def measure(settings: Settings, scored: Sequence[Scored]) -> Measured:
    """All figures of scored runs, with the settings' threshold and hysteresis."""
    threshold, rules = settings.alerts.threshold, rules_of(settings)
    lateness_s = settings.event.time.allowed_lateness / 1_000
    found = [alarms(one, threshold, rules) for one in scored]
    known = [
        rows_known(one, is_open, lateness_s)
        for one, (is_open, _) in zip(scored, found, strict=True)
    ]
    return Measured(
        aucs=[auc(one) for one in scored],
        at_threshold=at(scored, threshold),
        known=rates(scored, known),
        split=_split(scored),
        delays_s=[delay_s(one, opened) for one, (_, opened) in zip(scored, found, strict=True)],
        opened=[len(opened) for _, opened in found],
    )


def rules_of(settings: Settings) -> Rules:
    """The settings' hysteresis; without one each window is its own."""
    spec = settings.alerts.episodes
    if spec is None:
        return Rules(1, 1, 1)
    return Rules(spec.open_at, spec.of_last, spec.close_below, spec.close_after)


def at(scored: Sequence[Scored], threshold: float) -> Rates:
    """The rates with a row called by its own window's score."""
    return rates(scored, [rows_above(one, threshold) for one in scored])


def _split(scored: Sequence[Scored]) -> Rates:
    halves = scored[::2], scored[1::2]
    found = []
    for chosen_on, measured_on in (halves, halves[::-1]):
        tried = [(at(chosen_on, threshold).f1, threshold) for threshold in _THRESHOLDS.tolist()]
        found.append(at(measured_on, max(tried)[1]))
    one, two = (np.array([r.f1, r.far, r.mar]) for r in found)
    return Rates(*((one + two) / 2).tolist())
