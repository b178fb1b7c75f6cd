"""What MLflow logged, as a version folder. The MLmodel files are as MLflow 3.17 writes them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from model_server import mlflow_layout, signature_file
from model_server.errors import RepositoryError
from model_server.repository import load_features

AT = "models:/m/1"
COLUMNS = json.dumps([{"type": "double", "name": n, "required": True} for n in ("a", "b")])
TENSOR = json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "1"
    folder.mkdir()
    return folder


def put(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def lay_out(files: Path, version: Path, flavors: dict[str, Any], **more: Any) -> set[str]:
    mlflow_layout.lay_out({"flavors": flavors} | more, files, version, AT)
    return {str(p.relative_to(version)) for p in version.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("content", "name"),
    [(b"{L\x00", "model.ubj"), (b'{"learner"', "model.json"), (b"{\n", "model.json")],
)
@pytest.mark.parametrize(
    ("signature", "names"), [(COLUMNS, ("a", "b")), (TENSOR, ("f0", "f1", "f2"))]
)
def test_a_booster_by_its_first_bytes_and_its_columns(
    files: Path, version: Path, content: bytes, name: str, signature: str, names: tuple[str, ...]
) -> None:
    put(files, model_dot_xgb=content)
    flavors = {"python_function": {}, "xgboost": {"data": "model.xgb"}}
    found = lay_out(files, version, flavors, signature={"inputs": signature})
    assert found == {name, "features.json"}
    features = load_features(version)
    assert features.names == names
    assert {feature.impute for feature in features.features} == {None}


def test_metadata_names_the_columns(files: Path, version: Path) -> None:
    features = {"format": 1, "features": [{"name": "z", "type": "float", "impute": 2.0}]}
    put(files, model_dot_ubj=b"{L")
    lay_out(files, version, {"xgboost": {"data": "model.ubj"}}, metadata={"features": features})
    assert load_features(version).features[0].impute == 2.0


def test_a_graph_with_its_tensors_beside_it(files: Path, version: Path) -> None:
    put(files, model_dot_onnx=b"graph", weights=b"1", MLmodel=b"")
    assert lay_out(files, version, {"onnx": {"data": "model.onnx"}}) >= {"model.onnx", "weights"}


@pytest.mark.parametrize(
    ("flavour", "where"),
    [
        ({"saved_model_dir": "tf2model", "model_type": "tf2-module"}, "tf2model"),
        ({"data": "data", "model_type": "keras", "save_format": "tf"}, "data__model"),
    ],
)
def test_a_saved_model(files: Path, version: Path, flavour: Any, where: str) -> None:
    put(files, **{f"{where}__saved_model_dot_pb": b"1", f"{where}__variables__a": b"2"})
    expected = {"saved_model.pb", "variables/a"}
    assert lay_out(files, version, {"tensorflow": flavour}) == expected


def test_pytorch(files: Path, version: Path) -> None:
    put(files, data__model_dot_pt2=b"1")
    assert lay_out(files, version, {"pytorch": {"model_data": "data"}}) == {"model.pt2"}


def test_torchscript_with_its_tensors(files: Path, version: Path) -> None:
    (files / "data").mkdir()
    with zipfile.ZipFile(files / "data" / "model.pth", "w") as archive:
        archive.writestr("model/constants.pkl", b"")
    signature = {"inputs": TENSOR, "outputs": TENSOR}
    found = lay_out(files, version, {"pytorch": {"model_data": "data"}}, signature=signature)
    assert found == {"model.pt", "signature.json"}
    read = signature_file.read(version)
    assert read is not None
    assert [spec.name for spec in (*read.inputs, *read.outputs)] == ["INPUT__0", "OUTPUT__0"]
    assert read.inputs[0].shape == (None, 3)


@pytest.mark.parametrize(
    ("flavors", "words"),
    [
        ({"python_function": {}, "sklearn": {}}, "python_function, sklearn, none of .* skl2onnx"),
        ({"pytorch": {"model_data": "data"}}, "pickled PyTorch module: .* serialization_format"),
        ({"tensorflow": {"data": "data"}}, "Keras file, not a SavedModel"),
        ({"xgboost": {"data": "../files/data/model.pth"}}, "no data for xgboost"),
        ({"xgboost": {"data": "link"}}, "has no link"),
        ({"onnx": {"data": "absent"}}, "has no absent"),
        ({"onnx": {}}, "no data for onnx"),
        ({"xgboost": {"data": "data/model.pth"}}, "does not name its columns"),
    ],
)
def test_what_is_refused(files: Path, version: Path, flavors: Any, words: str) -> None:
    (files / "data").mkdir()
    with zipfile.ZipFile(files / "data" / "model.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    (files / "link").symlink_to("/etc/hostname")
    with pytest.raises(RepositoryError, match=words):
        lay_out(files, version, flavors)


@pytest.mark.parametrize("content", [b"- a", b"{", b"flavors: [a]", b"a: 1"])
def test_a_file_that_is_no_mlmodel(files: Path, content: bytes) -> None:
    put(files, MLmodel=content)
    with pytest.raises(RepositoryError, match="MLmodel"):
        mlflow_layout.read(files / "MLmodel", AT)
