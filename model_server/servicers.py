"""TensorFlow Serving's gRPC services over a ``Servables``: convert, call, convert.

Classify, Regress, MultiInference and HandleReloadConfigRequest answer UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import wraps
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped, unused-ignore]
import numpy as np
import numpy.typing as npt

from model_server.backends.base import EXPLAIN_SIGNATURE, PREDICT_SIGNATURE, Signature, TensorSpec
from model_server.errors import (
    InvalidRequest,
    InvalidRows,
    RequestRefused,
    SignatureNotFound,
    TensorError,
)
from model_server.protos import (
    GetModelMetadataResponse,
    GetModelStatusResponse,
    ModelServiceServicer,
    ModelVersionStatus,
    PredictionServiceServicer,
    PredictResponse,
    SignatureDef,
    SignatureDefMap,
    TensorInfo,
)
from model_server.servables import Servable, Servables
from model_server.tensors import data_type, from_proto, to_proto

__all__ = ["INLINE_ROWS", "ModelService", "PredictionService"]

logger = logging.getLogger(__name__)

#: Largest batch scored on the event loop's own thread. Measured behind grpc.aio, 100 trees of
#: depth 6, 2 cores shared with the client: the hop to a thread costs about 60 us, so 1 row takes
#: 0.62 ms on the loop against 0.67 in the pool, 32 rows 0.64 against 0.71. From some hundred rows
#: on XGBoost, which releases the GIL, outweighs the hop: 512 rows from 4 callers give 1,530 calls/s
#: in the pool, 1,040 on the loop. Contributions cost a hundred times more: always in the pool.
INLINE_ROWS = 64

_METADATA_FIELD = "signature_def"
_PREDICT_METHOD = "tensorflow/serving/predict"
_Servicer = TypeVar("_Servicer")
_Handler = Callable[[_Servicer, Any, Any], Awaitable[Any]]


def _answering(handler: _Handler[_Servicer]) -> _Handler[_Servicer]:
    """Turn this package's refusals into gRPC statuses, and anything else into INTERNAL."""

    @wraps(handler)
    async def answer(self: _Servicer, request: Any, context: Any) -> Any:
        try:
            return await handler(self, request, context)
        except RequestRefused as exc:
            await context.abort(grpc.StatusCode[exc.status_name], str(exc))
        except (InvalidRows, TensorError) as exc:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except Exception:
            logger.exception("event=call_failed method=%s", handler.__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error, see the server's log")

    return answer


def _requested_version(spec: Any) -> int | None:
    """Return the version that a ModelSpec pins.

    Raises:
        InvalidRequest: It names a label; versions have none here.
    """
    if spec.version_label:
        raise InvalidRequest(f"Unrecognized servable version label: {spec.version_label}")
    return int(spec.version.value) if spec.HasField("version") else None


def _find(servables: Servables, request: Any) -> Servable:
    if not request.HasField("model_spec"):
        raise InvalidRequest("Missing ModelSpec")
    return servables.find(request.model_spec.name, _requested_version(request.model_spec))


def _signature(servable: Servable, name: str) -> Signature:
    signature = servable.model.signatures.get(name)
    if signature is None:
        raise SignatureNotFound(f'Serving signature key "{name}" not found.')
    return signature


def _decode_rows(request: Any, spec: TensorSpec) -> npt.NDArray[np.float32]:
    """Take the one input tensor of a request as the signature wants it.

    Raises:
        InvalidRequest: Another name, type or shape.
        TensorError: The tensor is malformed.
    """
    names = sorted(request.inputs)
    if names != [spec.name]:
        raise InvalidRequest(
            f"input size does not match signature: sent {{{','.join(names)}}}, "
            f"expected {{{spec.name}}}"
        )
    rows = from_proto(request.inputs[spec.name])
    if rows.dtype not in (np.float32, np.float64):
        raise InvalidRequest(f"input {spec.name} is {rows.dtype}, expected {spec.dtype}")
    if rows.ndim != len(spec.shape) or rows.shape[1] != spec.shape[1]:
        raise InvalidRequest(
            f"input {spec.name} has shape {rows.shape}, expected (n, {spec.shape[1]})"
        )
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, as in C
        return rows.astype(np.float32, copy=False)


def _check_filter(wanted: list[str], output_name: str) -> None:
    for alias in wanted:
        if alias != output_name:
            raise InvalidRequest(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{output_name}}}."
            )
    if len(wanted) > 1:
        raise InvalidRequest(f"duplicate output tensor alias: {output_name}")


class PredictionService(PredictionServiceServicer):  # type: ignore[misc, unused-ignore]
    """Predict and GetModelMetadata."""

    def __init__(self, servables: Servables, executor: Executor) -> None:
        """Serve ``servables``; large batches run in ``executor``."""
        self._servables = servables
        self._executor = executor

    @_answering
    async def Predict(self, request: Any, context: Any) -> Any:
        """Score or explain a batch."""
        servable = _find(self._servables, request)
        name = request.model_spec.signature_name or PREDICT_SIGNATURE
        signature = _signature(servable, name)
        _check_filter(list(request.output_filter), signature.output.name)
        rows = _decode_rows(request, signature.input)
        values = await self._run(servable, name, rows)
        return _predict_response(servable, name, signature.output, values)

    async def _run(
        self, servable: Servable, signature_name: str, rows: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]:
        explain = signature_name == EXPLAIN_SIGNATURE
        method = servable.model.explain if explain else servable.model.predict
        if not explain and len(rows) <= INLINE_ROWS:
            return method(rows)
        return await asyncio.get_running_loop().run_in_executor(self._executor, method, rows)

    @_answering
    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        """Describe the signatures of a version."""
        fields = set(request.metadata_field)
        if not fields:
            raise InvalidRequest("GetModelMetadataRequest must specify at least one metadata_field")
        if fields != {_METADATA_FIELD}:
            unknown = min(fields - {_METADATA_FIELD})
            raise InvalidRequest(f"Metadata field {unknown} is not supported")
        return _metadata_response(_find(self._servables, request))


class ModelService(ModelServiceServicer):  # type: ignore[misc, unused-ignore]
    """GetModelStatus."""

    def __init__(self, servables: Servables) -> None:
        """Report on ``servables``."""
        self._servables = servables

    @_answering
    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        """Report the state of one version, or of all."""
        if not request.HasField("model_spec"):
            raise InvalidRequest("Missing ModelSpec")
        spec = request.model_spec
        response = GetModelStatusResponse()
        for version, state in self._servables.states(spec.name, _requested_version(spec)).items():
            status = response.model_version_status.add(
                version=version, state=ModelVersionStatus.State.Value(state.name)
            )
            status.status.SetInParent()  # present and OK, as TensorFlow Serving sends it
        return response


def _set_spec(spec: Any, servable: Servable) -> None:
    spec.name = servable.name
    spec.version.value = servable.version


def _predict_response(
    servable: Servable, signature_name: str, output: TensorSpec, values: npt.NDArray[np.float64]
) -> Any:
    response = PredictResponse()
    _set_spec(response.model_spec, servable)
    response.model_spec.signature_name = signature_name
    response.outputs[output.name].CopyFrom(to_proto(values.astype(output.dtype)))
    return response


def _tensor_info(spec: TensorSpec) -> Any:
    info = TensorInfo(name=f"{spec.name}:0", dtype=data_type(spec.dtype))
    for size in spec.shape:
        info.tensor_shape.dim.add(size=-1 if size is None else size)
    return info


def _signature_def(signature: Signature) -> Any:
    definition = SignatureDef(method_name=_PREDICT_METHOD)
    definition.inputs[signature.input.name].CopyFrom(_tensor_info(signature.input))
    definition.outputs[signature.output.name].CopyFrom(_tensor_info(signature.output))
    return definition


def _metadata_response(servable: Servable) -> Any:
    signatures = SignatureDefMap()
    for name, signature in servable.model.signatures.items():
        signatures.signature_def[name].CopyFrom(_signature_def(signature))
    response = GetModelMetadataResponse()
    _set_spec(response.model_spec, servable)
    response.metadata[_METADATA_FIELD].Pack(signatures)
    return response
