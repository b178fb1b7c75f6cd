"""Our job without a model: each event's features are written as they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pyflink.common import Row
from pyflink.datastream import RuntimeContext
from pyflink.datastream.timerservice import TimerService

from jobs.settings import Settings
from udfs.batches.batch import FeatureBatch
from udfs.batches.records import RecordWriter, Verdict
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.output import Output


def scoring(settings: Settings, _model: None) -> FeaturesAlone:
    """What takes the place of a job's scoring."""
    schema = settings.schema_
    writer = RecordWriter(
        settings.topics.events, schema.columns, schema.stages, settings.alerts.threshold
    )
    impute = np.full(len(schema.columns), np.nan)
    output = Output(writer, impute, settings.model.fallback_score, explain=False)
    return FeaturesAlone(settings.model.path, settings.model.name, output)


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
