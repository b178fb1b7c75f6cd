"""signature.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_server import signature_file
from model_server.errors import RepositoryError

X = {"name": "x", "datatype": "FP32", "shape": [-1, 5]}
Y = {"name": "y", "datatype": "INT64", "shape": []}


def read(folder: Path, document: Any) -> Any:
    (folder / "signature.json").write_text(json.dumps(document))
    return signature_file.read(folder)


def test_names_types_and_shapes(tmp_path: Path) -> None:
    signature = read(tmp_path, {"inputs": [X], "outputs": [Y]})
    (x,), (y,) = signature.inputs, signature.outputs
    assert (x.name, x.dtype, x.shape) == ("x", np.float32, (None, 5))
    assert (y.name, y.dtype, y.shape) == ("y", np.int64, ())


def test_without_the_file_there_is_none(tmp_path: Path) -> None:
    assert signature_file.read(tmp_path) is None


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "must hold a JSON object"),
        ({"inputs": [X]}, '"outputs" must be a list'),
        ({"inputs": [X, X], "outputs": [Y]}, "names of their own"),
        ({"inputs": [1], "outputs": [Y]}, r"inputs\[0\] must be an object"),
        ({"inputs": [X | {"name": ""}], "outputs": [Y]}, '"name" must be'),
        ({"inputs": [X | {"datatype": "float"}], "outputs": [Y]}, "must be one of BOOL"),
        ({"inputs": [X | {"shape": [-2]}], "outputs": [Y]}, "-1 for any"),
        ({"inputs": [X | {"shape": 3}], "outputs": [Y]}, "-1 for any"),
    ],
)
def test_what_is_malformed(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(RepositoryError, match=words):
        read(tmp_path, document)


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "signature.json").write_text("{")
    with pytest.raises(RepositoryError, match="is not JSON"):
        signature_file.read(tmp_path)
