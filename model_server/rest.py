"""TensorFlow Serving's REST interface.

``/v1/models/NAME[/versions/N|/labels/L]`` with ``:predict``, ``:classify``, ``:regress`` and
``/metadata``. Beyond TensorFlow Serving, an instance for a tabular model may name its columns:
``{"instances": [{"amount": 12.5}]}``; absent ones get their imputed value.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from aiohttp import web
from google.protobuf.json_format import (  # type: ignore[import-untyped, unused-ignore]
    MessageToDict,
)

from model_server.backends.base import (
    PREDICT_SIGNATURE,
    Arrays,
    Signature,
    TensorSpec,
    checked_inputs,
)
from model_server.calls import Caller, check_outputs
from model_server.columns import joined, takes_columns
from model_server.descriptions import METADATA_FIELD, metadata_response, status_response
from model_server.errors import InvalidRequest
from model_server.examples import ExampleCalls
from model_server.json_numbers import to_array
from model_server.protos import Example, SignatureDefMap
from model_server.servables import Servable, Servables
from model_server.web import finite, json_response, read_json

__all__ = ["ServingRoutes"]

_MODEL = "/v1/models/{name:[^/:]+}"
_CHOICES = ("", "/versions/{version:[0-9]+}", "/labels/{label:[^/:]+}")


class ServingRoutes:
    """Everything below ``/v1``."""

    def __init__(self, servables: Servables, caller: Caller) -> None:
        """Serve ``servables``; ``caller`` runs them."""
        self._servables = servables
        self._caller = caller
        self._examples = ExampleCalls(caller)

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        return [
            route
            for choice in _CHOICES
            for route in (
                web.post(f"{_MODEL}{choice}:predict", self._predict),
                web.post(f"{_MODEL}{choice}:classify", self._classify),
                web.post(f"{_MODEL}{choice}:regress", self._regress),
                web.get(f"{_MODEL}{choice}/metadata", self._metadata),
                web.get(f"{_MODEL}{choice}", self._status),
            )
        ]

    async def _predict(self, request: web.Request) -> web.Response:
        document = await _object(request)
        name = _text(document, "signature_name") or PREDICT_SIGNATURE
        with self._servables.use(*_wanted(request)) as servable:
            signature = servable.signature(name)
            by_row = "instances" in document
            if by_row == ("inputs" in document):
                raise InvalidRequest('give either "instances" or "inputs"')
            arrays = (
                _from_instances(servable, signature, document["instances"])
                if by_row
                else _from_inputs(servable, signature, document["inputs"])
            )
            inputs = checked_inputs(signature, arrays)
            outputs = await self._caller.run(servable, name, inputs, check_outputs(signature, ()))
        return _rows(outputs, len(document["instances"])) if by_row else _columns(outputs)

    async def _classify(self, request: web.Request) -> web.Response:
        document = await _object(request)
        with self._servables.use(*_wanted(request)) as servable:
            outputs = await self._examples.classify(
                servable, _text(document, "signature_name"), _examples(document)
            )
        shape = next(iter(outputs.values())).shape
        classes = outputs.get("classes", np.full(shape, b"", dtype=object)).tolist()
        scores = outputs.get("scores", np.zeros(shape)).astype(np.float64).tolist()
        return json_response(
            {
                "result": [
                    list(zip(labels, values, strict=True))
                    for labels, values in zip(classes, scores, strict=True)
                ]
            }
        )

    async def _regress(self, request: web.Request) -> web.Response:
        document = await _object(request)
        with self._servables.use(*_wanted(request)) as servable:
            values = await self._examples.regress(
                servable, _text(document, "signature_name"), _examples(document)
            )
        return _sent({"result": values})

    async def _metadata(self, request: web.Request) -> web.Response:
        with self._servables.use(*_wanted(request)) as servable:
            response = metadata_response(servable)
        signatures = SignatureDefMap()
        response.metadata[METADATA_FIELD].Unpack(signatures)
        return json_response(
            {
                "model_spec": _as_json(response.model_spec) | {"signature_name": ""},
                "metadata": {METADATA_FIELD: _as_json(signatures)},
            }
        )

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(_as_json(status_response(self._servables, *_wanted(request))))


def _wanted(request: web.Request) -> tuple[str, int | None, str]:
    found = request.match_info
    version = found.get("version")
    if version is not None and len(version) > 18:
        raise InvalidRequest(f"version {version} is out of range")
    return found["name"], None if version is None else int(version), found.get("label", "")


async def _object(request: web.Request) -> dict[str, Any]:
    document = await read_json(request)
    if not isinstance(document, dict):
        raise InvalidRequest("Request body must be a JSON object")
    return document


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise InvalidRequest(f"'{key}' key must be a string value")
    return value


def _as_json(message: Any) -> dict[str, Any]:
    document: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, including_default_value_fields=True
    )
    return document


def _is_bytes(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _from_instances(servable: Servable, signature: Signature, instances: Any) -> Arrays:
    """Take the row format: a value per row, or an object of named values per row."""
    if not isinstance(instances, list) or not instances:
        raise InvalidRequest("'instances' must be a list that is not empty")
    named = [isinstance(row, dict) and not _is_bytes(row) for row in instances]
    if not any(named):
        return {_only(signature).name: _to_array(_only(signature), instances)}
    if not all(named):
        raise InvalidRequest("'instances' mixes objects with plain values")
    keys = {key for row in instances for key in row}
    if takes_columns(servable, signature, keys):
        return _table(servable, {key: [row.get(key) for row in instances] for key in keys})
    if any(row.keys() != keys for row in instances):
        raise InvalidRequest("'instances' name unequal inputs")
    return {key: _to_array(_spec(signature, key), [row[key] for row in instances]) for key in keys}


def _from_inputs(servable: Servable, signature: Signature, inputs: Any) -> Arrays:
    """Take the columnar format: a value, or an object of named values."""
    if not isinstance(inputs, dict) or _is_bytes(inputs):
        return {_only(signature).name: _to_array(_only(signature), inputs)}
    if takes_columns(servable, signature, inputs.keys()):
        return _table(servable, inputs)
    return {key: _to_array(_spec(signature, key), value) for key, value in inputs.items()}


def _table(servable: Servable, columns: Mapping[str, Any]) -> Arrays:
    """Put named columns together; a null is a missing value."""
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = np.array(values, dtype=np.float64)
        except (TypeError, ValueError) as exc:
            raise InvalidRequest(f"column {name} must be numbers") from exc
    return joined(servable, arrays)


def _only(signature: Signature) -> TensorSpec:
    if len(signature.inputs) > 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise InvalidRequest(f"the signature has several inputs, name them: {names}")
    return signature.inputs[0]


def _spec(signature: Signature, name: str) -> TensorSpec:
    for spec in signature.inputs:
        if spec.name == name:
            return spec
    known = ",".join(sorted(spec.name for spec in signature.inputs))
    raise InvalidRequest(
        f"input size does not match signature: sent {{{name}}}, expected {{{known}}}"
    )


def _to_array(spec: TensorSpec, values: Any) -> npt.NDArray[Any]:
    """Convert nested lists to a tensor of a spec's type.

    Raises:
        InvalidRequest: They are uneven, or hold values of another type.
    """
    if spec.dtype.kind == "O":
        return _strings(values)
    return to_array(spec.name, str(spec.dtype), spec.dtype, values)


def _strings(values: Any) -> npt.NDArray[Any]:
    if isinstance(values, list):
        parts = [_strings(value) for value in values]
        if len({part.shape for part in parts}) > 1:
            raise InvalidRequest("a string input is no even list")
        array = np.empty((len(parts), *(parts[0].shape if parts else ())), dtype=object)
        for index, part in enumerate(parts):
            array[index] = part if part.shape else part.item()
        return array
    array = np.empty((), dtype=object)
    array[()] = _as_bytes(values)
    return array


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if _is_bytes(value) and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as exc:
            raise InvalidRequest("Unable to base64 decode") from exc
    raise InvalidRequest("a string input takes text or an object with b64")


def _examples(document: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return the serialized examples of a classify or regress request, (n,)."""
    rows, context = document.get("examples"), document.get("context", {})
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest("'examples' must be a list that is not empty")
    if not isinstance(context, dict) or not all(isinstance(row, dict) for row in rows):
        raise InvalidRequest("'examples' and 'context' must hold objects")
    array = np.empty(len(rows), dtype=object)
    array[:] = [_example(context | row) for row in rows]
    return array


def _example(values: Mapping[str, Any]) -> bytes:
    message = Example()
    for name, value in values.items():
        feature = message.features.feature[name]
        parts = value if isinstance(value, list) else [value]
        try:
            if all(type(part) is int for part in parts):
                feature.int64_list.value.extend(parts)
            elif all(type(part) in (int, float) for part in parts):
                feature.float_list.value.extend(parts)
            else:
                feature.bytes_list.value.extend(_as_bytes(part) for part in parts)
        except (ValueError, OverflowError) as exc:
            raise InvalidRequest(f"feature {name} has a value out of range") from exc
    return bytes(message.SerializeToString())


def _rows(outputs: Arrays, count: int) -> web.Response:
    """Answer row by row, as the request came."""
    for name, values in outputs.items():
        if not values.ndim or len(values) != count:
            raise InvalidRequest(
                f"Tensor name: {name} has inconsistent batch size: "
                f"{len(values) if values.ndim else 0} expecting: {count}"
            )
    if len(outputs) == 1:
        return _sent({"predictions": next(_readable(outputs))[1]})
    columns = {name: _listed(values) for name, values in _readable(outputs)}
    rows = zip(*columns.values(), strict=True)
    return _sent({"predictions": [dict(zip(columns, row, strict=True)) for row in rows]})


def _columns(outputs: Arrays) -> web.Response:
    if len(outputs) == 1:
        return _sent({"outputs": next(_readable(outputs))[1]})
    return _sent({"outputs": dict(_readable(outputs))})


def _readable(outputs: Arrays) -> Iterator[tuple[str, Any]]:
    """Outputs as JSON can hold them: NaN as a word, ``*_bytes`` in base64."""
    for name, values in outputs.items():
        if values.dtype.kind == "O":
            yield name, _texts(values.tolist(), name.endswith("_bytes"))
        else:
            yield name, values


def _texts(values: Any, as_base64: bool) -> Any:
    if isinstance(values, list):
        return [_texts(value, as_base64) for value in values]
    data: bytes = values if isinstance(values, bytes) else str(values).encode()
    return {"b64": base64.b64encode(data).decode()} if as_base64 else data


def _listed(values: Any) -> list[Any]:
    return list(values.tolist()) if isinstance(values, np.ndarray) else values


def _sent(document: Mapping[str, Any]) -> web.Response:
    """Answer; with NaN and Infinity as words if there are any, as TensorFlow Serving does."""
    (body,) = document.values()
    parts = body.values() if isinstance(body, dict) else [body]
    if all(finite(part) for part in parts if isinstance(part, np.ndarray)):
        return json_response(document)
    plain = {key: _plain(value) for key, value in document.items()}
    return web.Response(text=json.dumps(plain, default=_decoded), content_type="application/json")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return _listed(value)


def _decoded(value: Any) -> Any:
    return value.decode(errors="replace")
