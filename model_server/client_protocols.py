"""What the client says on the wire: TensorFlow Serving's API, or the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model_server.errors import BadResponse, InvalidRequest, TensorError
from model_server.protos import (
    DTYPE_NAMES,
    GetModelMetadataRequest,
    PredictionServiceStub,
    PredictRequest,
    SignatureDefMap,
)
from model_server.tensors import from_proto, to_proto

__all__ = [
    "Address",
    "ModelMetadata",
    "OpenInference",
    "SignatureMetadata",
    "TensorMetadata",
    "TfServing",
]

Floats = npt.NDArray[np.float64]

_METADATA_FIELD = "signature_def"
_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Address:
    """Which model is asked: its name, and its version if one is pinned."""

    name: str
    version: int | None


@dataclass(frozen=True)
class TensorMetadata:
    """One tensor of a signature: type as in "DT_FLOAT", and shape with -1 for any size."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SignatureMetadata:
    """Tensors of a signature by name."""

    inputs: Mapping[str, TensorMetadata]
    outputs: Mapping[str, TensorMetadata]


@dataclass(frozen=True)
class ModelMetadata:
    """What a server says about a model."""

    model_name: str
    model_version: int
    signatures: Mapping[str, SignatureMetadata]


class TfServing:
    """TensorFlow Serving's PredictionService."""

    def __init__(self, address: Address) -> None:
        """Ask for one model."""
        self._address = address

    def predict(self, channel: Any) -> Any:
        """Return the call that scores."""
        return PredictionServiceStub(channel).Predict

    def describe(self, channel: Any) -> Any:
        """Return the call that describes the model."""
        return PredictionServiceStub(channel).GetModelMetadata

    def request(
        self, rows: npt.NDArray[np.float32], input_name: str, signature: str, output: str
    ) -> Any:
        """Encode a request for one output of a signature."""
        request = PredictRequest(output_filter=[output])
        self._set_spec(request.model_spec)
        request.model_spec.signature_name = signature
        request.inputs[input_name].CopyFrom(to_proto(rows))
        return request

    def metadata_request(self) -> Any:
        """Encode a request for the model's signatures."""
        request = GetModelMetadataRequest(metadata_field=[_METADATA_FIELD])
        self._set_spec(request.model_spec)
        return request

    def output(self, response: Any, name: str) -> Floats:
        """Decode one output tensor as float64.

        Raises:
            BadResponse: It is missing, malformed or not of numbers.
        """
        if name not in response.outputs:
            raise BadResponse(f"no output {name}, only {sorted(response.outputs)}")
        try:
            values = from_proto(response.outputs[name])
        except TensorError as exc:
            raise BadResponse(f"output {name}: {exc}") from exc
        return _as_numbers(name, values)

    def served_by(self, response: Any) -> tuple[str, int]:
        """Return the model's name and version from a response.

        Raises:
            BadResponse: No version is given, or it is not the model or version asked for.
        """
        spec = response.model_spec
        if not spec.HasField("version"):
            raise BadResponse("the response does not say which version made it")
        name = spec.name or self._address.name
        return _checked(self._address, name, int(spec.version.value))

    def read_metadata(self, response: Any) -> ModelMetadata:
        """Decode the model's signatures.

        Raises:
            BadResponse: There are none.
        """
        name, version = self.served_by(response)
        return ModelMetadata(name, version, _decode_signatures(response))

    def _set_spec(self, spec: Any) -> None:
        spec.name = self._address.name
        if self._address.version is not None:
            spec.version.value = self._address.version


class OpenInference:
    """The Open Inference Protocol's GRPCInferenceService.

    A signature other than the default goes as the parameter ``signature_name``, which our server
    knows and others ignore. A version that is no number, or none, counts as 0.
    """

    def __init__(self, address: Address) -> None:
        """Ask for one model."""
        # Here, for a client of TensorFlow Serving has no use for these messages.
        from model_server.oip import messages, tensors

        self._address = address
        self._messages = messages
        self._tensors = tensors

    def predict(self, channel: Any) -> Any:
        """Return the call that scores."""
        return self._messages.stub(channel, "ModelInfer")

    def describe(self, channel: Any) -> Any:
        """Return the call that describes the model."""
        return self._messages.stub(channel, "ModelMetadata")

    def request(
        self, rows: npt.NDArray[np.float32], input_name: str, signature: str, output: str
    ) -> Any:
        """Encode a request for one output of a signature."""
        request = self._messages.message("ModelInferRequest")(
            model_name=self._address.name,
            model_version=self._version,
            raw_input_contents=[self._tensors.to_raw(rows)],
        )
        request.inputs.add(name=input_name, datatype="FP32", shape=rows.shape)
        request.outputs.add(name=output)
        if signature != _SIGNATURE:
            request.parameters["signature_name"].string_param = signature
        return request

    def metadata_request(self) -> Any:
        """Encode a request for the model's inputs and outputs."""
        return self._messages.message("ModelMetadataRequest")(
            name=self._address.name, version=self._version
        )

    def output(self, response: Any, name: str) -> Floats:
        """Decode one output tensor as float64.

        Raises:
            BadResponse: It is missing, malformed or not of numbers.
        """
        names = [tensor.name for tensor in response.outputs]
        if name not in names:
            raise BadResponse(f"no output {name}, only {sorted(names)}")
        index = names.index(name)
        tensor, raw = response.outputs[index], response.raw_output_contents
        try:
            if not raw:
                values = self._tensors.from_contents(tensor)
            elif len(raw) != len(names):
                raise BadResponse(f"{len(raw)} raw contents for {len(names)} outputs")
            else:
                shape = tuple(tensor.shape)
                values = self._tensors.from_raw(name, tensor.datatype, shape, raw[index])
        except InvalidRequest as exc:
            raise BadResponse(f"output {name}: {exc}") from exc
        return _as_numbers(name, values)

    def served_by(self, response: Any) -> tuple[str, int]:
        """Return the model's name and version from a response.

        Raises:
            BadResponse: It is not the model or version asked for.
        """
        name = response.model_name or self._address.name
        return _checked(self._address, name, _number(response.model_version))

    def read_metadata(self, response: Any) -> ModelMetadata:
        """Decode the model's inputs and outputs."""
        versions = [_number(version) for version in response.versions]
        signature = SignatureMetadata(_described(response.inputs), _described(response.outputs))
        newest = self._address.version or max(versions, default=0)
        return ModelMetadata(response.name, newest, {_SIGNATURE: signature})

    @property
    def _version(self) -> str:
        return "" if self._address.version is None else str(self._address.version)


def _number(version: str) -> int:
    return int(version) if version.isascii() and version.isdigit() and len(version) < 19 else 0


def _described(tensors: Any) -> Mapping[str, TensorMetadata]:
    return {t.name: TensorMetadata(t.datatype, tuple(t.shape)) for t in tensors}


def _as_numbers(name: str, values: npt.NDArray[Any]) -> Floats:
    if values.dtype.kind not in "fiu":
        raise BadResponse(f"output {name} is {values.dtype}, not numbers")
    return values.astype(np.float64)


def _checked(address: Address, name: str, version: int) -> tuple[str, int]:
    if name != address.name or version != (address.version or version):
        wanted = address.version or "any version"
        raise BadResponse(f"asked {address.name} {wanted}, answered by {name} {version}")
    return name, version


def _decode_signatures(response: Any) -> Mapping[str, SignatureMetadata]:
    if _METADATA_FIELD not in response.metadata:
        raise BadResponse(f"no {_METADATA_FIELD} in the metadata")
    signatures = SignatureDefMap()
    if not response.metadata[_METADATA_FIELD].Unpack(signatures):
        raise BadResponse(f"{_METADATA_FIELD} is of another type")
    return {
        name: SignatureMetadata(_tensors(definition.inputs), _tensors(definition.outputs))
        for name, definition in signatures.signature_def.items()
    }


def _tensors(infos: Mapping[str, Any]) -> Mapping[str, TensorMetadata]:
    return {
        name: TensorMetadata(
            dtype=DTYPE_NAMES.get(info.dtype, str(info.dtype)),
            shape=tuple(int(dim.size) for dim in info.tensor_shape.dim),
        )
        for name, info in infos.items()
    }
