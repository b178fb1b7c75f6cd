"""The Open Inference Protocol over HTTP, with the binary data extension."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt
from aiohttp import web

from model_server.errors import InvalidRequest
from model_server.oip import tensors
from model_server.oip.inference import Inference, InferRequest, InferResponse
from model_server.repository_calls import RepositoryCalls
from model_server.web import dumps, json_response, parse_json, read_body, read_json

__all__ = ["InferenceRoutes"]

_HEADER = "Inference-Header-Content-Length"
_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"
_BINARY = "application/octet-stream"


class InferenceRoutes:
    """Everything below ``/v2``."""

    def __init__(self, inference: Inference, repository: RepositoryCalls) -> None:
        """Answer with ``inference``; load and unload with ``repository``."""
        self._inference = inference
        self._repository = repository

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes."""
        per_model = [
            route
            for path in (_MODEL, _VERSION)
            for route in (
                web.get(path, self._metadata),
                web.get(f"{path}/ready", self._model_ready),
                web.post(f"{path}/infer", self._infer),
            )
        ]
        return [
            web.get("/v2", self._server_metadata),
            web.get("/v2/health/live", self._live),
            web.get("/v2/health/ready", self._ready),
            web.post("/v2/repository/index", self._index),
            web.post("/v2/repository/models/{name}/load", self._load),
            web.post("/v2/repository/models/{name}/unload", self._unload),
            *per_model,
        ]

    async def _server_metadata(self, request: web.Request) -> web.Response:
        return json_response(self._inference.server_metadata())

    async def _live(self, request: web.Request) -> web.Response:
        return json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        ready = self._inference.ready
        return json_response(
            {"ready": ready}, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        )

    async def _model_ready(self, request: web.Request) -> web.Response:
        name, version = _named(request)
        ready = self._inference.model_ready(name, version)
        return json_response(
            {"name": name, "ready": ready},
            HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE,
        )

    async def _metadata(self, request: web.Request) -> web.Response:
        return json_response(self._inference.model_metadata(*_named(request)))

    async def _infer(self, request: web.Request) -> web.Response:
        name, version = _named(request)
        document, binary = await _split(request)
        outputs = _listed(document, "outputs")
        answer = await self._inference.infer(
            InferRequest(
                name,
                version,
                _inputs(_listed(document, "inputs"), binary),
                [_text(output, "name", "outputs") for output in outputs],
                _parameters(document),
            )
        )
        return _response(document, answer)

    async def _index(self, request: web.Request) -> web.Response:
        document = await read_json(request) if request.can_read_body else {}
        if not isinstance(document, dict):
            raise InvalidRequest("the body must be an object")
        return json_response(self._inference.index(ready=bool(document.get("ready"))))

    async def _load(self, request: web.Request) -> web.Response:
        await self._repository.load(request.match_info["name"])
        return web.Response()

    async def _unload(self, request: web.Request) -> web.Response:
        await self._repository.unload(request.match_info["name"])
        return web.Response()


def _named(request: web.Request) -> tuple[str, str]:
    return request.match_info["name"], request.match_info.get("version", "")


async def _split(request: web.Request) -> tuple[dict[str, Any], memoryview]:
    """Return a request's JSON and the binary data behind it."""
    body = await read_body(request)
    length = len(body)
    if _HEADER in request.headers:
        text = request.headers[_HEADER]
        if not (text.isascii() and text.isdigit() and int(text) <= len(body)):
            raise InvalidRequest(f"{_HEADER} is {text!r}, must be a length within the body")
        length = int(text)
    document = parse_json(body[:length])
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be an object")
    return document, memoryview(body)[length:]


def _listed(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = document.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequest(f'"{key}" must be a list of objects')
    return entries


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest('"parameters" must be an object')
    return parameters


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f'an entry of "{where}" has no "{key}"')
    return value


def _inputs(entries: list[Mapping[str, Any]], binary: memoryview) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    at = 0
    for entry in entries:
        name, datatype = _text(entry, "name", "inputs"), _text(entry, "datatype", "inputs")
        if name in arrays:
            raise InvalidRequest(f"input {name} is sent twice")
        shape = entry.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise InvalidRequest(f'input {name}: "shape" must be a list of whole numbers')
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            arrays[name] = tensors.from_json(name, datatype, shape, entry.get("data"))
            continue
        if type(size) is not int or not 0 <= size <= len(binary) - at:
            raise InvalidRequest(f"input {name} has no {size} bytes of binary data")
        arrays[name] = tensors.from_raw(name, datatype, shape, bytes(binary[at : at + size]))
        at += size
    if at != len(binary):
        raise InvalidRequest(f"{len(binary) - at} bytes of binary data belong to no input")
    return arrays


def _response(document: Mapping[str, Any], answer: InferResponse) -> web.Response:
    asked = {output["name"]: output for output in _listed(document, "outputs")}
    all_binary = bool(_parameters(document).get("binary_data_output", False))
    outputs, blobs = [], []
    for name, array in answer.outputs.items():
        entry: dict[str, Any] = {
            "name": name,
            "datatype": tensors.datatype_of(array.dtype),
            "shape": array.shape,
        }
        if _parameters(asked.get(name, {})).get("binary_data", all_binary):
            blobs.append(tensors.to_raw(array))
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = _json_data(array)
        outputs.append(entry)
    body: dict[str, Any] = {"model_name": answer.model, "model_version": str(answer.version)}
    if isinstance(document.get("id"), str):
        body["id"] = document["id"]
    header = dumps(body | {"outputs": outputs})
    if not blobs:
        return web.Response(body=header, content_type="application/json")
    return web.Response(
        body=b"".join([header, *blobs]),
        content_type=_BINARY,
        headers={_HEADER: str(len(header))},
    )


def _json_data(array: npt.NDArray[Any]) -> Any:
    if array.dtype.kind == "O" or array.dtype == np.float16:
        return tensors.to_json(array)
    return np.ascontiguousarray(array.ravel())
