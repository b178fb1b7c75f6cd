"""What must hold of a job's outputs, whatever it was given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import xgboost
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from jobs.environment import ROOT
from tests.support import oracle
from tests.support.kafka import OUTPUTS, Out, Place, Record, Traffic

_SCHEMA_OF = {
    "predictions": "prediction",
    "alerts": "alert",
    "dead_letters": "dead_letter",
    "duplicates": "duplicate",
    "shed": "shed",
    "shadow": "prediction",
    "episodes": "episode",
}


@cache
def _validators() -> dict[str, Draft202012Validator]:
    schemas = {
        name: json.loads((ROOT / "conf" / "schemas" / f"{file}.json").read_text())
        for name, file in _SCHEMA_OF.items()
    }
    registry: Registry[Any] = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()
    )
    return {name: Draft202012Validator(s, registry=registry) for name, s in schemas.items()}


def check_schemas(outputs: Mapping[str, Sequence[Out]], every: int = 1) -> None:
    """Outputs fit conf/schemas; of many, every n-th is looked at."""
    for name in OUTPUTS:
        for out in outputs[name][::every]:
            is_episode = name == "alerts" and "episode_id" in out.document
            _validators()["episodes" if is_episode else name].validate(out.document)


def check_accounts(traffic: Traffic) -> None:
    """Each event written ends once: as prediction, dead letter, duplicate or shed event."""
    topic = traffic.settings.topics.events
    places: list[Place] = []
    for name in ("predictions", "dead_letters", "duplicates", "shed"):
        outs = traffic.outputs[name]
        places += [out.place for out in outs if out.document["source"]["topic"] == topic]
    assert sorted(places) == sorted(traffic.sent)


def accepted(sent: Mapping[Place, Record], predictions: Sequence[Out]) -> list[bytes]:
    """The records of some predictions."""
    values = [sent[out.place].value for out in predictions]
    return [value for value in values if value is not None]


def check_features(
    sent: Mapping[Place, Record],
    predictions: Sequence[Out],
    order: pd.DataFrame,
    labels: Sequence[Mapping[str, Any]],
) -> None:
    """Every feature of every prediction equals the recomputation."""
    expected = oracle.recompute(accepted(sent, predictions), order, labels)
    found = [out.document["features"] for out in predictions]
    assert oracle.differences(expected, found) == []


def own_order(predictions: Sequence[Out]) -> pd.DataFrame:
    """The order of arrival that the predictions report, by key field."""
    return pd.DataFrame([out.document["order"] for out in predictions])


class Model:
    """The model file, read and asked without the project's code."""

    def __init__(self, version_dir: Path) -> None:
        features = json.loads((version_dir / "features.json").read_text())["features"]
        self.names = [feature["name"] for feature in features]
        self._impute = np.array([feature["impute"] for feature in features], float)
        self._booster = xgboost.Booster(model_file=version_dir / "model.ubj")
        self._booster.set_param({"nthread": 1})

    def rows(self, predictions: Sequence[Out]) -> np.ndarray:
        """The model's input for some predictions."""
        values = pd.DataFrame([out.document["features"] for out in predictions], dtype=float)
        table = values[self.names].to_numpy(float)
        return np.where(np.isnan(table), self._impute, table).astype(np.float32)

    def scores(self, predictions: Sequence[Out]) -> np.ndarray:
        return np.asarray(self._booster.inplace_predict(self.rows(predictions)), float)

    def contributions(self, predictions: Sequence[Out]) -> np.ndarray:
        matrix = xgboost.DMatrix(self.rows(predictions), nthread=1)
        found = self._booster.predict(matrix, pred_contribs=True, validate_features=False)
        return np.asarray(found[:, :-1], float)


def check_scores(model: Model, predictions: Sequence[Out], version: int) -> None:
    """Every score is the model's own, and says which model made it."""
    for out in predictions:
        assert out.document["model"] == {"name": "fraud", "version": version}
        assert out.document["fallback_reason"] is None
    scores = [out.document["score"] for out in predictions]
    np.testing.assert_allclose(scores, model.scores(predictions), rtol=0, atol=1e-6)


def check_alerts(traffic: Traffic, model: Model, threshold: float) -> None:
    """Alerts are the predictions above the threshold, with their event and three true reasons."""
    predictions, alerts = traffic.predictions(), traffic.outputs["alerts"]
    above = {p for p, out in predictions.items() if out.document["score"] > threshold}
    assert sorted(out.place for out in alerts) == sorted(above)
    made = [predictions[out.place] for out in alerts]
    for out, prediction, weights in zip(alerts, made, model.contributions(made), strict=True):
        assert out.key == prediction.key
        assert out.document["threshold"] == threshold
        assert out.document["prediction"] == prediction.document
        assert out.document["event"] == orjson.loads(traffic.sent[out.place].value or b"")
        _check_reasons(out.document["reasons"], prediction, _named(model, weights))


def _named(model: Model, values: np.ndarray) -> dict[str, float]:
    return dict(zip(model.names, values.tolist(), strict=True))


def _check_reasons(
    reasons: Sequence[Mapping[str, Any]], prediction: Out, weights: Mapping[str, float]
) -> None:
    largest = sorted((abs(w) for w in weights.values()), reverse=True)[:3]
    assert len({reason["feature"] for reason in reasons}) == 3
    for reason, size in zip(reasons, largest, strict=True):
        name = reason["feature"]
        np.testing.assert_allclose(reason["contribution"], weights[name], rtol=0, atol=1e-5)
        np.testing.assert_allclose(abs(reason["contribution"]), size, rtol=0, atol=1e-5)
        assert reason["value"] == prediction.document["features"][name]
