"""The protocol's calls over ``Servables``, free of how they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from typing import Any

from model_server.backends.base import (
    PREDICT_SIGNATURE,
    Arrays,
    Signature,
    TensorSpec,
    checked_inputs,
)
from model_server.calls import Caller, check_outputs
from model_server.columns import joined, takes_columns
from model_server.errors import InvalidRequest, ServableNotFound, ServableNotReady
from model_server.oip.tensors import datatype_of
from model_server.servables import Servable, Servables, ServableState

__all__ = ["SIGNATURE_PARAMETER", "InferRequest", "InferResponse", "Inference"]

SERVER_NAME = "streamscore"
#: Request parameter that names another signature than ``serving_default``, as "explain".
SIGNATURE_PARAMETER = "signature_name"

_STATES = {
    ServableState.LOADING: "LOADING",
    ServableState.AVAILABLE: "READY",
    ServableState.UNLOADING: "UNLOADING",
    ServableState.END: "UNAVAILABLE",
}


@dataclass(frozen=True)
class InferRequest:
    """What is to be computed.

    Attributes:
        model: The model's name.
        version: Its version or label; the newest when empty.
        inputs: Tensors by name.
        outputs: Outputs to return; all when empty.
        parameters: The request's parameters.
        remaining_s: Seconds that the caller waits for it; for ever if None.
    """

    model: str
    version: str
    inputs: Arrays
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    remaining_s: float | None = None


@dataclass(frozen=True)
class InferResponse:
    """What was computed: outputs in the signature's order, and by which version."""

    model: str
    version: int
    outputs: Arrays


def _choice(version: str) -> tuple[int | None, str]:
    """Split a version as the protocol writes it into number and label."""
    if not version:
        return None, ""
    if version.isascii() and version.isdigit() and len(version) < 19:
        return int(version), ""
    return None, version


class Inference:
    """Answers the protocol's questions about models, and runs them."""

    def __init__(self, servables: Servables, caller: Caller) -> None:
        """Serve ``servables``; ``caller`` runs them."""
        self._servables = servables
        self._caller = caller

    def server_metadata(self) -> dict[str, Any]:
        """Return name, version and extensions of this server."""
        return {
            "name": SERVER_NAME,
            "version": package_version(SERVER_NAME),
            "extensions": ["model_repository", "binary_tensor_data"],
        }

    @property
    def ready(self) -> bool:
        """Whether every model answers."""
        return self._servables.all_ready

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a version answers; False while it is loading.

        Raises:
            ServableNotFound: There is no such model or version.
            InvalidRequest: The model has no such label.
        """
        try:
            with self._servables.use(name, *_choice(version)):
                return True
        except ServableNotReady:
            return False

    def model_metadata(self, name: str, version: str) -> dict[str, Any]:
        """Describe the signature that ``infer`` calls unless told otherwise.

        Raises:
            RequestRefused: There is no such model or version, or it is not ready.
        """
        with self._servables.use(name, *_choice(version)) as servable:
            signature = servable.signature(PREDICT_SIGNATURE)
            return {
                "name": name,
                "versions": [str(number) for number in self._servables.loaded(name)],
                "platform": servable.model.platform,
                "inputs": [_described(spec) for spec in signature.inputs],
                "outputs": [_described(spec) for spec in signature.outputs],
            }

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a model.

        Raises:
            RequestRefused: The request does not fit what is served.
            InvalidRows: The values are none that the model takes.
        """
        name = str(request.parameters.get(SIGNATURE_PARAMETER) or PREDICT_SIGNATURE)
        with self._servables.use(request.model, *_choice(request.version)) as servable:
            signature = servable.signature(name)
            wanted = check_outputs(signature, request.outputs)
            inputs = checked_inputs(
                signature, _named(servable, signature, request.inputs), take_integers=True
            )
            outputs = await self._caller.run(
                servable, name, inputs, wanted, remaining_s=request.remaining_s
            )
            return InferResponse(request.model, servable.version, outputs)

    def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """List every version of every model.

        Args:
            ready: Only those that answer.
        """
        return [
            {
                "name": name,
                "version": str(number),
                "state": _STATES[status.state],
                "reason": status.error,
            }
            for name in self._servables.names
            for number, status in self._statuses(name).items()
            if not ready or status.state is ServableState.AVAILABLE
        ]

    def _statuses(self, name: str) -> Mapping[int, Any]:
        try:
            return self._servables.statuses(name)
        except ServableNotFound:  # declared, and nothing begun yet
            return {}


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1] if spec.shape is None else [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": shape}


def _named(servable: Servable, signature: Signature, inputs: Arrays) -> Arrays:
    """Give a request's tensors the signature's names.

    A single tensor may have any name, as with MLServer, whose models of this kind have no names;
    a table sent as one tensor per column, as its pandas codec does, is put together.
    """
    (first, *more) = signature.inputs
    if more or first.name in inputs:
        return inputs
    if takes_columns(servable, signature, inputs.keys()):
        return joined(servable, inputs)
    if len(inputs) != 1:
        raise InvalidRequest(
            f"the model takes one input, or one per column; sent {{{','.join(sorted(inputs))}}}"
        )
    return {first.name: next(iter(inputs.values()))}
