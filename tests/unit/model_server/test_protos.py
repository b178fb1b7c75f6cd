"""The stubs load without running TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import descriptor_pool

from model_server import protos

ROOT = Path(protos.__file__).parents[1]


def run(code: str, *search: Path) -> str:
    path = os.pathsep.join(str(item) for item in (*search, ROOT))
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_loading_leaves_no_stand_in_behind() -> None:
    code = "import model_server.protos, sys; print('tensorflow' in sys.modules)"
    assert run(code) == "False"


def test_tensorflows_own_init_does_not_run(tmp_path: Path) -> None:
    """A stand-in for the extra: same message modules, an ``__init__`` that tells."""
    spec = find_spec("tensorflow")
    assert spec is not None and spec.submodule_search_locations is not None
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text("print('tensorflow ran', end=' ')\n")
    (package / "core").symlink_to(Path(next(iter(spec.submodule_search_locations))) / "core")
    code = (
        "import model_server.protos as p; print('loaded', end=' ');"
        "import tensorflow; from tensorflow.core.framework import tensor_pb2;"
        "print(tensor_pb2.TensorProto is p.TensorProto)"
    )
    assert run(code, tmp_path) == "loaded tensorflow ran True"


def test_error_codes_are_grpcs_own() -> None:
    status = protos.ModelVersionStatus()
    status.status.error_code = 5
    field = status.status.DESCRIPTOR.fields_by_name["error_code"]
    assert field.enum_type.full_name == "tensorflow.error.Code"
    assert field.enum_type.values_by_number[5].name == "NOT_FOUND"
    assert field.enum_type.values_by_number[16].name == "UNAUTHENTICATED"


def test_services_can_be_described_for_reflection() -> None:
    pool = descriptor_pool.Default()
    for name in (protos.PREDICTION_SERVICE, protos.MODEL_SERVICE):
        assert pool.FindServiceByName(name).full_name == name


def test_embedding_a_model_imports_no_grpc() -> None:
    code = (
        "import model_server.backends.xgboost, sys;"
        "print([m for m in ('grpc', 'google.protobuf', 'tensorflow') if m in sys.modules])"
    )
    assert run(code) == "[]"
