"""Training on a small synthetic history: what is stored is what the server and the job read."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from jobs import cli, model_folders, settings, training
from jobs.environment import ROOT
from jobs.exit_codes import ExitCode
from jobs.history_files import HistoryFileError
from jobs.settings import Settings
from jobs.training import TrainingError, train
from model_server.backends.base import TabularModel
from model_server.backends.onnx import OnnxTable
from model_server.backends.xgboost import XGBoostModel
from model_server.repository import find_version, list_versions, load_features
from udfs.offline.offline import features_of, history_of, labels_of
from udfs.preparation.preparation import Preparation

CONFIG = ROOT / "conf" / "fraud.yaml"
DAY_MS = 86_400_000
FIRST_MS = 1_735_689_600_000
ROWS = 600


@pytest.fixture
def job(tmp_path: Path) -> Settings:
    return load(tmp_path)


def load(tmp_path: Path, **training_settings: Any) -> Settings:
    changes = {"trees": 20, "depth": 3} | training_settings
    overrides = {f"training.{name}": value for name, value in changes.items()}
    return settings.load(CONFIG, {"model.path": str(tmp_path / "models")} | overrides)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    random = np.random.default_rng(1)
    amounts = random.uniform(1, 100, ROWS).round(2)
    return pd.DataFrame(
        {
            "transaction_id": [f"t{n}" for n in range(ROWS)],
            "event_time_ms": FIRST_MS + np.sort(random.integers(0, 40 * DAY_MS, ROWS)),
            "card_id": random.choice(["0001", "0002", "0003"], ROWS),
            "terminal_id": random.choice(["0010", "0020"], ROWS),
            "amount": amounts,
            "type": random.choice(["CP", "CNP"], ROWS),
            "is_fraud": (amounts + random.normal(0, 5, ROWS) > 85).astype(np.int64),
        }
    )


def scores_of(
    job: Settings, frame: pd.DataFrame, version_dir: Path, kind: type[TabularModel] = XGBoostModel
) -> np.ndarray:
    """The stored model's scores of the last part, by the way of the live job."""
    events = history_of(job.schema_, frame).events
    labels = labels_of(job.schema_, events, frame["is_fraud"].to_numpy(np.float64))
    features = features_of(job.schema_, events, labels).features
    matrix = Preparation.load(version_dir).transform(features)
    return kind.load(version_dir).predict(matrix[int(0.7 * ROWS) :])


def test_the_stored_model_scores_as_reported(job: Settings, frame: pd.DataFrame) -> None:
    trained = train(job, frame)
    labels = frame["is_fraud"].to_numpy()[int(0.7 * ROWS) :]
    scores = scores_of(job, frame, trained.version.path)
    metrics = trained.metrics
    assert metrics["average_precision"] == training.average_precision(labels, scores) > 0.8
    assert metrics["roc_auc"] == training.roc_auc(labels, scores) > 0.9
    assert metrics["at_threshold"]["alerts"] == int((scores > 0.85).sum()) > 0
    assert metrics["base_rate"] == labels.mean()
    assert metrics["train"]["rows"] + metrics["test"]["rows"] == ROWS
    assert metrics["train"]["to"] <= metrics["test"]["from"]
    assert next(iter(metrics["gain"])) == "amount"


def test_the_folder_is_what_the_server_and_the_job_read(job: Settings, frame: pd.DataFrame) -> None:
    trained = train(job, frame)
    found = find_version(job.model.path, "fraud")
    assert found == trained.version
    features = load_features(found.path)
    assert features.names == job.schema_.columns
    assert features.config_hash == job.features_hash
    by_name = {f.name: f.impute for f in features.features}
    assert by_name["billing_shipping_km"] == 0.0  # no row has coordinates
    assert by_name["amount"] == frame["amount"][: int(0.7 * ROWS)].median()
    assert json.loads((found.path / "metrics.json").read_text()) == trained.metrics


def test_each_training_makes_a_new_version_and_leaves_no_draft(
    job: Settings, frame: pd.DataFrame
) -> None:
    folder = job.model.path / "fraud"
    (folder / "7").mkdir(parents=True)
    (folder / "latest").mkdir()
    assert [train(job, frame).version.version for _ in range(2)] == [8, 9]
    assert list_versions(job.model.path, "fraud") == [7, 8, 9]
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_the_same_history_gives_the_same_model(job: Settings, frame: pd.DataFrame) -> None:
    one, two = (scores_of(job, frame, train(job, frame).version.path) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_shuffled_history_gives_the_same_model(job: Settings, frame: pd.DataFrame) -> None:
    shuffled = frame.sample(frac=1, random_state=3)
    one, two = (scores_of(job, frame, train(job, f).version.path) for f in (frame, shuffled))
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_a_forest_is_trained_on_normal_rows_and_stored_as_onnx(
    tmp_path: Path, frame: pd.DataFrame
) -> None:
    job = load(tmp_path, kind="isolation_forest")
    trained = train(job, frame)
    known = trained.metrics
    assert known["normal_rows"] == known["train"]["rows"] - known["train"]["positives"]
    assert "scores of normal rows" in training.summary(trained)
    labels = frame["is_fraud"].to_numpy()[int(0.7 * ROWS) :]
    scores = scores_of(job, frame, trained.version.path, OnnxTable)
    assert known["roc_auc"] == pytest.approx(training.roc_auc(labels, scores), abs=1e-6)
    normal = train(job, frame.assign(is_fraud=0)).metrics
    assert normal["roc_auc"] is None
    with pytest.raises(TrainingError, match="normal row"):
        train(job, frame.assign(is_fraud=1))


def test_trainings_at_one_time_take_different_versions(tmp_path: Path) -> None:
    start = threading.Barrier(4)
    taken: list[int] = []

    def publish() -> None:
        def write(draft: Path) -> None:
            (draft / "model.ubj").write_bytes(b"x")
            start.wait()

        taken.append(model_folders.publish(tmp_path, "fraud", write).version)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [1, 2, 3, 4]


def test_a_failed_write_leaves_nothing(
    job: Settings, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(training, "write_json", full)
    with pytest.raises(TrainingError, match="no space left"):
        train(job, frame)
    assert list((job.model.path / "fraud").iterdir()) == []


def test_rows_are_accounted_for(job: Settings, frame: pd.DataFrame) -> None:
    extra = frame.iloc[[0, 0, 1, 2]].assign(is_fraud=[0.0, 0.0, 0.0, np.nan])
    extra.iloc[1, extra.columns.get_loc("amount")] += 1
    extra.iloc[2, extra.columns.get_loc("amount")] = -1
    extra.iloc[3, extra.columns.get_loc("transaction_id")] = "unlabelled"
    trained = train(job, pd.concat([frame, extra], ignore_index=True))
    assert trained.metrics["rows"] == {
        "history": ROWS + 4,
        "refused": 1,
        "duplicates": 1,
        "conflicts": 1,
        "unlabelled": 1,
        "blank": 0,
    }
    assert trained.metrics["train"]["rows"] + trained.metrics["test"]["rows"] == ROWS


def test_a_last_part_without_positives_has_no_average_precision(
    job: Settings, frame: pd.DataFrame
) -> None:
    labels = frame["is_fraud"].where(frame.index < ROWS // 2, 0)
    trained = train(job, frame.assign(is_fraud=labels))
    assert trained.metrics["average_precision"] is None
    assert training.summary(trained)["average precision"] == "none (base rate 0.0000)"


def test_the_label_may_have_a_column_of_its_own(tmp_path: Path, frame: pd.DataFrame) -> None:
    job = load(tmp_path, label="chargeback")
    trained = train(job, frame.rename(columns={"is_fraud": "chargeback"}))
    assert trained.metrics["train"]["positives"] > 0


def test_without_labels_section_the_label_must_be_named(job: Settings, frame: pd.DataFrame) -> None:
    windows = tuple(w for w in job.features.windows if w.stream == "events")
    features = job.features.model_copy(update={"windows": windows})
    bare = job.model_copy(update={"labels": None, "features": features})
    with pytest.raises(HistoryFileError, match=r"no label to train on.*training\.label"):
        train(bare, frame)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="is_fraud"), "no column 'is_fraud'.*there are: transaction_id"),
        (lambda f: f.assign(is_fraud=2), "'is_fraud' holds 2"),
        (lambda f: f.assign(is_fraud="yes"), "label column 'is_fraud'"),
        (lambda f: f.assign(is_fraud=0), "the first 420 of 600 labelled rows do not hold both"),
        (lambda f: f.assign(is_fraud=np.nan), "the first 0 of 0"),
        (lambda f: f.drop(columns="amount"), "required field.*amount"),
        (lambda f: f.assign(amount="much"), "field amount must be float, is str"),
        (lambda f: f.head(0), "no rows"),
    ],
)
def test_a_wrong_history_is_refused(
    job: Settings, frame: pd.DataFrame, change: Any, message: str
) -> None:
    with pytest.raises(HistoryFileError, match=message):
        train(job, change(frame))
    assert not job.model.path.exists()


def test_the_command_shows_metrics_folder_and_next_step(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    text = CONFIG.read_text().replace("build/models", str(tmp_path / "models"))
    config = tmp_path / "job.yaml"
    config.write_text(f"{text}\ntraining: {{trees: 2}}\n")
    history = tmp_path / "history.parquet"
    frame.to_parquet(history)
    done = CliRunner().invoke(
        cli.app, ["train", "--config", str(config), "--data", str(history)], env={"COLUMNS": "200"}
    )
    assert done.exit_code == ExitCode.OK, done.output
    for text in ("average precision", "version 1", "streamscore serve --config"):
        assert text in done.output
    assert list_versions(tmp_path / "models", "fraud") == [1]
