"""The baseline's last operator: a score for each record, and its prediction as JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import xgboost
from pyflink.datastream import AsyncFunction, MapFunction, RuntimeContext

from bench.stock.features import Event
from jobs.sections.model import ModelSettings
from model_server.protos import ModelSpec, PredictionServiceStub, PredictRequest
from model_server.repository import load_features, model_file
from model_server.tensors import from_proto, to_proto
from udfs.definition.schema import Schema

PREDICT_TIMEOUT_MS = 200


@dataclass(frozen=True)
class Model:
    """The model folder and what a prediction needs of the settings.

    Attributes:
        schema: The job's schema.
        folder: ``<name>/<version>/`` with the model and its features.json; none without scoring.
        settings: Server, names and fallback score.
    """

    schema: Schema
    folder: Path | None
    settings: ModelSettings

    def impute(self) -> list[float]:
        """The value of each missing feature, in the order of the model's columns."""
        features = load_features(self.folder).features if self.folder else ()
        return [math.nan if f.impute is None else f.impute for f in features]

    def prediction(
        self, event: Event, score: float | None, version: int | None, reason: str | None
    ) -> str:
        """A prediction as JSON text, with the fields of our job's."""
        spec = self.schema.event
        event_id = event[spec.id]
        return json.dumps(
            {
                "schema_version": 1,
                "prediction_id": event_id,
                "event_id": event_id,
                "key": event[self.schema.key],
                "score": score,
                "model": {"name": self.settings.name, "version": version},
                "fallback_reason": reason,
                "event_time_ms": event[spec.time.field],
                "ingest_time_ms": event["ingest_time_ms"],
                "scored_time_ms": time.time_ns() // 1_000_000,
                "features": event["features"],
                "order": {},
                "source": {"topic": None, "partition": None, "offset": None},
            }
        )


def model_input(features: dict[str, Any], impute: Sequence[float]) -> np.ndarray:
    """One row for the model, float32 (1, columns); the features stand in the model's order."""
    pairs = zip(features.values(), impute, strict=True)
    return np.array([[other if v is None else v for v, other in pairs]], dtype=np.float32)


class WriteFeatures(MapFunction):
    """The features of one event as JSON text, without a score."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def map(self, value: Event) -> str:
        return self._model.prediction(value, None, None, None)


class EmbeddedScore(MapFunction):
    """Scores one event with a booster inside the operator."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def open(self, runtime_context: RuntimeContext) -> None:
        assert self._model.folder is not None
        self._booster = xgboost.Booster(model_file=model_file(self._model.folder))
        self._booster.set_param({"nthread": 1})
        self._impute = self._model.impute()
        self._version = int(self._model.folder.name)

    def map(self, value: Event) -> str:
        row = model_input(value["features"], self._impute)
        score = float(self._booster.inplace_predict(row, validate_features=False)[0])
        return self._model.prediction(value, score, self._version, None)


class ServedScore(AsyncFunction):
    """Scores one event by one call of the model server."""

    def __init__(self, model: Model, target: str) -> None:
        self._model = model
        self._target = target

    def open(self, runtime_context: RuntimeContext) -> None:
        self._impute = self._model.impute()
        self._stub = None

    async def async_invoke(self, value: Event) -> list[str]:
        if self._stub is None:  # only here does the event loop run that the channel needs
            self._stub = PredictionServiceStub(grpc.aio.insecure_channel(self._target))
        try:
            response = await self._stub.Predict(
                self._request(value), timeout=PREDICT_TIMEOUT_MS / 1_000
            )
        except grpc.RpcError as exc:
            return [self._fallback(value, exc.code().name.lower())]
        scores = from_proto(response.outputs[self._model.settings.output])
        version = response.model_spec.version.value
        return [self._model.prediction(value, float(scores.ravel()[0]), version, None)]

    def timeout(self, value: Event) -> list[str]:
        return [self._fallback(value, "timeout")]

    def _request(self, value: Event) -> Any:
        settings = self._model.settings
        spec = ModelSpec(name=settings.name, signature_name=settings.signature)
        row = to_proto(model_input(value["features"], self._impute))
        return PredictRequest(model_spec=spec, inputs={settings.input: row})

    def _fallback(self, value: Event, reason: str) -> str:
        return self._model.prediction(value, self._model.settings.fallback_score, None, reason)
