"""PyTorch's models, in PyTorch's own environment, behind our server; and files that are hostile."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest

from model_server.backends import load
from model_server.errors import InvalidRows, ModelError, RepositoryError
from model_server.lifecycle import ModelConfig
from model_server.options import ServerOptions
from model_server.protos import PredictionServiceStub, PredictRequest
from model_server.server import start
from model_server.tensors import from_proto, to_proto
from tests.support import hostile_torch, torch_models

PAIR = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "n", "datatype": "INT64", "shape": []},
    ],
    "outputs": [
        {"name": "products", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "next", "datatype": "INT64", "shape": []},
    ],
}


@pytest.fixture
def python() -> str:
    return torch_models.torch_python()


def folder(root: Path, source: str, name: str, signature: object = None) -> Path:
    """A version folder of one of ``torch_models``' files."""
    made = root / name.partition(".")[0] / source.partition(".")[0] / "1"
    made.mkdir(parents=True)
    shutil.copy(torch_models.files() / source, made / name)
    if signature is not None:
        (made / "signature.json").write_text(json.dumps(signature))
    return made


async def test_types_keywords_and_outputs_of_their_own_size(python: str, tmp_path: Path) -> None:
    models_dir = folder(tmp_path, "mixed.pt2", "model.pt2").parents[1]
    folder(tmp_path, "pair.pt", "model.pt", PAIR)
    configs = (ModelConfig("mixed", models_dir), ModelConfig("pair", models_dir))
    running = await start(ServerOptions(configs, model_python=python))
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    square = np.arange(8, dtype=np.float32).reshape(2, 4)
    ids, half = np.array([0, 3, 4]), np.array([1, 2, 3], np.float32)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            stub = PredictionServiceStub(channel)
            mixed = (await stub.Predict(request("mixed", x=x, ids=ids, half=half))).outputs
            pair = (await stub.Predict(request("pair", x=square, n=np.array(6)))).outputs
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Predict(request("mixed", x=x[:, :1], ids=ids, half=half))
            with pytest.raises(grpc.aio.AioRpcError, match="unequal numbers of rows"):
                await stub.Predict(request("mixed", x=x, ids=ids[:2], half=half))
    finally:
        await running.stop()
    assert np.array_equal(from_proto(mixed["total"]), x.sum(1))
    assert np.array_equal(from_proto(mixed["ids"]), ids * 2)
    assert np.array_equal(from_proto(mixed["half"]), half * 2)  # bfloat16 travels as float32
    assert np.array_equal(from_proto(mixed["found"]), [1, 2])
    assert np.array_equal(from_proto(pair["products"]), square @ square.T)
    assert from_proto(pair["next"]) == 7
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def request(model: str, **inputs: np.ndarray) -> PredictRequest:
    message = PredictRequest()
    message.model_spec.name = model
    for name, array in inputs.items():
        message.inputs[name].CopyFrom(to_proto(array))
    return message


def test_an_unnamed_output_has_tritons_name_and_values_may_be_refused(
    python: str, tmp_path: Path
) -> None:
    model = load(folder(tmp_path, "table.pt2", "model.pt2"), 1, python=python)
    try:
        (signature,) = model.signatures.values()
        assert [spec.name for spec in signature.inputs + signature.outputs] == ["x", "OUTPUT__0"]
        assert signature.inputs[0].shape == (None, torch_models.COLUMNS)
        rows = np.ones((4, torch_models.COLUMNS), np.float32)
        (scores,) = model.run("serving_default", {"x": rows}, ["OUTPUT__0"]).values()
        assert np.abs(scores - torch_models.score(rows)).max() < 1e-6
        with pytest.raises(InvalidRows, match="cannot take these values: "):
            model.run("serving_default", {"x": rows[0, :2]}, ["OUTPUT__0"])
    finally:
        model.close()


@pytest.mark.parametrize(
    ("source", "signature", "words"),
    [
        ("pair.pt", None, r"write them to .*signature\.json"),
        ("saved.pt", PAIR, r"is not TorchScript.*constants\.pkl"),
        ("pair.pt", {"inputs": []}, '"inputs" must be a list of at least one'),
    ],
)
def test_what_cannot_be_served_says_why(
    python: str, tmp_path: Path, source: str, signature: object, words: str
) -> None:
    with pytest.raises((ModelError, RepositoryError), match=words):
        load(folder(tmp_path, source, "model.pt", signature), 1, python=python)


def test_an_unchanged_copy_is_loaded(python: str, tmp_path: Path) -> None:
    """So that the hostile ones below are refused for what was changed."""
    made = folder(tmp_path, "table.pt2", "model.pt2")
    hostile_torch.rewritten(
        torch_models.files() / "table.pt2", made / "model.pt2", lambda *_: None, tmp_path
    )
    load(made, 1, python=python).close()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("pickled weight", "posix is blocked"),
        ("pickled sample", "posix is blocked"),
        ("pickled constant", "holds the file data/constants/opaque_obj_0"),
        ("library", r"holds the file data/aotinductor/model/model\.so"),
        ("expression", "holds the expression"),
        ("operator", r"holds the operator torch\.os\.system"),
        ("reading operator", r"holds the operator torch\.ops\.aten\.from_file"),
        ("name", "holds the name"),
        ("container", "holds the container"),
    ],
)
def test_a_hostile_program_is_refused_and_does_nothing(
    python: str, tmp_path: Path, what: str, words: str
) -> None:
    marker = tmp_path / "marker"
    made = folder(tmp_path, "table.pt2", "model.pt2")
    source = torch_models.files() / "table.pt2"
    hostile_torch.rewritten(source, made / "model.pt2", hostile_torch.EXPORTED[what], marker)
    with pytest.raises(ModelError, match=words):
        load(made, 1, python=python)
    assert not marker.exists()


def test_torchscript_with_another_pickle_is_refused_and_does_nothing(
    python: str, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    made = folder(tmp_path, "table.pt", "model.pt", PAIR)
    source = torch_models.files() / "table.pt"
    hostile_torch.rewritten(source, made / "model.pt", hostile_torch.pickled_script, marker)
    with pytest.raises(ModelError, match="is not TorchScript"):
        load(made, 1, python=python)
    assert not marker.exists()


def test_without_pytorch_the_error_says_what_to_do(python: str, tmp_path: Path) -> None:
    made = folder(tmp_path, "table.pt2", "model.pt2")
    with pytest.raises(ModelError, match="make setup EXTRA=torch, or name an interpreter"):
        load(made, 1, python=sys.executable)
