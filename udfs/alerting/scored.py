"""What scoring hands on to the episodes: the scored columns of a batch, without the records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson

from udfs.alerting.hysteresis import NO_MOVER, Score
from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray, IntArray
from udfs.batches.records import Verdict
from udfs.definition.episode import EpisodeSpec


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """``n`` scored events of one bucket of entities.

    Attributes:
        entities: Whose each event is.
        times: Event times in epoch ms; int64 (n,).
        positions: Partition and offset; int64 (n, 2).
        scores: float64 (n,); NaN is a fallback, which is no score.
        thresholds: float64 (n,).
        movers: Index of the declared feature that moved most, or ``NO_MOVER``; int64 (n,).
        moved: Its value; float64 (n,).
        reasons: The model's reasons in JSON by row; those of scores above, if it gave any.
    """

    entities: list[str]
    times: IntArray
    positions: IntArray
    scores: FloatArray
    thresholds: FloatArray
    movers: IntArray
    moved: FloatArray
    reasons: dict[int, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entities)

    def rows(self) -> Iterator[tuple[str, int, Score | None]]:
        """Entity, event time and score of each event; no score for a fallback."""
        columns = (
            self.entities,
            self.times.tolist(),
            self.positions.tolist(),
            self.scores.tolist(),
            self.thresholds.tolist(),
            self.movers.tolist(),
            self.moved.tolist(),
        )
        for n, (entity, time_ms, place, value, *rest) in enumerate(zip(*columns, strict=True)):
            if value != value:
                yield entity, time_ms, None
            else:
                why = self.reasons.get(n, b"")
                score = Score._make((time_ms, *place, value, *rest, why))
                yield entity, time_ms, score

    def select(self, rows: Sequence[int]) -> ScoredBatch:
        """These rows alone."""
        at = np.asarray(rows, dtype=np.intp)
        return ScoredBatch(
            [self.entities[i] for i in rows],
            self.times[at],
            self.positions[at],
            self.scores[at],
            self.thresholds[at],
            self.movers[at],
            self.moved[at],
            {n: self.reasons[i] for n, i in enumerate(rows) if i in self.reasons},
        )


class ScoredColumns:
    """Takes from a scored batch what episodes need.

    Args:
        spec: The episodes' declaration.
        key: The record key, whose values a batch has as ``keys``.
        columns: The names of the batch's features.
        threshold: Of values that have no own one.
    """

    def __init__(
        self, spec: EpisodeSpec, key: str, columns: Sequence[str], threshold: float
    ) -> None:
        self._spec = spec
        self._key = key
        self._features = [list(columns).index(name) for name in spec.features]
        self._threshold = threshold

    def thresholds(self, batch: FeatureBatch) -> FloatArray:
        """The threshold of each event; float64 (n,)."""
        chosen = self._spec.thresholds
        if chosen is None:
            return np.full(len(batch), self._threshold)
        of: Mapping[str, float] = chosen.values
        texts, other = self._texts(batch, chosen.field), self._threshold
        return np.fromiter((of.get(text, other) for text in texts), np.float64, len(batch))

    def rows_above(self, batch: FeatureBatch, verdict: Verdict) -> list[int]:
        """Rows whose score is above their threshold; a fallback never is."""
        if verdict.fallback_reason is not None:
            return []
        rows: list[int] = np.flatnonzero(verdict.scores > self.thresholds(batch)).tolist()
        return rows

    def of(
        self, batch: FeatureBatch, verdict: Verdict, reasons: Mapping[int, list[dict[str, object]]]
    ) -> ScoredBatch:
        """A scored batch's columns.

        Args:
            batch: It, with all its features.
            verdict: Its scores.
            reasons: The model's reasons by row.
        """
        answered = verdict.fallback_reason is None
        movers, moved = self._moved(batch.features)
        return ScoredBatch(
            self._texts(batch, self._spec.entity),
            batch.times,
            batch.positions[:, :2],
            verdict.scores if answered else np.full(len(batch), np.nan),
            self.thresholds(batch),
            movers,
            moved,
            {row: orjson.dumps(why) for row, why in reasons.items() if why},
        )

    def _texts(self, batch: FeatureBatch, field: str) -> list[str]:
        return batch.keys if field == self._key else batch.entities[field]

    def _moved(self, features: FloatArray) -> tuple[IntArray, FloatArray]:
        """For each event the declared feature that is farthest from 0, and its value."""
        n = len(features)
        if not self._features:
            return np.full(n, NO_MOVER), np.zeros(n)
        values = features[:, self._features]
        away = np.where(np.isfinite(values), np.abs(values), -1.0)
        movers = np.argmax(away, axis=1)
        each = np.arange(n)
        known: npt.NDArray[np.bool_] = away[each, movers] >= 0
        return np.where(known, movers, NO_MOVER), np.where(known, values[each, movers], 0.0)
