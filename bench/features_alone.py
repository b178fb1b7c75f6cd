"""Our job without a model: each event's features are written as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pyflink.common import Row
from pyflink.datastream import RuntimeContext
from pyflink.datastream.timerservice import TimerService

from udfs.batch import FeatureBatch
from udfs.records import Verdict
from udfs.scoring import Output


class FeaturesAlone:
    """Stands where ``EmbeddedScoring`` does; the score of every record is the fallback score.

    The record is a whole prediction otherwise, as that of the stock job without scoring.
    """

    def __init__(self, version_dir: Path, model_name: str, output: Output) -> None:
        self._model_name = model_name
        self._output = output

    def open(self, runtime_context: RuntimeContext) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to close."""

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """One micro-batch."""
        scores = np.full(len(batch), self._output.fallback_score)
        verdict = Verdict(scores, self._model_name, None) if len(batch) else None
        yield self._output.rows(batch, verdict, None)

    def on_timer(self, bucket: int, timestamp_ms: int, timers: TimerService) -> Iterator[Row]:
        """None is set."""
        return iter(())
