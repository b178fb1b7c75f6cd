"""The card transactions of ``bench/features.py``, their features' columns, and an exact oracle.

Every event has a millisecond of its own: that events of one time see each other in some systems
and not in others then makes no difference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from udfs.definition.schema import Schema

CARDS = 20_000
TERMINALS = 2_000
PER_CARD_AND_DAY = 10
DAY_MS = 24 * 60 * 60 * 1_000
_START_MS = 1_735_689_600_000  # 2025-01-01
_SPACING_MS = DAY_MS // (CARDS * PER_CARD_AND_DAY)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Column:
    """One feature.

    Attributes:
        name: Its name.
        key: The field its window is kept by.
        window_ms: The window's length.
        aggregate: As in the settings.
    """

    name: str
    key: str
    window_ms: int
    aggregate: str


def columns_of(schema: Schema) -> list[Column]:
    """The window features of a schema, in the order of its columns."""
    found = {}
    for spec in schema.features.windows:
        names = iter(spec.columns)
        for window in spec.windows:
            for aggregate in spec.aggregates:
                name = next(names)
                found[name] = Column(name, spec.stage, window.reach_ms, aggregate)
    return [found[name] for name in schema.columns]


def write_columns(path: Path, columns: Sequence[Column]) -> Path:
    """Write features for the peers, see ``bench/peer_windows.py``; returns the path."""
    path.write_text(json.dumps([asdict(column) for column in columns]), encoding="utf-8")
    return path


def transactions(count: int, seed: int = 1) -> pd.DataFrame:
    """Transactions in time order, about 10 a card and 100 a terminal each day.

    Cards and terminals are drawn evenly. The same count and seed give the same transactions.
    """
    rng = np.random.default_rng(seed)
    numbers = np.arange(count)
    jitter_ms = rng.integers(0, _SPACING_MS, count)
    return pd.DataFrame(
        {
            "transaction_id": [f"t{n:09d}" for n in range(count)],
            "event_time_ms": _START_MS + _SPACING_MS * numbers + jitter_ms,
            "card_id": _names("c", 5, CARDS)[rng.integers(0, CARDS, count)],
            "terminal_id": _names("m", 5, TERMINALS)[rng.integers(0, TERMINALS, count)],
            "amount": np.round(rng.lognormal(3.5, 1.0, count), 2),
        }
    )


def _names(prefix: str, digits: int, count: int) -> npt.NDArray[np.object_]:
    return np.array([f"{prefix}{n:0{digits}d}" for n in range(count)], dtype=object)


def records(frame: pd.DataFrame) -> Iterator[tuple[bytes, bytes]]:
    """Kafka records of about 150 bytes: the card as key, JSON as value."""
    for row in zip(*(frame[name].tolist() for name in frame), strict=True):
        event_id, time_ms, card, terminal, amount = row
        yield (
            card.encode(),
            (
                f'{{"transaction_id":"{event_id}","event_time_ms":{time_ms},"card_id":"{card}",'
                f'"terminal_id":"{terminal}","amount":{amount},"type":"CNP"}}'
            ).encode(),
        )


# -- what is right ------------------------------------------------------------------------------


class Oracle:
    """Exact features of single events, recomputed from the whole history.

    Args:
        frame: The history, in time order.
        columns: The features.
    """

    def __init__(self, frame: pd.DataFrame, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._times = frame["event_time_ms"].to_numpy()
        self._amounts = frame["amount"].to_numpy()
        self._names = {key: frame[key].to_numpy() for key in {c.key for c in columns}}
        self._rows = {key: frame.groupby(key).indices for key in self._names}

    def features(self, row: int) -> list[float]:
        """The features of the event in a row; NaN is missing."""
        return [self._feature(row, column) for column in self._columns]

    def _feature(self, row: int, column: Column) -> float:
        rows = self._rows[column.key][self._names[column.key][row]]
        rows = rows[: np.searchsorted(rows, row, side="right")]
        inside = self._times[rows] > self._times[row] - column.window_ms
        return aggregate(column.aggregate, self._amounts[rows[inside]], self._amounts[row])


def aggregate(name: str, values: Floats, own: float) -> float:
    """An aggregate of a window's values, in the order of time.

    Args:
        name: As in the settings.
        values: The window's values, float64 (n,), the event's own included.
        own: The event's own value.
    """
    total = math.fsum(values)
    mean = total / len(values)
    match name:
        case "count":
            return len(values)
        case "sum":
            return total
        case "mean":
            return mean
        case "ratio_to_mean":
            return own / mean if mean else math.nan
        case "min":
            return float(values.min())
        case "max":
            return float(values.max())
        case "std":
            return math.sqrt(math.fsum((values - mean) ** 2) / len(values))
    raise ValueError(f"the oracle knows no {name}")


RELATIVE = 1e-9
_ABSOLUTE_STD = 1e-5
"""Of a standard deviation: where all values are alike, sums of squares leave a rest of the sum."""


def tolerances(columns: Sequence[Column]) -> Floats:
    """How much each column may differ absolutely, besides ``RELATIVE``; (columns,)."""
    return np.array([_ABSOLUTE_STD if c.aggregate == "std" else 1e-12 for c in columns])


def differences(found: Floats, expected: Floats, columns: Sequence[Column]) -> list[str]:
    """What is wrong with features, a text for each column that has a wrong value.

    Args:
        found: float64 (events, columns).
        expected: The same.
        columns: The features.
    """
    allowed = np.maximum(RELATIVE * np.abs(expected), tolerances(columns))
    is_right = np.abs(found - expected) <= allowed
    is_right |= np.isnan(found) & np.isnan(expected)
    texts = []
    for n, column in enumerate(columns):
        wrong = np.flatnonzero(~is_right[:, n])
        if len(wrong):
            row = wrong[0]
            texts.append(
                f"{column.name}: {len(wrong):,} of {len(found):,} differ, the first is "
                f"{found[row, n]!r} instead of {expected[row, n]!r}"
            )
    return texts
