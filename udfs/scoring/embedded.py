"""Scoring with the model in the operator itself, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pyflink.common import Row
from pyflink.datastream import RuntimeContext
from pyflink.datastream.timerservice import TimerService

from model_server.errors import InvalidRows
from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray
from udfs.batches.records import Verdict
from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.lookup_metrics import LookupMetrics
from udfs.enrichment.lookups import Lookups
from udfs.preparation.encoders import Matrix
from udfs.scoring.base import Outputs
from udfs.scoring.followed import FollowedModel, Loaded
from udfs.scoring.loop import open_lookups, run, wait_closed

__all__ = ["EmbeddedScoring"]


class EmbeddedScoring:
    """Scores with the model file itself; no server.

    Args:
        version_dir: The model's version to begin with.
        model_name: Its name.
        output: Writes what was scored.
        lookups: Stores that are asked for features first; a batch waits for them.
        follow_ms: How often another version is looked for, see ``followed``; 0 never looks.
    """

    def __init__(
        self,
        version_dir: Path,
        model_name: str,
        output: Outputs,
        lookups: tuple[LookupSpec, ...] = (),
        follow_ms: int = 0,
    ) -> None:
        self._version_dir = version_dir
        self._model_name = model_name
        self._output = output
        self._declared_lookups = lookups
        self._lookups: Lookups | None = None
        self._follow_ms = follow_ms
        self._opened = ExitStack()

    def open(self, runtime_context: RuntimeContext) -> None:
        """Load the model once and warm it up."""
        self._opened = ExitStack()
        self._model = FollowedModel(self._version_dir, self._output.preparation, self._follow_ms)
        self._opened.callback(self._model.close)
        self._output.warm_up()
        if self._declared_lookups:
            self._lookups = open_lookups(self._declared_lookups)
            self._opened.callback(lambda lookups: wait_closed(lookups.close()), self._lookups)
            group = runtime_context.get_metrics_group()
            self._lookup_metrics = LookupMetrics(self._declared_lookups, group)

    def close(self) -> None:
        """Let go of the model, and close the stores' connections, if there are any."""
        self._opened.close()

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """Score at once."""
        if not len(batch):
            yield from self._output.emit(batch, None, None)
            return
        if self._lookups is not None:
            batch = run(self._lookups.enrich(batch)).result()
            self._lookup_metrics.tell(self._lookups.counts)
        loaded = self._model.current()
        matrix = loaded.preparation.transform(batch.features)
        scores = np.asarray(loaded.model.predict(matrix), dtype=np.float64)
        verdict = Verdict(scores, self._model_name, loaded.version)
        why = self._explain(batch, loaded, matrix, verdict)
        yield from self._output.emit(batch, verdict, why)

    def on_timer(self, bucket: int, timestamp_ms: int, timers: TimerService) -> Iterator[Row]:
        """None is set."""
        return iter(())

    def queue(self, bucket: int) -> float:
        """Nothing waits beside the operator itself."""
        return 0.0

    def _explain(
        self, batch: FeatureBatch, loaded: Loaded, matrix: Matrix, verdict: Verdict
    ) -> FloatArray | None:
        rows = self._output.rows_to_explain(batch, verdict)
        if not rows or not loaded.model.explains:
            return None
        try:
            contributions = loaded.model.explain(matrix[rows])
        except InvalidRows:
            return None  # an infinite value scores, but has no contribution
        return loaded.preparation.by_feature(contributions)
