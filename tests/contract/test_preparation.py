"""Categories from training to a served score: the model's folder carries all that is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
import yaml

from jobs import settings
from jobs.environment import ROOT
from jobs.pipeline import _model, _output
from jobs.settings import Settings
from jobs.settings_file import SettingsError
from jobs.training import train
from model_server.client import ClientOptions, PredictClient
from tests.support.servers import ModelServerProcess
from udfs.batches.events import FloatArray
from udfs.batches.records import RecordWriter
from udfs.offline.offline import features_of, history_of
from udfs.preparation.preparation import Preparation
from udfs.preparation.preparations import Preparations
from udfs.scoring.arms import Arms
from udfs.scoring.rollout import Address, Limits, Rollout

ROWS = 400
TRAINED = 280
SHOPS = ["s[1]", "s<2>", "s 3", "s4", "s5"]
PATIENCE_S = 60


def job(folder: Path, **category: Any) -> Settings:
    """A job of an amount with an indicator and a category, its models in this folder."""
    document = yaml.safe_load((ROOT / "conf" / "fraud.yaml").read_text(encoding="utf-8"))
    shop = {"name": "shop", "type": "category", "fields": ["terminal_id"], "encoding": "one_hot"}
    document["features"] = {
        "expressions": [
            {"name": "amount", "type": "value", "fields": ["billing_lat"]},
            shop | category,
        ],
        "preparation": {"columns": {"amount": {"impute": "mean", "indicator": True}}},
    }
    document |= {"training": {"trees": 8, "depth": 3}, "alerts": {"threshold": 0.3}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return settings.load(path, {"model.path": str(folder / "models")})


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """The third shop is fraudulent; the fifth is rare, the last one comes after training."""
    random = np.random.default_rng(3)
    shops = random.choice(SHOPS, ROWS, p=[0.3, 0.3, 0.2, 0.17, 0.03])
    shops[TRAINED + 40 :: 10] = "unheard of"
    amounts = random.uniform(0, 90, ROWS)
    amounts[::7] = np.nan
    return pd.DataFrame(
        {
            "transaction_id": [f"t{n}" for n in range(ROWS)],
            "event_time_ms": 1_735_689_600_000 + np.arange(ROWS) * 60_000,
            "card_id": "c1",
            "terminal_id": shops,
            "amount": 1.0,
            "billing_lat": amounts,
            "type": "CP",
            "is_fraud": ((shops == "s 3") & (random.random(ROWS) < 0.9)).astype(int),
        }
    )


def features(chosen: Settings, frame: pd.DataFrame) -> FloatArray:
    return features_of(chosen.schema_, history_of(chosen.schema_, frame).events).features


def scores_of(version_dir: Path, values: FloatArray) -> np.ndarray:
    """The stored model's scores, by XGBoost itself."""
    booster = xgboost.Booster(model_file=version_dir / "model.ubj")
    matrix = Preparation.load(version_dir).transform(values)
    return np.asarray(booster.inplace_predict(matrix, validate_features=False), float)


@pytest.mark.parametrize("encoding", ["one_hot", "ordinal", "hashing", "target"])
def test_every_encoding_is_learned_from(tmp_path: Path, frame: pd.DataFrame, encoding: str) -> None:
    chosen = job(tmp_path, encoding=encoding)
    trained = train(chosen, frame)
    assert trained.metrics["roc_auc"] > 0.9
    booster = xgboost.Booster(model_file=trained.version.path / "model.ubj")
    stored = json.loads((trained.version.path / "features.json").read_text(encoding="utf-8"))
    names = [column["name"] for column in stored["features"]]
    assert booster.feature_names == names
    assert "amount_missing" in names
    assert (stored["format"], stored["config_hash"]) == (2, chosen.features_hash)


def test_an_alert_s_reasons_are_features_not_columns(tmp_path: Path, frame: pd.DataFrame) -> None:
    chosen = job(tmp_path)
    train(chosen, frame)
    version = _model(chosen)
    output = _output(chosen, version)
    assert isinstance(output.writer, RecordWriter)
    values = features(chosen, frame)[:TRAINED]
    matrix = output.preparation.transform(values)
    booster = xgboost.Booster(model_file=version.path / "model.ubj")
    shap = booster.predict(xgboost.DMatrix(matrix), pred_contribs=True, validate_features=False)[
        :, :-1
    ]
    row = int(np.flatnonzero(scores_of(version.path, values) > 0.5)[0])
    reasons = output.writer.reasons(values[row], output.preparation.by_feature(shap)[row])
    assert {reason["feature"] for reason in reasons} == {"amount", "shop"}
    by_name = dict(zip(output.preparation.columns, shap[row].tolist(), strict=True))
    found = {reason["feature"]: reason["contribution"] for reason in reasons}
    own = sum(by_name[name] for name in ("amount", "amount_missing"))
    assert found["amount"] == pytest.approx(own, abs=1e-6)
    assert found["shop"] == pytest.approx(sum(by_name.values()) - own, abs=1e-6)


@pytest.mark.parametrize("change", [{"encoding": "ordinal"}, {"type": "one_hot"}])
def test_a_model_of_another_encoding_is_refused(
    tmp_path: Path, frame: pd.DataFrame, change: dict[str, Any]
) -> None:
    train(job(tmp_path), frame)
    if change == {"type": "one_hot"}:
        change = {"name": "sh", "type": "one_hot", "categories": ["op"], "encoding": None}
        words = "sh_op, shop"
    else:
        words = r"encodes the categories \{'shop': 'one_hot'\}"
    with pytest.raises(SettingsError, match=words):
        _model(job(tmp_path, **change))


# -- versions -----------------------------------------------------------------------------------


@pytest.fixture
def switching(tmp_path: Path, frame: pd.DataFrame) -> Iterator[tuple[Path, FloatArray, int]]:
    """A server that serves version 1 of a model, while version 2 has other columns."""
    chosen = job(tmp_path)
    first = train(chosen, frame).version.path
    values = features(chosen, frame)
    with ModelServerProcess(tmp_path / "models", tmp_path / "server.log") as server:
        yield first, values, server.port


async def test_a_new_version_is_asked_with_its_own_columns(
    switching: tuple[Path, FloatArray, int], tmp_path: Path, frame: pd.DataFrame
) -> None:
    first, values, port = switching
    options = ClientOptions(f"127.0.0.1:{port}", "fraud", deadline_ms=10_000.0)
    client = PredictClient(options)
    preparations = Preparations(Preparation.load(first), first)
    expected = {1: scores_of(first, values)}
    try:
        answer = await preparations.predict(client.predict, options, values)
        np.testing.assert_allclose(answer.scores.values, expected[1], atol=1e-6)
        second = train(job(tmp_path, max_categories=2), frame).version.path
        expected[2] = scores_of(second, values)
        async with asyncio.timeout(PATIENCE_S):
            while answer.scores.model_version == 1:
                answer = await preparations.predict(client.predict, options, values)
                version = answer.scores.model_version
                np.testing.assert_allclose(answer.scores.values, expected[version], atol=1e-6)
    finally:
        await client.close()
    assert answer.preparation == Preparation.load(second) != Preparation.load(first)
    assert answer.matrix.shape[1] != len(Preparation.load(first).columns)


async def test_a_pinned_version_is_asked_with_its_own_columns(
    switching: tuple[Path, FloatArray, int], tmp_path: Path, frame: pd.DataFrame
) -> None:
    first, values, port = switching
    second = train(job(tmp_path, max_categories=2), frame).version.path
    preparations = Preparations(Preparation.load(second), second)
    options = ClientOptions(f"127.0.0.1:{port}", "fraud", model_version=1, deadline_ms=10_000.0)
    client = PredictClient(options)
    try:
        answer = await preparations.predict(client.predict, options, values)
    finally:
        await client.close()
    np.testing.assert_allclose(answer.scores.values, scores_of(first, values), atol=1e-6)
    assert answer.preparation == Preparation.load(first)


async def test_a_rollout_of_a_version_whose_columns_are_unknown_is_ignored(
    tmp_path: Path, frame: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(job(tmp_path), frame).version.path
    preparations, path = Preparations(Preparation.load(first), first), tmp_path / "rollout.json"
    Rollout("r", "running", Address("", 9, 100.0), None, Limits()).write(path)
    arms = Arms(ClientOptions("127.0.0.1:1", "fraud"), path, known=preparations.of)
    await arms.close()
    assert arms._active.rollout is None
    assert "rollout ignored" in caplog.text and "9" in caplog.text
