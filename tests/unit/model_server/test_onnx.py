"""ONNX models that are served by their own inputs and outputs, and those that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from model_server.backends import load
from model_server.backends.base import PREDICT_SIGNATURE, Model, checked_inputs
from model_server.backends.onnx import OnnxModel, OnnxTable
from model_server.errors import InvalidRequest, InvalidRows, ModelError, RepositoryError
from tests.support import models

OPSET = [helper.make_opsetid("", 17)]


def write(folder: Path, nodes: Any, inputs: Any, outputs: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def value(name: str, kind: int, shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def adder(tmp_path: Path) -> Any:
    """x + y, and a text given back."""
    nodes = [
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("Identity", ["text"], ["echo"]),
    ]
    inputs = [
        value("x", TensorProto.FLOAT, ["n", 3]),
        value("y", TensorProto.FLOAT, ["n", 3]),
        value("text", TensorProto.STRING, ["n"]),
    ]
    outputs = [
        value("sum", TensorProto.FLOAT, ["n", 3]),
        value("echo", TensorProto.STRING, ["n"]),
    ]
    return load(write(tmp_path, nodes, inputs, outputs), 1)


def test_signature_is_the_graphs_own(adder: Any) -> None:
    assert isinstance(adder, OnnxModel) and isinstance(adder, Model)
    signature = adder.signatures[PREDICT_SIGNATURE]
    described = [(s.name, s.dtype.name, s.shape) for s in (*signature.inputs, *signature.outputs)]
    assert described == [
        ("x", "float32", (None, 3)),
        ("y", "float32", (None, 3)),
        ("text", "object", (None,)),
        ("sum", "float32", (None, 3)),
        ("echo", "object", (None,)),
    ]


def test_numbers_and_texts_go_through(adder: Any) -> None:
    adder.warm_up()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = {"x": x, "y": x.astype(np.float64), "text": np.array([b"a", "ß".encode()], object)}
    checked = checked_inputs(adder.signatures[PREDICT_SIGNATURE], inputs)
    outputs = adder.run(PREDICT_SIGNATURE, checked, ["echo", "sum"])
    assert list(outputs) == ["echo", "sum"]
    assert np.array_equal(outputs["sum"], 2 * x)
    assert outputs["echo"].tolist() == [b"a", "ß".encode()]
    assert list(adder.run(PREDICT_SIGNATURE, checked, ["sum"])) == ["sum"]


def test_unequal_rows_are_refused(adder: Any) -> None:
    x = np.zeros((2, 3), np.float32)
    inputs = {"x": x, "y": x[:1], "text": np.array([b""] * 2, object)}
    with pytest.raises(InvalidRequest, match="unequal numbers of rows"):
        checked_inputs(adder.signatures[PREDICT_SIGNATURE], inputs)


def test_values_that_the_graph_cannot_take_are_the_callers_fault(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    inputs = [value("x", TensorProto.FLOAT, ["n"]), value("shape", TensorProto.INT64, [2])]
    model: Any = load(write(tmp_path, [node], inputs, [value("y", TensorProto.FLOAT, None)]), 1)
    model.warm_up()  # zeros fit no shape of two rows: not warm, and nothing is raised
    with pytest.raises(InvalidRows, match="cannot take these values"):
        wrong = {"x": np.zeros(3, np.float32), "shape": np.array([2, 2])}
        model.run(PREDICT_SIGNATURE, wrong, ["y"])


def test_small_graph_is_quick_once_warm(adder: Any) -> None:
    assert not adder.is_quick(PREDICT_SIGNATURE, 1)
    adder.warm_up()
    assert not adder.is_quick(PREDICT_SIGNATURE, 10_000)


def test_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="not an ONNX model"):
        load(tmp_path, 1)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"model\.onnx"):
        load(tmp_path, 1)


def classifier(folder: Path, **options: Any) -> Path:
    rows = np.nan_to_num(models.ROWS)
    graph = to_onnx(LogisticRegression().fit(rows, models.LABELS), rows[:1], **options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    return folder


def test_map_of_probabilities_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="zipmap"):
        load(classifier(tmp_path), 1)


def test_features_must_fit_the_graph(tmp_path: Path, adder: Any) -> None:
    models.write_features(tmp_path)
    with pytest.raises(ModelError, match="one float32"):
        load(tmp_path, 1)
    folder = classifier(tmp_path / "other", options={"zipmap": False})
    models.write_features(folder, ("a", "b"))
    with pytest.raises(ModelError, match=r"takes 5 columns, features\.json beside it names 2"):
        load(folder, 1)


def test_score_must_be_clear(tmp_path: Path) -> None:
    folder = classifier(tmp_path, options={"zipmap": False})
    models.write_features(folder)
    assert isinstance(load(folder, 1), OnnxTable)  # labels are no floats: one output is left
    models.write_features(folder, score="none")
    with pytest.raises(ModelError, match="no output 'none'"):
        load(folder, 1)
    node = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    inputs = [value("x", TensorProto.FLOAT, ["n", 5])]
    outputs = [value(name, TensorProto.FLOAT, ["n", 5]) for name in ("a", "b")]
    models.write_features(write(tmp_path / "two", node, inputs, outputs))
    with pytest.raises(ModelError, match="say which is the score"):
        load(tmp_path / "two", 1)
