"""The generated TensorFlow and TensorFlow Serving messages, without importing TensorFlow.

The only module that imports ``tensorflow`` or ``tensorflow_serving``. Two installs work:

* ``tensorflow`` itself (an extra). Importing the stubs would run ``tensorflow/__init__.py``:
  seconds and hundreds of megabytes for a few message classes. A bare module whose ``__path__``
  is the installed folder stands in for it while the stubs load. It is taken away afterwards, so
  a later ``import tensorflow`` is the real one; it finds the message modules already loaded and
  shares them, as one process can register each message only once.
* ``tensorflow-protobuf`` (the lean default), which brings only the message modules, its own copy
  of ``tensorflow_serving.apis`` among them. It lacks ``tensorflow.tsl.protobuf.error_codes_pb2``,
  which others import; that is made here: one enum of public names and numbers.

``tensorflow-serving-api`` installs to the same paths as ``tensorflow-protobuf``, so with both it
depends on the order of installation whose files are there. Either set loads. The newer one calls
the error codes ``tsl/protobuf/error_codes.proto``, and its modules of service descriptors cannot
run on protobuf's present C implementation, though they register their descriptors first; nothing
but reflection needs those.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import MappingProxyType, ModuleType
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped, unused-ignore]
    descriptor_pb2,
    descriptor_pool,
)
from google.protobuf.internal import builder  # type: ignore[import-untyped, unused-ignore]

__all__ = [
    "DTYPE_NAMES",
    "MODEL_SERVICE",
    "PREDICTION_SERVICE",
    "ClassificationRequest",
    "ClassificationResponse",
    "DataType",
    "Example",
    "GetModelMetadataRequest",
    "GetModelMetadataResponse",
    "GetModelStatusRequest",
    "GetModelStatusResponse",
    "ModelServerConfig",
    "ModelServiceServicer",
    "ModelServiceStub",
    "ModelSpec",
    "ModelVersionStatus",
    "MultiInferenceRequest",
    "MultiInferenceResponse",
    "PredictRequest",
    "PredictResponse",
    "PredictionServiceServicer",
    "PredictionServiceStub",
    "RegressionRequest",
    "RegressionResponse",
    "ReloadConfigRequest",
    "ReloadConfigResponse",
    "SignatureDef",
    "SignatureDefMap",
    "TensorInfo",
    "TensorProto",
    "TensorShapeProto",
    "add_model_service",
    "add_prediction_service",
    "prediction_log",
]

_ERROR_CODES_FILE = "tensorflow/tsl/protobuf/error_codes.proto"
_RENAMED_ERROR_CODES_FILE = "tsl/protobuf/error_codes.proto"
_ERROR_CODES_MODULE = "tensorflow.tsl.protobuf.error_codes_pb2"
# gRPC's public codes, plus TensorFlow's place holder at 20.
_ERROR_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_RESERVED_CODE = "DO_NOT_USE_RESERVED_FOR_FUTURE_EXPANSION_USE_DEFAULT_IN_SWITCH_INSTEAD_"


@contextmanager
def _bare_tensorflow() -> Iterator[None]:
    """Let ``tensorflow.x.y`` import without running ``tensorflow/__init__.py``.

    Raises:
        ImportError: Neither TensorFlow nor its message modules are installed.
    """
    if "tensorflow" in sys.modules:  # the real one is loaded already: use it
        yield
        return
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("no TensorFlow messages: install tensorflow-protobuf==2.11.0")
    bare = ModuleType("tensorflow")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["tensorflow"] = bare
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _error_codes_file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name=_ERROR_CODES_FILE, package="tensorflow.error", syntax="proto3"
    )
    code = file.enum_type.add(name="Code")
    for number, name in [*enumerate(_ERROR_CODES), (20, _RESERVED_CODE)]:
        code.value.add(name=name, number=number)
    return file


def _renamed_error_codes_file() -> Any:
    """Return a file of the newer name that stands for the other: one enum, registered once."""
    return descriptor_pb2.FileDescriptorProto(
        name=_RENAMED_ERROR_CODES_FILE,
        package="tensorflow.error",
        syntax="proto3",
        dependency=[_ERROR_CODES_FILE],
        public_dependency=[0],
    )


def _register(name: str, module: ModuleType) -> ModuleType:
    sys.modules[name] = module
    return module


def _namespace(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    vars(module).update(members)
    return _register(name, module)


def _message_module(name: str, file: Any) -> ModuleType:
    """Do what the head of a generated module does: put its descriptors into the pool."""
    module = ModuleType(name)
    descriptor = descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    vars(module)["DESCRIPTOR"] = descriptor
    builder.BuildTopDescriptorsAndMessages(descriptor, name, vars(module))
    return module


def _ensure_error_codes() -> None:
    """Make the message modules that tensorflow-protobuf lacks, under both their names."""
    if _importable(_ERROR_CODES_MODULE):
        return
    codes = _register(
        _ERROR_CODES_MODULE, _message_module(_ERROR_CODES_MODULE, _error_codes_file())
    )
    _namespace("tensorflow.tsl", protobuf=_namespace("tensorflow.tsl.protobuf"))
    vars(sys.modules["tensorflow.tsl.protobuf"])["error_codes_pb2"] = codes
    _message_module("tsl.protobuf.error_codes_pb2", _renamed_error_codes_file())
    core = _load("tensorflow.core.protobuf.error_codes_pb2")
    # Where status_pb2 of tensorflow-serving-api looks for it.
    vars(core)["tsl_dot_protobuf_dot_error__codes__pb2"] = codes


def _load(name: str) -> Any:
    return importlib.import_module(name)


def _load_service_descriptors() -> None:
    for name in ("prediction_service_pb2", "model_service_pb2"):
        with suppress(AttributeError):  # see the module's docstring
            _load(f"tensorflow_serving.apis.{name}")


with _bare_tensorflow():
    _ensure_error_codes()
    _tensor: Any = _load("tensorflow.core.framework.tensor_pb2")
    _shape: Any = _load("tensorflow.core.framework.tensor_shape_pb2")
    _types: Any = _load("tensorflow.core.framework.types_pb2")
    _meta_graph: Any = _load("tensorflow.core.protobuf.meta_graph_pb2")
    _example: Any = _load("tensorflow.core.example.example_pb2")
    _model: Any = _load("tensorflow_serving.apis.model_pb2")
    _classification: Any = _load("tensorflow_serving.apis.classification_pb2")
    _regression: Any = _load("tensorflow_serving.apis.regression_pb2")
    _inference: Any = _load("tensorflow_serving.apis.inference_pb2")
    _management: Any = _load("tensorflow_serving.apis.model_management_pb2")
    _config: Any = _load("tensorflow_serving.config.model_server_config_pb2")
    _predict: Any = _load("tensorflow_serving.apis.predict_pb2")
    _metadata: Any = _load("tensorflow_serving.apis.get_model_metadata_pb2")
    _status: Any = _load("tensorflow_serving.apis.get_model_status_pb2")
    _prediction_grpc: Any = _load("tensorflow_serving.apis.prediction_service_pb2_grpc")
    _model_grpc: Any = _load("tensorflow_serving.apis.model_service_pb2_grpc")
    _load_service_descriptors()

TensorProto: Any = _tensor.TensorProto
TensorShapeProto: Any = _shape.TensorShapeProto
DataType: Any = _types.DataType
TensorInfo: Any = _meta_graph.TensorInfo
SignatureDef: Any = _meta_graph.SignatureDef

Example: Any = _example.Example

ModelSpec: Any = _model.ModelSpec
PredictRequest: Any = _predict.PredictRequest
PredictResponse: Any = _predict.PredictResponse
ClassificationRequest: Any = _classification.ClassificationRequest
ClassificationResponse: Any = _classification.ClassificationResponse
RegressionRequest: Any = _regression.RegressionRequest
RegressionResponse: Any = _regression.RegressionResponse
MultiInferenceRequest: Any = _inference.MultiInferenceRequest
MultiInferenceResponse: Any = _inference.MultiInferenceResponse
GetModelMetadataRequest: Any = _metadata.GetModelMetadataRequest
GetModelMetadataResponse: Any = _metadata.GetModelMetadataResponse
SignatureDefMap: Any = _metadata.SignatureDefMap
GetModelStatusRequest: Any = _status.GetModelStatusRequest
GetModelStatusResponse: Any = _status.GetModelStatusResponse
ModelVersionStatus: Any = _status.ModelVersionStatus

ReloadConfigRequest: Any = _management.ReloadConfigRequest
ReloadConfigResponse: Any = _management.ReloadConfigResponse
ModelServerConfig: Any = _config.ModelServerConfig

PredictionServiceStub: Any = _prediction_grpc.PredictionServiceStub
PredictionServiceServicer: Any = _prediction_grpc.PredictionServiceServicer
add_prediction_service: Any = _prediction_grpc.add_PredictionServiceServicer_to_server
ModelServiceStub: Any = _model_grpc.ModelServiceStub
ModelServiceServicer: Any = _model_grpc.ModelServiceServicer
add_model_service: Any = _model_grpc.add_ModelServiceServicer_to_server

#: Full service names, as health and reflection use them.
PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

#: DataType number -> its name, as in "DT_FLOAT".
DTYPE_NAMES: MappingProxyType[int, str] = MappingProxyType(
    {number: name for name, number in DataType.items()}
)


def prediction_log() -> Any:
    """Return the class PredictionLog, of warm-up files; few servers need it and all it imports."""
    with _bare_tensorflow():
        return _load("tensorflow_serving.apis.prediction_log_pb2").PredictionLog
