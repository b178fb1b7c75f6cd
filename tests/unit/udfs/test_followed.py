"""An operator's model: another version takes its place while it scores."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from tests.support.models import (
    FOLDERS,
    NAMES,
    ROWS,
    isolation_forest_folder,
    onnx_classifier_folder,
    write_features,
    xgboost_folder,
)
from tests.support.waiting import wait_until
from udfs.preparation.preparation import Preparation
from udfs.scoring import followed
from udfs.scoring.followed import CONTROL_FILE, FollowedModel, Loaded

FOLLOW_MS = 20


def publish(write: Callable[[Path], object], models: Path, version: int) -> None:
    """A version that appears at once, as a training writes it."""
    write(models / ".draft")
    (models / ".draft").rename(models / str(version))


def control(models: Path, text: str) -> None:
    (models / "draft.json").write_text(text, encoding="utf-8")
    (models / "draft.json").rename(models / CONTROL_FILE)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "iot"
    publish(xgboost_folder, folder, 1)
    return folder


def following(version_dir: Path, follow_ms: int) -> FollowedModel:
    return FollowedModel(version_dir, Preparation.load(version_dir), follow_ms)


def version_is(model: FollowedModel, version: int) -> None:
    wait_until(lambda: model.current().version == version, 30, f"version {version}")


@pytest.mark.parametrize("kind", ["xgboost", "onnx", "isolation_forest"])
def test_every_kind_that_runs_here_scores_as_its_own_library(kind: str, tmp_path: Path) -> None:
    score = FOLDERS[kind](tmp_path / "m" / "7")
    model = following(tmp_path / "m" / "7", 0)
    rows = np.nan_to_num(ROWS)
    loaded = model.current()
    assert loaded.version == 7
    np.testing.assert_allclose(loaded.model.predict(rows), score(rows), atol=1e-5)
    model.close()


def test_a_newer_version_takes_over_and_another_kind_may(models: Path) -> None:
    model = following(models / "1", FOLLOW_MS)
    publish(onnx_classifier_folder, models, 2)
    version_is(model, 2)
    publish(isolation_forest_folder, models, 3)
    version_is(model, 3)
    assert type(model.current().model).__name__ == "OnnxTable"
    model.close()


def test_a_control_record_names_the_version(models: Path) -> None:
    publish(onnx_classifier_folder, models, 2)
    model = following(models / "2", FOLLOW_MS)
    control(models, '{"version": 1}')
    version_is(model, 1)
    publish(onnx_classifier_folder, models, 3)
    control(models, '{"version": 2}')
    version_is(model, 2)
    (models / CONTROL_FILE).unlink()
    version_is(model, 3)
    model.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "is not like"), ("[]", "is not like"), ('{"version": "2"}', "is no whole number")],
)
def test_a_wrong_control_record_changes_nothing(
    models: Path, text: str, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish(onnx_classifier_folder, models, 2)
    control(models, text)
    with caplog.at_level(logging.WARNING):
        model = following(models / "1", FOLLOW_MS)
        wait_until(lambda: complaint in caplog.text, 30, "a complaint")
        assert model.current().version == 1
        control(models, '{"version": 2}')
        version_is(model, 2)
    assert caplog.text.count(complaint) == 1
    model.close()


def other_columns(folder: Path) -> None:
    xgboost_folder(folder)
    write_features(folder, tuple(reversed(NAMES)))


def broken(folder: Path) -> None:
    xgboost_folder(folder)
    (folder / "model.ubj").write_bytes(b"no model")


def empty(folder: Path) -> None:
    folder.mkdir()


@pytest.mark.parametrize("write", [broken, other_columns, empty])
def test_a_version_that_cannot_be_used_is_refused_once_until_it_changes(
    models: Path, write: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = following(models / "1", FOLLOW_MS)
        publish(write, models, 2)
        wait_until(lambda: "version 1 goes on" in caplog.text, 30, "a refusal")
        assert model.current().version == 1
        publish(xgboost_folder, models, 3)
        version_is(model, 3)
    assert caplog.text.count("goes on") == 1
    caplog.clear()
    control(models, json.dumps({"version": 2}))
    shutil.rmtree(models / "2")
    publish(xgboost_folder, models, 2)
    version_is(model, 2)
    model.close()


def test_a_version_that_was_being_loaded_at_the_end_is_let_go_of(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "_JOIN_S", 0.01)
    load, begun, go_on, closed = followed._load, Event(), Event(), Event()

    def slow(version_dir: Path, preparation: Preparation) -> Loaded:
        loaded = load(version_dir, preparation)
        if loaded.version == 2:
            monkeypatch.setattr(loaded.model, "close", closed.set)
            begun.set()
            go_on.wait(30)
        return loaded

    monkeypatch.setattr(followed, "_load", slow)
    model = following(models / "1", FOLLOW_MS)
    publish(xgboost_folder, models, 2)
    assert begun.wait(30)
    model.close()
    go_on.set()
    assert closed.wait(30)
    assert model.current().version == 1


def test_nothing_is_followed_without_an_interval(models: Path) -> None:
    model = following(models / "1", 0)
    assert model._thread is None
    model.close()
