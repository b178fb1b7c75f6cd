"""A job whose model takes encoded categories, and a version with other columns while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
import xgboost
import xxhash
import yaml

from jobs.settings import Settings, load
from jobs.training import train
from tests.support.checks import check_accounts, check_schemas
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.kafka import Out, Record, Traffic
from tests.support.running import restarts, running
from tests.support.servers import ModelServerProcess

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

KINDS = ["CP", "CNP", "rare [1]", "never seen"]
PATIENCE_S = 60
_numbers = count()


def settings_with(folder: Path, overrides: dict[str, Any], **category: Any) -> Settings:
    """The fraud job with its ``type`` as a category, and an indicator; no label features."""
    document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    features = document["features"]
    kind = {"name": "kind", "type": "category", "fields": ["type"], "encoding": "one_hot"}
    features["expressions"][2] = kind | category
    features["windows"] = features["windows"][:2]
    features["preparation"] = {"columns": {"billing_shipping_km": {"indicator": True}}}
    document["training"] = {"trees": 10, "depth": 3}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return load(path, overrides)


def history() -> pd.DataFrame:
    """``CNP`` of more than 50 is fraudulent."""
    random, rows = np.random.default_rng(5), 600
    kinds = random.choice(KINDS[:3], rows, p=[0.6, 0.38, 0.02])
    amounts = random.uniform(1, 100, rows).round(2)
    return pd.DataFrame(
        {
            "transaction_id": [f"h{n}" for n in range(rows)],
            "event_time_ms": 1_735_689_600_000 + np.arange(rows) * 60_000,
            "card_id": random.choice(["c1", "c2"], rows),
            "terminal_id": "m1",
            "amount": amounts,
            "type": kinds,
            "is_fraud": ((kinds == "CNP") & (amounts > 50)).astype(int),
        }
    )


def matrix_of(version_dir: Path, predictions: list[Out]) -> np.ndarray:
    """The model's input by ``features.json`` alone, value by value."""
    inputs = json.loads((version_dir / "features.json").read_text(encoding="utf-8"))["inputs"]
    rows = []
    for out in predictions:
        row: list[float] = []
        for column in inputs:
            value = out.document["features"][column["name"]]
            if (encoding := column.get("encoding")) is not None:
                row += [float(value == code) for code in encoding["codes"]]
                row += [float(value not in encoding["codes"])] * encoding["other"]
            else:
                row.append(column["impute"] if value is None else value)
            row += [float(value is None)] * column["indicator"]
        rows.append(row)
    return np.array(rows, np.float32)


def check_scores(models: Path, predictions: list[Out]) -> set[int]:
    """Each score is that of the version that it names; the versions seen."""
    versions = {out.document["model"]["version"] for out in predictions}
    for version in versions:
        own = [out for out in predictions if out.document["model"]["version"] == version]
        booster = xgboost.Booster(model_file=models / str(version) / "model.ubj")
        matrix = matrix_of(models / str(version), own)
        expected = booster.inplace_predict(matrix, validate_features=False)
        scores = [out.document["score"] for out in own]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    return versions


def send(traffic: Traffic) -> list[Out]:
    """An event of each kind, scored."""
    records = []
    for kind in KINDS:
        value = {
            "transaction_id": f"t{next(_numbers)}",
            "event_time_ms": time.time_ns() // 1_000_000,
            "card_id": "c1",
            "terminal_id": "m1",
            "amount": 80.0,
            "type": kind,
        }
        records.append(Record(0, b"c1", orjson.dumps(value)))
    places = traffic.send(*records)
    traffic.poll_until(lambda: traffic.accounted.issuperset(places), 60)
    predictions = traffic.predictions()
    return [predictions[place] for place in places]


@pytest.fixture
def started(bootstrap: str, tmp_path: Path) -> Iterator[tuple[Traffic, Path, dict[str, Any]]]:
    models = tmp_path / "models"
    overrides = own_overrides(bootstrap, models, tmp_path) | {"model.deadline": "10s"}
    train(settings_with(tmp_path, overrides), history())
    with ModelServerProcess(models, tmp_path / "server.log") as server:
        overrides |= {"model.server": f"127.0.0.1:{server.port}", "alerts.threshold": 0.6}
        settings = settings_with(tmp_path, overrides)
        with Traffic(settings) as traffic, running(settings) as job:
            yield traffic, models / "fraud", overrides
            traffic.wait_accounted()
            assert restarts(job) == 0
            check_accounts(traffic)
            check_schemas(traffic.outputs)


def test_each_version_is_given_the_columns_it_was_trained_on(
    started: tuple[Traffic, Path, dict[str, Any]], tmp_path: Path
) -> None:
    traffic, models, overrides = started
    outs = send(traffic)
    assert check_scores(models, outs) == {1}
    codes = [out.document["features"]["kind"] for out in outs]
    assert codes == [(xxhash.xxh3_64_intdigest(kind.encode()) & 2**52 - 1) or 1 for kind in KINDS]
    traffic.poll_until(lambda: bool(traffic.outputs["alerts"]), 60)  # may come after its prediction
    (alert,) = traffic.outputs["alerts"]
    assert alert.document["event"]["type"] == "CNP"
    reasons = {r["feature"]: r["value"] for r in alert.document["reasons"]}
    assert reasons["kind"] == codes[1]
    train(settings_with(tmp_path, overrides, max_categories=1), history())
    deadline_s = time.monotonic() + PATIENCE_S
    while outs[-1].document["model"]["version"] == 1 and time.monotonic() < deadline_s:
        outs += send(traffic)
    assert check_scores(models, outs) == {1, 2}
    assert {out.document["fallback_reason"] for out in outs} == {None}
