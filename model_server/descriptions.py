"""What TensorFlow Serving's calls say about models and their versions."""

from __future__ import annotations

from typing import Any

from model_server.backends.base import Signature, TensorSpec
from model_server.protos import (
    GetModelMetadataResponse,
    GetModelStatusResponse,
    ModelVersionStatus,
    SignatureDef,
    SignatureDefMap,
    TensorInfo,
)
from model_server.servables import Servable, Servables
from model_server.tensors import data_type

__all__ = ["METADATA_FIELD", "METHODS", "metadata_response", "status_response"]

METADATA_FIELD = "signature_def"
METHODS = "tensorflow/serving/"
_UNKNOWN = 2  # tensorflow.error.Code.UNKNOWN


def status_response(
    servables: Servables, name: str, version: int | None = None, label: str = ""
) -> Any:
    """Return a GetModelStatusResponse of one version, or of all.

    Raises:
        ServableNotFound: Another model or version.
        InvalidRequest: The model has no such label.
    """
    response = GetModelStatusResponse()
    for number, known in servables.statuses(name, version, label).items():
        status = response.model_version_status.add(
            version=number, state=ModelVersionStatus.State.Value(known.state.name)
        )
        status.status.SetInParent()  # present even if OK, as TensorFlow Serving sends it
        if known.error:
            status.status.error_code = _UNKNOWN
            status.status.error_message = known.error
    return response


def _tensor_info(spec: TensorSpec) -> Any:
    info = TensorInfo(name=f"{spec.name}:0", dtype=data_type(spec.dtype))
    if spec.shape is None:
        info.tensor_shape.unknown_rank = True
        return info
    for size in spec.shape:
        info.tensor_shape.dim.add(size=-1 if size is None else size)
    return info


def _signature_def(signature: Signature) -> Any:
    definition = SignatureDef(method_name=f"{METHODS}{signature.method}")
    for spec in signature.inputs:
        definition.inputs[spec.name].CopyFrom(_tensor_info(spec))
    for spec in signature.outputs:
        definition.outputs[spec.name].CopyFrom(_tensor_info(spec))
    return definition


def metadata_response(servable: Servable) -> Any:
    """Return a GetModelMetadataResponse."""
    signatures = SignatureDefMap()
    for name, signature in servable.model.signatures.items():
        signatures.signature_def[name].CopyFrom(_signature_def(signature))
    response = GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    response.metadata[METADATA_FIELD].Pack(signatures)
    return response
