"""Clients of other projects against our server, unchanged, in environments of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOLERANCE = 1e-6
HALF_TOLERANCE = 0.5  # rows of 16 bits may take another branch


def test_tritonclient(stranger: Any, ours: Any, expected: np.ndarray) -> None:
    found = stranger("mlserver", "triton.py", **ours._asdict())
    for name in ("grpc", "http"):
        server, inputs, versions = found[f"{name}_metadata"]
        assert (server, versions) == ("streamscore", ["3"])
        assert [(i["name"], i["datatype"]) for i in inputs] == [("inputs", "FP32")]
        scores = found[f"{name}_scores"]
        assert len(scores) == (2 if name == "grpc" else 4)
        for label, values in scores.items():
            limit = HALF_TOLERANCE if label.endswith("half") else TOLERANCE
            assert np.abs(np.array(values) - expected).max() < limit, label
        (entry,) = found[f"{name}_index"]
        assert (entry["name"], entry["version"], entry["state"]) == ("fraud", "3", "READY")
        assert found[f"{name}_unloaded"]
    assert found["grpc_errors"] == {
        "model": "StatusCode.NOT_FOUND",
        "version": "StatusCode.NOT_FOUND",
        "unload": "StatusCode.PERMISSION_DENIED",
    }
    assert found["http_errors"] == {"model": "404", "version": "404", "unload": "403"}
    assert np.abs(np.array(found["async_scores"]) - expected).max() < TOLERANCE


def test_mlserver_codecs(stranger: Any, ours: Any, expected: np.ndarray) -> None:
    found = stranger("mlserver", "mlserver_codecs.py", **ours._asdict())
    assert len(found) == 9
    for name, scores in found.items():
        assert np.abs(np.array(scores) - expected).max() < TOLERANCE, name


def test_tensorflow_serving_api(
    stranger: Any, ours: Any, models_dir: Path, expected: np.ndarray
) -> None:
    arguments = ours._asdict() | {"base_path": str(models_dir / "fraud")}
    found = stranger("tensorflow", "tf_serving.py", **arguments)
    for name in ("float32", "float64", "constant", "classify", "regress", "multi"):
        assert np.abs(np.array(found[name]) - expected).max() < TOLERANCE, name
    assert found["shape"] == [None, 5]
    assert [3, 30] in found["states"]  # AVAILABLE
    assert found["reload"] == 0


def test_curl(ours: Any, rows: np.ndarray, expected: np.ndarray) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(port: int, path: str, document: Any) -> Any:
        url = f"http://127.0.0.1:{port}{path}"
        command = ["curl", "-sS", "--fail", "-d", json.dumps(document), url]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    answer = curl(ours.http, "/v1/models/fraud:predict", {"instances": rows.tolist()})
    assert np.abs(np.array(answer["predictions"]) - expected).max() < TOLERANCE
    tensor = {"name": "inputs", "datatype": "FP32", "shape": list(rows.shape)}
    document = {"inputs": [tensor | {"data": rows.tolist()}]}
    answer = curl(ours.http, "/v2/models/fraud/infer", document)
    assert np.abs(np.array(answer["outputs"][0]["data"]) - expected).max() < TOLERANCE
