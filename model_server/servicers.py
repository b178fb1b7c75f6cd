"""TensorFlow Serving's gRPC services over ``Servables``: convert, call, convert."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model_server.backends.base import (
    PREDICT_SIGNATURE,
    Arrays,
    Signature,
    TensorSpec,
    checked_inputs,
)
from model_server.calls import Caller, check_outputs
from model_server.descriptions import METADATA_FIELD, METHODS, metadata_response, status_response
from model_server.errors import InvalidRequest
from model_server.examples import ExampleCalls, serialized
from model_server.grpc_status import answering
from model_server.protos import (
    ClassificationResponse,
    ModelServiceServicer,
    MultiInferenceResponse,
    PredictionServiceServicer,
    PredictResponse,
    RegressionResponse,
    ReloadConfigResponse,
)
from model_server.repository_calls import RepositoryCalls
from model_server.servables import Servable, Servables
from model_server.tensors import from_proto, to_proto
from model_server.tf_config import model_configs

__all__ = ["ModelService", "PredictionService"]


def requested(spec: Any) -> tuple[str, int | None, str]:
    """Return the name, version and label of a ModelSpec."""
    version = int(spec.version.value) if spec.HasField("version") else None
    return spec.name, version, spec.version_label


def _spec_of(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise InvalidRequest("Missing ModelSpec")
    return request.model_spec


class PredictionService(PredictionServiceServicer):  # type: ignore[misc, unused-ignore]
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, servables: Servables, caller: Caller) -> None:
        """Serve ``servables``; ``caller`` runs them."""
        self._servables = servables
        self._caller = caller
        self._examples = ExampleCalls(caller)

    @answering
    async def Predict(self, request: Any, context: Any) -> Any:
        """Call any signature with tensors."""
        spec = _spec_of(request)
        name = spec.signature_name or PREDICT_SIGNATURE
        with self._servables.use(*requested(spec)) as servable:
            signature = servable.signature(name)
            wanted = check_outputs(signature, list(request.output_filter))
            arrays = {alias: from_proto(proto) for alias, proto in request.inputs.items()}
            inputs = checked_inputs(signature, arrays)
            outputs = await self._caller.run(
                servable, name, inputs, wanted, remaining_s=context.time_remaining()
            )
            return _predict_response(servable, name, signature, outputs)

    @answering
    async def Classify(self, request: Any, context: Any) -> Any:
        """Call a classify signature with tf.Examples."""
        spec = _spec_of(request)
        with self._servables.use(*requested(spec)) as servable:
            response = ClassificationResponse()
            outputs = await self._examples.classify(
                servable, spec.signature_name, serialized(request.input), context.time_remaining()
            )
            _add_classifications(response.result, outputs)
            _set_spec(response.model_spec, servable, spec.signature_name)
            return response

    @answering
    async def Regress(self, request: Any, context: Any) -> Any:
        """Call a regress signature with tf.Examples."""
        spec = _spec_of(request)
        with self._servables.use(*requested(spec)) as servable:
            response = RegressionResponse()
            outputs = await self._examples.regress(
                servable, spec.signature_name, serialized(request.input), context.time_remaining()
            )
            _add_regressions(response.result, outputs)
            _set_spec(response.model_spec, servable, spec.signature_name)
            return response

    @answering
    async def MultiInference(self, request: Any, context: Any) -> Any:
        """Call several classify and regress signatures of one model with one input."""
        if not request.tasks:
            raise InvalidRequest("MultiInferenceRequest must specify at least one task")
        _check_tasks(request.tasks)
        response = MultiInferenceResponse()
        with self._servables.use(*requested(_spec_of(request.tasks[0]))) as servable:
            strings = serialized(request.input)
            for task in request.tasks:
                result = response.results.add()
                name, left_s = task.model_spec.signature_name, context.time_remaining()
                if task.method_name == f"{METHODS}classify":
                    outputs = await self._examples.classify(servable, name, strings, left_s)
                    _add_classifications(result.classification_result, outputs)
                elif task.method_name == f"{METHODS}regress":
                    values = await self._examples.regress(servable, name, strings, left_s)
                    _add_regressions(result.regression_result, values)
                else:
                    raise InvalidRequest(f"Unsupported signature method_name: {task.method_name}")
                _set_spec(result.model_spec, servable, name)
            return response

    @answering
    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        """Describe the signatures of a version."""
        spec = _spec_of(request)
        fields = set(request.metadata_field)
        if not fields:
            raise InvalidRequest("GetModelMetadataRequest must specify at least one metadata_field")
        if fields != {METADATA_FIELD}:
            unknown = min(fields - {METADATA_FIELD})
            raise InvalidRequest(f"Metadata field {unknown} is not supported")
        with self._servables.use(*requested(spec)) as servable:
            return metadata_response(servable)


class ModelService(ModelServiceServicer):  # type: ignore[misc, unused-ignore]
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, servables: Servables, repository: RepositoryCalls) -> None:
        """Report on ``servables``; reconfigure with ``repository``."""
        self._servables = servables
        self._repository = repository

    @answering
    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        """Report the status of one version, or of all."""
        return status_response(self._servables, *requested(_spec_of(request)))

    @answering
    async def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        """Replace the configuration: serve the models that it names, and no others."""
        await self._repository.configure(model_configs(request.config))
        response = ReloadConfigResponse()
        response.status.SetInParent()
        return response


def _check_tasks(tasks: Any) -> None:
    if len({task.model_spec.name for task in tasks}) > 1:
        raise InvalidRequest("All ModelSpecs in a MultiInferenceRequest must access the same model")
    names = [(task.method_name, task.model_spec.signature_name) for task in tasks]
    if len(set(names)) < len(names):
        twice = next(name for _, name in names if [n for _, n in names].count(name) > 1)
        raise InvalidRequest(f"Duplicate evaluation of signature: {twice}")


def _add_classifications(result: Any, outputs: Arrays) -> None:
    classes, scores = outputs.get("classes"), outputs.get("scores")
    shape = next(iter(outputs.values())).shape
    for row in range(shape[0]):
        entry = result.classifications.add()
        for column in range(shape[1]):
            label = "" if classes is None else classes[row, column]
            score = 0.0 if scores is None else scores[row, column]
            entry.classes.add(label=label, score=score)


def _add_regressions(result: Any, values: npt.NDArray[Any]) -> None:
    for value in values.tolist():
        result.regressions.add(value=value)


def _set_spec(spec: Any, servable: Servable, signature_name: str = "") -> None:
    spec.name = servable.name
    spec.version.value = servable.version
    spec.signature_name = signature_name


def _predict_response(
    servable: Servable, signature_name: str, signature: Signature, outputs: Arrays
) -> Any:
    response = PredictResponse()
    _set_spec(response.model_spec, servable, signature_name)
    for spec in signature.outputs:
        if spec.name in outputs:
            response.outputs[spec.name].CopyFrom(to_proto(_as_sent(outputs[spec.name], spec)))
    return response


def _as_sent(values: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    return values if spec.dtype == np.dtype(object) else values.astype(spec.dtype, copy=False)
