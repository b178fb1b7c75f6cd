"""Flink operators that score: a Predict call per micro-batch, or the model in the operator."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyflink.common import Row
from pyflink.datastream import AsyncFunction, FlatMapFunction, RuntimeContext

from model_server.backends.xgboost import XGBoostModel
from model_server.client import ClientOptions, PredictClient
from model_server.errors import InvalidRows, PredictError
from udfs.batch import FeatureBatch
from udfs.events import FloatArray
from udfs.records import Predictions, RecordWriter, Verdict
from udfs.runtime import calm_garbage_collector

Pair = list[bytes]
"""Key and value of a Kafka record; PyFlink wants a list for an array."""


@dataclass(frozen=True, slots=True)
class Output:
    """How scored batches are written.

    Attributes:
        writer: Makes the records.
        impute: The value of each missing feature, as in training; float64 (columns,).
        fallback_score: The score when the model cannot answer.
        explain: Whether alerts name the features that weigh most.
    """

    writer: RecordWriter
    impute: FloatArray
    fallback_score: float
    explain: bool

    def model_input(self, batch: FeatureBatch) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The batch as the model gets it: float32 (n, columns), nothing missing."""
        features = batch.features
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, as in C
            return np.where(np.isnan(features), self.impute, features).astype(np.float32)

    def warm_up(self) -> None:
        """Compile the writing of records, or load it from Numba's cache."""
        columns = len(self.impute)
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
        )
        self.rows(batch, self.fallback(batch, "", "warm_up"), None)

    def fallback(self, batch: FeatureBatch, model_name: str, reason: str) -> Verdict:
        """The verdict when the model did not answer."""
        return Verdict(np.full(len(batch), self.fallback_score), model_name, None, reason)

    def rows(
        self, batch: FeatureBatch, verdict: Verdict | None, contributions: FloatArray | None
    ) -> Row:
        """The records of each sink, key and value: predictions, alerts, dead letters, duplicates.

        Args:
            batch: The scored batch.
            verdict: Its scores; none if it has no rows.
            contributions: float64 (alerts, columns), or none.
        """
        predictions: list[Pair] = []
        alerts: list[Pair] = []
        if verdict is not None:
            made = self.writer.predictions(batch, verdict, time.time_ns() // 1_000_000)
            predictions = _pairs(zip(batch.keys, made.records(), strict=True))
            alerts = _pairs(self._alerts(batch, verdict, made, contributions))
        return Row(predictions, alerts, _pairs(batch.dead_letters), _pairs(batch.duplicates))

    def _alerts(
        self,
        batch: FeatureBatch,
        verdict: Verdict,
        records: Predictions,
        contributions: FloatArray | None,
    ) -> Iterator[tuple[str, bytes]]:
        for n, row in enumerate(self.writer.alert_rows(verdict)):
            why = None if contributions is None else contributions[n]
            reasons = self.writer.reasons(batch.features[row], why)
            yield batch.keys[row], self.writer.alert(records.record(row), batch.raw[row], reasons)


def _pairs(records: Iterable[tuple[str, bytes]]) -> list[Pair]:
    return [[key.encode(), value] for key, value in records]


class ServedScorer(AsyncFunction):
    """Scores by a model server over gRPC; process mode, several calls in flight.

    A call that fails, or is not answered within the deadline, gives the fallback score with its
    reason: the job goes on.
    """

    def __init__(self, options: ClientOptions, output: Output) -> None:
        self._options = options
        self._output = output

    def open(self, runtime_context: RuntimeContext) -> None:
        """Make the client; its channel opens with the first call."""
        self._client = PredictClient(self._options)
        self._output.warm_up()
        calm_garbage_collector()
        metrics = runtime_context.get_metrics_group()
        metrics.gauge("breaker_state", lambda: int(self._client.breaker_state))
        # A gauge: what a counter is told in the event loop's thread, Beam never reports.
        self._fallbacks = 0
        metrics.gauge("fallbacks", lambda: self._fallbacks)

    def close(self) -> None:
        """Close the connection.

        PyFlink has ended the channel's event loop by now, so this takes one of its own. A call that
        was in flight, when a job fails or is cancelled, cannot be cancelled without its loop: its
        connection stays until its process, the worker, ends, which is what follows.
        """
        with contextlib.suppress(RuntimeError):  # the call's loop is closed
            asyncio.run(self._client.close())

    async def async_invoke(self, value: Any) -> list[Row]:
        """One micro-batch."""
        batch: FeatureBatch = value[1]
        if not len(batch):
            return [self._output.rows(batch, None, None)]
        matrix = self._output.model_input(batch)
        begun_s = time.monotonic()
        try:
            scores = await self._client.predict(matrix)
        except PredictError as exc:
            self._fallbacks += len(batch)
            verdict = self._output.fallback(batch, self._options.model_name, exc.reason)
            return [self._output.rows(batch, verdict, None)]
        verdict = Verdict(scores.values, scores.model_name, scores.model_version)
        left_ms = self._options.deadline_ms - 1_000.0 * (time.monotonic() - begun_s)
        return [self._output.rows(batch, verdict, await self._explain(matrix, verdict, left_ms))]

    async def _explain(
        self, matrix: np.ndarray[Any, np.dtype[np.float32]], verdict: Verdict, left_ms: float
    ) -> FloatArray | None:
        """Contributions of the alerts, if they come within what the prediction left of its time."""
        rows = self._output.writer.alert_rows(verdict)
        if not rows or not self._output.explain:
            return None
        try:
            return await self._client.explain(matrix[rows], deadline_ms=left_ms)
        except PredictError:
            return None  # an alert without reasons is worth more than a late one


class EmbeddedScorer(FlatMapFunction):
    """Scores inside the operator with the same model file; thread mode, no server."""

    def __init__(self, version_dir: Path, model_name: str, output: Output) -> None:
        self._version_dir = version_dir
        self._model_name = model_name
        self._output = output

    def open(self, runtime_context: RuntimeContext) -> None:
        """Load the model once and warm it up."""
        self._model = XGBoostModel.load(self._version_dir)
        self._model.warm_up()
        self._output.warm_up()
        calm_garbage_collector()
        self._version = int(self._version_dir.name)

    def flat_map(self, value: Any) -> Iterator[Row]:
        """One micro-batch."""
        batch: FeatureBatch = value[1]
        if not len(batch):
            yield self._output.rows(batch, None, None)
            return
        matrix = self._output.model_input(batch)
        scores = np.asarray(self._model.predict(matrix), dtype=np.float64)
        verdict = Verdict(scores, self._model_name, self._version)
        yield self._output.rows(batch, verdict, self._explain(matrix, verdict))

    def _explain(
        self, matrix: np.ndarray[Any, np.dtype[np.float32]], verdict: Verdict
    ) -> FloatArray | None:
        rows = self._output.writer.alert_rows(verdict)
        if not rows or not self._output.explain:
            return None
        try:
            return self._model.explain(matrix[rows])
        except InvalidRows:
            return None  # an infinite value scores, but has no contribution
