"""What every model kind must keep, served or embedded."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from model_server.backends.base import PREDICT_SIGNATURE, Model, TabularModel, checked_inputs
from model_server.backends.tabular import EXPLAIN_SIGNATURE, Tabular
from model_server.backends.xgboost import XGBoostModel
from model_server.errors import InvalidRows, ModelError, RepositoryError
from model_server.protos import Example

NAMES = ["a", "b", "c", "d", "e"]
ROWS = np.random.default_rng(3).normal(size=(200, 5)).astype(np.float32)
ROWS[::7, 2] = np.nan
LABELS = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(int)


def train(names: list[str] | None = NAMES, columns: int = 5, **params: Any) -> xgboost.Booster:
    matrix = xgboost.DMatrix(ROWS[:, :columns], LABELS, feature_names=names)
    settings = {"objective": "binary:logistic", "nthread": 1} | params
    return xgboost.train(settings, matrix, num_boost_round=5)


def write(folder: Path, booster: xgboost.Booster, names: list[str] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    booster.save_model(folder / "model.ubj")
    features = [{"name": name, "type": "float", "impute": None} for name in names]
    (folder / "features.json").write_text(json.dumps({"format": 1, "features": features}))
    return folder


def example(row: np.ndarray) -> bytes:
    """A tf.Example of a row; a missing value is left out."""
    message = Example()
    for name, value in zip(NAMES, row.tolist(), strict=True):
        if not np.isnan(value):
            message.features.feature[name].float_list.value.append(value)
    return bytes(message.SerializeToString())


def xgboost_model(folder: Path) -> Tabular:
    return XGBoostModel.load(write(folder, train()))


@pytest.fixture(params=[xgboost_model], ids=["xgboost"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Tabular:
    make: Callable[[Path], Tabular] = request.param
    return make(tmp_path)


class TestEveryBackend:
    def test_is_a_model(self, model: Tabular) -> None:
        assert isinstance(model, Model)
        assert isinstance(model, TabularModel)
        assert model.feature_names == tuple(NAMES)

    @pytest.mark.parametrize("row_count", [0, 1, 200])
    def test_shapes_and_types(self, model: Tabular, row_count: int) -> None:
        scores = model.predict(ROWS[:row_count])
        contributions = model.explain(ROWS[:row_count])
        assert (scores.shape, scores.dtype) == ((row_count,), np.float64)
        assert (contributions.shape, contributions.dtype) == ((row_count, 5), np.float64)

    def test_scores_are_probabilities(self, model: Tabular) -> None:
        scores = model.predict(ROWS)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert scores.std() > 0

    def test_a_row_scores_the_same_in_any_batch(self, model: Tabular) -> None:
        alone = [model.predict(ROWS[i : i + 1])[0] for i in range(20)]
        assert np.array_equal(model.predict(ROWS)[:20], alone)

    def test_rows_are_not_changed_and_may_be_read_only(self, model: Tabular) -> None:
        rows = np.frombuffer(ROWS.tobytes(), np.float32).reshape(ROWS.shape)
        model.predict(rows)
        model.explain(rows)
        assert rows.tobytes() == ROWS.tobytes()

    def test_memory_order_does_not_matter(self, model: Tabular) -> None:
        for rows in (np.asfortranarray(ROWS), np.repeat(ROWS, 2, axis=0)[::2]):
            assert np.array_equal(model.predict(rows), model.predict(ROWS))
            assert np.array_equal(model.explain(rows), model.explain(ROWS))

    def test_results_belong_to_the_caller(self, model: Tabular) -> None:
        first = model.predict(ROWS)
        kept = first.copy()
        model.predict(ROWS[::-1].copy())
        assert np.array_equal(first, kept)

    @pytest.mark.parametrize("method", ["predict", "explain"])
    @pytest.mark.parametrize(
        "rows",
        [ROWS[:, :4], np.zeros((2, 6), np.float32), ROWS[0], ROWS[None], ROWS.astype(np.float64)],
        ids=["narrow", "wide", "1-D", "3-D", "float64"],
    )
    def test_other_rows_are_refused(self, model: Tabular, method: str, rows: Any) -> None:
        with pytest.raises(InvalidRows):
            getattr(model, method)(rows)

    def test_several_threads_get_their_own_answers(self, model: Tabular) -> None:
        batches = [ROWS[i : i + 50] for i in range(0, 150)]
        expected = [model.predict(batch) for batch in batches]
        explained = [model.explain(batch) for batch in batches[:20]]
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(model.explain, batch) for batch in batches[:20]]
            actual = list(pool.map(model.predict, batches))
            assert all(map(np.array_equal, actual, expected))
            assert all(map(np.array_equal, [o.result() for o in others], explained))

    def test_signatures_describe_what_comes_out(self, model: Tabular) -> None:
        examples = np.array([example(row) for row in ROWS], dtype=object)
        for name, signature in model.signatures.items():
            inputs = {"inputs": examples if signature.method != "predict" else ROWS}
            wanted = [spec.name for spec in signature.outputs]
            outputs = model.run(name, checked_inputs(signature, inputs), wanted)
            assert list(outputs) == wanted
            for spec in signature.outputs:
                assert outputs[spec.name].dtype == spec.dtype
                assert outputs[spec.name].shape == (len(ROWS), *(spec.shape or ())[1:])

    def test_every_signature_gives_the_same_score(self, model: Tabular) -> None:
        examples = np.array([example(row) for row in ROWS], dtype=object)
        scores = model.run(PREDICT_SIGNATURE, {"inputs": ROWS}, ["scores"])["scores"]
        assert np.array_equal(scores, model.predict(ROWS))
        regressed = model.run("regress", {"inputs": examples}, ["outputs"])["outputs"]
        assert np.array_equal(scores, regressed)
        classified = model.run("classify", {"inputs": examples}, ["scores", "classes"])
        assert np.array_equal(scores, classified["scores"][:, 1])
        assert np.allclose(classified["scores"].sum(axis=1), 1)
        assert classified["classes"].tolist() == [[b"0", b"1"]] * len(ROWS)

    def test_only_small_predictions_are_quick(self, model: Tabular) -> None:
        assert model.is_quick(PREDICT_SIGNATURE, 1)
        assert not model.is_quick(PREDICT_SIGNATURE, 10_000)
        assert not model.is_quick(EXPLAIN_SIGNATURE, 1)

    def test_warm_up_runs(self, model: Tabular) -> None:
        model.warm_up()


class TestXGBoost:
    def test_scores_are_the_boosters_own(self, tmp_path: Path) -> None:
        booster = train()
        model = XGBoostModel.load(write(tmp_path, booster))
        zeros_are_values = np.where(np.abs(ROWS) < 0.5, np.float32(0), ROWS)
        for rows in (ROWS, zeros_are_values):
            matrix = xgboost.DMatrix(rows, feature_names=NAMES)
            scores = model.predict(rows)
            assert np.abs(scores - booster.predict(matrix)).max() < 1e-6
            assert np.array_equal(scores, scores.astype(np.float32))
            shares = booster.predict(matrix, pred_contribs=True)[:, :-1]
            assert np.abs(model.explain(rows) - shares).max() < 1e-5

    def test_contributions_and_bias_add_up_to_the_margin(self, tmp_path: Path) -> None:
        booster = train()
        model = XGBoostModel.load(write(tmp_path, booster))
        matrix = xgboost.DMatrix(ROWS, feature_names=NAMES)
        margins = booster.predict(matrix, output_margin=True)
        rest = margins - model.explain(ROWS).sum(axis=1)
        assert np.allclose(rest, rest[0], atol=1e-5)

    def test_json_file_and_text_path(self, tmp_path: Path) -> None:
        booster = train()
        folder = write(tmp_path, booster)
        expected = XGBoostModel.load(str(folder)).predict(ROWS)
        (folder / "model.ubj").unlink()
        booster.save_model(folder / "model.json")
        assert np.array_equal(XGBoostModel.load(folder).predict(ROWS), expected)

    def test_infinite_values_score_but_are_not_explained(self, tmp_path: Path) -> None:
        model = XGBoostModel.load(write(tmp_path, train()))
        rows = np.full((1, 5), np.inf, np.float32)
        assert 0 <= model.predict(rows)[0] <= 1
        with pytest.raises(InvalidRows, match="infinite"):
            model.explain(rows)

    @pytest.mark.parametrize(
        ("booster", "names", "words"),
        [
            (lambda: train(columns=4, names=None), NAMES, "takes 4 columns"),
            (lambda: train(), NAMES[::-1], "was trained on columns"),
            (lambda: train(objective="reg:squarederror"), NAMES, "gives no probability"),
            (lambda: train(objective="multi:softprob", num_class=2), NAMES, "gives no probability"),
            (lambda: train(booster="gblinear"), NAMES, "gblinear cannot be served"),
        ],
        ids=["width", "order", "objective", "classes", "booster"],
    )
    def test_model_that_cannot_be_served_is_refused(
        self, tmp_path: Path, booster: Any, names: list[str], words: str
    ) -> None:
        with pytest.raises(ModelError, match=words):
            XGBoostModel.load(write(tmp_path, booster(), names))

    def test_file_that_is_no_model_is_refused(self, tmp_path: Path) -> None:
        folder = write(tmp_path, train())
        for garbage in (b"", b"garbage", b"{}", b"\x80\x04N."):  # the last is a pickle
            (folder / "model.ubj").write_bytes(garbage)
            with pytest.raises(ModelError, match=r"model\.ubj is not an XGBoost model"):
                XGBoostModel.load(folder)

    def test_missing_files_and_wrong_threads_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RepositoryError, match=r"features\.json"):
            XGBoostModel.load(tmp_path)
        with pytest.raises(ValueError, match="threads"):
            XGBoostModel.load(tmp_path, threads=0)
