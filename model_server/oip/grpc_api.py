"""The Open Inference Protocol over gRPC."""

from __future__ import annotations

from typing import Any

from model_server.backends.base import Arrays
from model_server.errors import InvalidRequest
from model_server.grpc_status import answering
from model_server.oip import tensors
from model_server.oip.inference import Inference, InferRequest
from model_server.oip.messages import message
from model_server.repository_calls import RepositoryCalls

__all__ = ["InferenceService"]

_Response = message("ModelInferResponse")


class InferenceService:
    """GRPCInferenceService."""

    def __init__(self, inference: Inference, repository: RepositoryCalls) -> None:
        """Answer with ``inference``; load and unload with ``repository``."""
        self._inference = inference
        self._repository = repository

    @answering
    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Whether the server answers at all."""
        return message("ServerLiveResponse")(live=True)

    @answering
    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether every model answers."""
        return message("ServerReadyResponse")(ready=self._inference.ready)

    @answering
    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether one version answers."""
        ready = self._inference.model_ready(request.name, request.version)
        return message("ModelReadyResponse")(ready=ready)

    @answering
    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name, version and extensions."""
        return message("ServerMetadataResponse")(**self._inference.server_metadata())

    @answering
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Inputs and outputs of one version."""
        described = self._inference.model_metadata(request.name, request.version)
        return message("ModelMetadataResponse")(**described)

    @answering
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Run a model; raw bytes are answered with raw bytes."""
        parameters = {name: _value(value) for name, value in request.parameters.items()}
        answer = await self._inference.infer(
            InferRequest(
                request.model_name,
                request.model_version,
                _inputs(request),
                [output.name for output in request.outputs],
                parameters,
                context.time_remaining(),
            )
        )
        response = _Response(
            model_name=answer.model, model_version=str(answer.version), id=request.id
        )
        raw = bool(request.raw_input_contents)
        for name, array in answer.outputs.items():
            tensor = response.outputs.add(name=name)
            if raw:
                tensor.datatype = tensors.datatype_of(array.dtype)
                tensor.shape.extend(array.shape)
                response.raw_output_contents.append(tensors.to_raw(array))
            else:
                tensors.fill_contents(tensor, array)
        return response

    @answering
    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """List every version of every model."""
        return message("RepositoryIndexResponse")(models=self._inference.index(ready=request.ready))

    @answering
    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Load a model of the repository, or look for its new versions now."""
        await self._repository.load(request.model_name)
        return message("RepositoryModelLoadResponse")()

    @answering
    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Withdraw a model."""
        await self._repository.unload(request.model_name)
        return message("RepositoryModelUnloadResponse")()


def _value(parameter: Any) -> Any:
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _inputs(request: Any) -> Arrays:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs"
        )
    arrays = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in arrays:
            raise InvalidRequest(f"input {tensor.name} is sent twice")
        if not raw:
            arrays[tensor.name] = tensors.from_contents(tensor)
        elif tensor.contents.ByteSize():  # MLServer's client sends an empty one along
            raise InvalidRequest(f"input {tensor.name} has contents beside raw_input_contents")
        else:
            arrays[tensor.name] = tensors.from_raw(
                tensor.name, tensor.datatype, tuple(tensor.shape), raw[index]
            )
    return arrays
