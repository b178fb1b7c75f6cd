"""What every model kind must keep, served or embedded."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xgboost

from model_server.backends import load as load_by_files
from model_server.backends.base import PREDICT_SIGNATURE, Model, TabularModel, checked_inputs
from model_server.backends.python_class import loader
from model_server.backends.tabular import EXPLAIN_SIGNATURE, Tabular
from model_server.backends.xgboost import XGBoostModel
from model_server.errors import InvalidRequest, InvalidRows, ModelError, RepositoryError
from model_server.protos import Example
from tests.support import models, torch_models
from tests.support.models import LABELS, ROWS

NAMES = list(models.NAMES)


def train(names: list[str] | None = NAMES, columns: int = 5, **params: Any) -> xgboost.Booster:
    matrix = xgboost.DMatrix(ROWS[:, :columns], LABELS, feature_names=names)
    settings = {"objective": "binary:logistic", "nthread": 1} | params
    return xgboost.train(settings, matrix, num_boost_round=5)


def write(folder: Path, booster: xgboost.Booster, names: list[str] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    booster.save_model(folder / "model.ubj")
    models.write_features(folder, tuple(names))
    return folder


def example(row: np.ndarray) -> bytes:
    """A tf.Example of a row; a missing value is left out."""
    message = Example()
    for name, value in zip(NAMES, row.tolist(), strict=True):
        if not np.isnan(value):
            message.features.feature[name].float_list.value.append(value)
    return bytes(message.SerializeToString())


class Made(NamedTuple):
    """A model of some kind, and what its own library says."""

    model: Any
    score: models.Score
    is_remote: bool


@pytest.fixture(scope="module", params=list(models.FOLDERS))
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("models") / "1"
    score = models.FOLDERS[request.param](folder)
    model = (
        loader(models.PYTHON_CLASS)(folder, 1)
        if request.param == "python_class"
        else load_by_files(folder, 1, python=torch_models.find())
    )
    yield Made(model, score, request.param in models.REMOTE)
    model.close()


@pytest.fixture
def model(made: Made) -> Tabular:
    return made.model  # type: ignore[no-any-return]


@pytest.fixture
def explaining(model: Tabular) -> Tabular:
    if EXPLAIN_SIGNATURE not in model.signatures:
        pytest.skip("this kind cannot explain")
    return model


class TestEveryBackend:
    def test_is_a_model(self, model: Tabular) -> None:
        assert isinstance(model, Model)
        assert isinstance(model, TabularModel)
        assert model.feature_names == tuple(NAMES)

    @pytest.mark.parametrize("row_count", [0, 1, 200])
    def test_shapes_and_types(self, model: Tabular, row_count: int) -> None:
        scores = model.predict(ROWS[:row_count])
        assert (scores.shape, scores.dtype) == ((row_count,), np.float64)

    @pytest.mark.parametrize("row_count", [0, 1, 200])
    def test_contributions_have_a_column_each(self, explaining: Tabular, row_count: int) -> None:
        contributions = explaining.explain(ROWS[:row_count])
        assert (contributions.shape, contributions.dtype) == ((row_count, 5), np.float64)

    def test_scores_are_the_librarys_own(self, made: Made) -> None:
        for rows in (ROWS, ROWS * 3, np.zeros((1, 5), np.float32)):
            filled = made.model.joined(dict(zip(NAMES, rows.T, strict=True)))
            assert np.abs(made.model.predict(filled) - made.score(filled)).max() < 1e-6
        assert made.model.predict(ROWS).std() > 0

    def test_a_row_scores_the_same_in_any_batch(self, model: Tabular) -> None:
        alone = [model.predict(ROWS[i : i + 1])[0] for i in range(20)]
        # ONNX Runtime adds up in another order for other sizes.
        assert np.abs(model.predict(ROWS)[:20] - alone).max() < 1e-6

    def test_rows_are_not_changed_and_may_be_read_only(self, model: Tabular) -> None:
        rows = np.frombuffer(ROWS.tobytes(), np.float32).reshape(ROWS.shape)
        model.predict(rows)
        assert rows.tobytes() == ROWS.tobytes()

    def test_memory_order_does_not_matter(self, model: Tabular) -> None:
        for rows in (np.asfortranarray(ROWS), np.repeat(ROWS, 2, axis=0)[::2]):
            assert np.array_equal(model.predict(rows), model.predict(ROWS))

    def test_explaining_changes_nothing_and_takes_any_order(self, explaining: Tabular) -> None:
        rows = np.frombuffer(ROWS.tobytes(), np.float32).reshape(ROWS.shape)
        expected = explaining.explain(rows)
        assert rows.tobytes() == ROWS.tobytes()
        assert np.array_equal(explaining.explain(np.asfortranarray(ROWS)), expected)

    def test_results_belong_to_the_caller(self, model: Tabular) -> None:
        first = model.predict(ROWS)
        kept = first.copy()
        model.predict(ROWS[::-1].copy())
        assert np.array_equal(first, kept)

    @pytest.mark.parametrize(
        "rows",
        [ROWS[:, :4], np.zeros((2, 6), np.float32), ROWS[0], ROWS[None], ROWS.astype(np.float64)],
        ids=["narrow", "wide", "1-D", "3-D", "float64"],
    )
    def test_other_rows_are_refused(self, model: Tabular, rows: Any) -> None:
        with pytest.raises(InvalidRows):
            model.predict(rows)
        if EXPLAIN_SIGNATURE in model.signatures:
            with pytest.raises(InvalidRows):
                model.explain(rows)

    def test_several_threads_get_their_own_answers(self, model: Tabular) -> None:
        batches = [ROWS[i : i + 50] for i in range(0, 150)]
        expected = [model.predict(batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            actual = list(pool.map(model.predict, batches))
        assert all(map(np.array_equal, actual, expected))

    def test_threads_explain_beside_each_other(self, explaining: Tabular) -> None:
        batches = [ROWS[i : i + 50] for i in range(0, 20)]
        expected = [explaining.explain(batch) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            others = pool.map(explaining.predict, batches)
            actual = list(pool.map(explaining.explain, batches))
            list(others)
        assert all(map(np.array_equal, actual, expected))

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
        filled = model.joined(dict(zip(NAMES, ROWS.T, strict=True)))
        scores = model.run(PREDICT_SIGNATURE, {"inputs": filled}, ["scores"])["scores"]
        assert np.array_equal(scores, model.predict(filled).astype(np.float32))
        regressed = model.run("regress", {"inputs": examples}, ["outputs"])["outputs"]
        assert np.array_equal(scores, regressed)
        if "classify" not in model.signatures:
            return
        classified = model.run("classify", {"inputs": examples}, ["scores", "classes"])
        assert np.array_equal(scores, classified["scores"][:, 1])
        assert np.allclose(classified["scores"].sum(axis=1), 1)
        assert classified["classes"].tolist() == [[b"0", b"1"]] * len(ROWS)

    def test_only_small_predictions_are_quick(self, made: Made) -> None:
        model = made.model
        assert model.is_quick(PREDICT_SIGNATURE, 1) is not made.is_remote
        assert not model.is_quick(PREDICT_SIGNATURE, 10_000)
        assert not model.is_quick(EXPLAIN_SIGNATURE, 1)

    def test_a_table_is_put_together_with_imputed_values(self, model: Tabular) -> None:
        table = model.joined({"b": np.array([[1.0], [np.nan]]), "a": np.array([2, 3])})
        impute = model.features.features[0].impute
        missing = np.nan if impute is None else impute
        expected = [[2, 1, *[missing] * 3], [3, missing, *[missing] * 3]]
        assert np.array_equal(table, np.array(expected, np.float32), equal_nan=True)

    @pytest.mark.parametrize(
        "columns",
        [
            {"a": np.zeros(2), "x": np.zeros(2)},
            {"a": np.zeros(2), "b": np.zeros(3)},
            {"a": np.array(["x"])},
            {"a": np.zeros((2, 2))},
            {},
        ],
    )
    def test_table_that_is_none_is_refused(self, model: Tabular, columns: Any) -> None:
        with pytest.raises(InvalidRequest):
            model.joined(columns)

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
