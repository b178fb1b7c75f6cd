"""Our job without a model: each event's features are written as they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pyflink.common import Row
from pyflink.datastream import RuntimeContext
from pyflink.datastream.timerservice import TimerService

from udfs.batch import FeatureBatch
from udfs.records import Verdict
from udfs.scoring import EmbeddedScoring


class FeaturesAlone(EmbeddedScoring):
    """Loads no model; the score of every record is the fallback score.

    The record is a whole prediction otherwise, as that of the stock job without scoring.
    """

    def open(self, runtime_context: RuntimeContext) -> None:
        """Nothing to load."""

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """One micro-batch."""
        scores = np.full(len(batch), self._output.fallback_score)
        verdict = Verdict(scores, self._model_name, None) if len(batch) else None
        yield self._output.rows(batch, verdict, None)
