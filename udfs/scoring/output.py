"""How scored batches become records: predictions, alerts, and what was refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyflink.common import Row

from udfs.alerting.feed import EpisodeFeed
from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray
from udfs.batches.privacy import Privacy
from udfs.batches.records import RecordWriter, Verdict
from udfs.preparation.encoders import Matrix
from udfs.preparation.preparation import Preparation
from udfs.scoring.pairs import Pair, pairs


@dataclass(frozen=True, slots=True)
class Output:
    """How scored batches are written.

    Attributes:
        writer: Makes the records.
        preparation: From features to the model's columns, as in training.
        fallback_score: The score when the model cannot answer.
        explain: Whether alerts name the features that weigh most.
        privacy: What is hidden of the events; none if nothing is.
        episodes: What makes one alert of many scores; none: each score above is an alert.
    """

    writer: RecordWriter
    preparation: Preparation
    fallback_score: float
    explain: bool
    privacy: Privacy | None = None
    episodes: EpisodeFeed | None = None

    def model_input(self, batch: FeatureBatch) -> Matrix:
        """The batch as the model gets it: float32 (n, the model's columns)."""
        return self.preparation.transform(batch.features)

    def warm_up(self) -> None:
        """Compile the writing of records, or load it from Numba's cache."""
        columns = len(self.preparation.names)
        batch = FeatureBatch(
            keys=[""],
            ids=[""],
            raw=[b"{}"],
            positions=np.zeros((1, 3), np.int64),
            times=np.zeros(1, np.int64),
            entities={},
            values={},
            features=np.zeros((1, columns)),
            order=np.zeros((1, len(self.writer.stages)), np.int64),
            late=np.zeros(1, np.bool_),
            lookup_fallbacks=[""],
        )
        self.rows(batch, self.fallback(batch, "", "warm_up"), None)

    def fallback(
        self, batch: FeatureBatch, model_name: str, reason: str, arm: str | None = None
    ) -> Verdict:
        """The verdict when the model did not answer."""
        return Verdict(np.full(len(batch), self.fallback_score), model_name, None, reason, arm)

    def rows_to_explain(self, batch: FeatureBatch, verdict: Verdict) -> list[int]:
        """The alerts, if they are to name the features that weigh most."""
        return self._rows_above(batch, verdict) if self.explain else []

    def _rows_above(self, batch: FeatureBatch, verdict: Verdict) -> list[int]:
        if self.episodes is not None:
            return self.episodes.columns.rows_above(batch, verdict)
        return self.writer.alert_rows(verdict)

    def emit(
        self, batch: FeatureBatch, verdict: Verdict | None, contributions: FloatArray | None
    ) -> Iterator[Any]:
        """A row of each sink's records, and beside it what the episodes get; see ``rows``."""
        yield self.rows(batch, verdict, contributions)
        if self.episodes is not None and verdict is not None:
            reasons = {} if contributions is None else self._reasons(batch, verdict, contributions)
            yield from self.episodes.parts(batch, verdict, reasons)

    def rows(
        self, batch: FeatureBatch, verdict: Verdict | None, contributions: FloatArray | None
    ) -> Row:
        """The records of each sink: predictions, alerts, dead letters, duplicates, shadows.

        Args:
            batch: The scored batch.
            verdict: Its scores; none if it has no rows.
            contributions: float64 (alerts, features), or none.
        """
        predictions: list[Pair] = []
        batch = self._as_shown(batch)
        alerts = pairs(batch.silences)
        if verdict is not None:
            made = self.writer.predictions(batch, verdict, time.time_ns() // 1_000_000)
            predictions = pairs(zip(batch.keys, made, strict=True))
            if self.episodes is None:
                alerts += pairs(self._alerts(batch, verdict, made, contributions))
        return Row(predictions, alerts, pairs(batch.dead_letters), pairs(batch.duplicates), [])

    def shadow_rows(self, batch: FeatureBatch, verdict: Verdict) -> Row:
        """What a shadow said, as records of its own sink; key and value."""
        batch = self._as_shown(batch)
        made = self.writer.predictions(batch, verdict, time.time_ns() // 1_000_000)
        return Row([], [], [], [], pairs(zip(batch.keys, made, strict=True)))

    def _as_shown(self, batch: FeatureBatch) -> FeatureBatch:
        if self.privacy is None:
            return batch
        keys, ids = self.privacy.keys(batch.keys), self.privacy.ids(batch.ids)
        return replace(batch, keys=keys, ids=ids)

    def _event(self, raw: bytes) -> bytes:
        """A record as an alert shows it."""
        return (self.privacy.record(raw) or b"{}") if self.privacy else raw

    def _alerts(
        self,
        batch: FeatureBatch,
        verdict: Verdict,
        records: list[bytes],
        contributions: FloatArray | None,
    ) -> Iterator[tuple[str, bytes]]:
        known = {} if contributions is None else self._reasons(batch, verdict, contributions)
        for row in self.writer.alert_rows(verdict):
            reasons = known.get(row, [])
            event = self._event(batch.raw[row])
            yield batch.keys[row], self.writer.alert(records[row], event, reasons)

    def _reasons(
        self, batch: FeatureBatch, verdict: Verdict, contributions: FloatArray
    ) -> dict[int, list[dict[str, Any]]]:
        """The reasons of the alerts, by row."""
        rows = self._rows_above(batch, verdict)
        whys = zip(rows, contributions, strict=True)
        return {row: self.writer.reasons(batch.features[row], why) for row, why in whys}
