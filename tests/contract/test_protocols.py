"""Every way into the server gives each model's own library's score."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_server.backends.python_class import loader
from model_server.lifecycle import ModelConfig
from model_server.oip import tensors as oip
from model_server.oip.messages import message, stub
from model_server.options import Ports, ServerOptions
from model_server.protos import PredictionServiceStub, PredictRequest, RegressionRequest
from model_server.server import start
from model_server.tensors import from_proto, to_proto
from tests.support import models, torch_models

TOLERANCE = 1e-6
EXAMPLES = 250  # times 12 protocols and 6 kinds of models: 18,000 requests
DEADLINE_S = 60.0

Rows = np.ndarray
Ask = Callable[["Client", str, Rows], Rows]


class Client:
    """One connection to each port."""

    def __init__(self, ports: Ports) -> None:
        assert ports.http is not None
        self.channel = grpc.insecure_channel(f"127.0.0.1:{ports.grpc}")
        self.http = http.client.HTTPConnection("127.0.0.1", ports.http, timeout=DEADLINE_S)

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> Any:
        self.http.request("POST", path, body, headers or {})
        answer = self.http.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return content, answer.headers


def predict(encode: Callable[[Rows], Any]) -> Ask:
    def ask(client: Client, model: str, rows: Rows) -> Rows:
        request = PredictRequest()
        request.model_spec.name = model
        request.inputs["inputs"].CopyFrom(encode(rows))
        response = PredictionServiceStub(client.channel).Predict(request, timeout=DEADLINE_S)
        return from_proto(response.outputs["scores"])

    return ask


def repeated(rows: Rows) -> Any:
    proto = to_proto(rows)
    proto.tensor_content = b""
    proto.float_val.extend(rows.ravel().tolist())
    return proto


def regress(client: Client, model: str, rows: Rows) -> Rows:
    request = RegressionRequest()
    request.model_spec.name = model
    for row in rows.tolist():
        example = request.input.example_list.examples.add()
        for name, value in zip(models.NAMES, row, strict=True):
            if not np.isnan(value):
                example.features.feature[name].float_list.value.append(value)
    response = PredictionServiceStub(client.channel).Regress(request, timeout=DEADLINE_S)
    return np.array([entry.value for entry in response.result.regressions])


def rest_rows(client: Client, model: str, rows: Rows) -> Rows:
    body = json.dumps({"instances": rows.tolist()}).encode()
    return np.array(json.loads(client.post(f"/v1/models/{model}:predict", body)[0])["predictions"])


def rest_columns(client: Client, model: str, rows: Rows) -> Rows:
    body = json.dumps({"inputs": {"inputs": rows.tolist()}}).encode()
    return np.array(json.loads(client.post(f"/v1/models/{model}:predict", body)[0])["outputs"])


def rest_names(client: Client, model: str, rows: Rows) -> Rows:
    instances = [
        {n: v for n, v in zip(models.NAMES, row, strict=True) if n == "a" or not np.isnan(v)}
        for row in rows.tolist()
    ]
    body = json.dumps({"instances": instances}).encode()
    return np.array(json.loads(client.post(f"/v1/models/{model}:predict", body)[0])["predictions"])


def oip_grpc(raw: bool) -> Ask:
    def ask(client: Client, model: str, rows: Rows) -> Rows:
        request = message("ModelInferRequest")(model_name=model)
        tensor = request.inputs.add(name="inputs")
        if raw:
            tensor.datatype = "FP32"
            tensor.shape.extend(rows.shape)
            request.raw_input_contents.append(oip.to_raw(rows))
        else:
            oip.fill_contents(tensor, rows)
        response = stub(client.channel, "ModelInfer")(request, timeout=DEADLINE_S)
        output = response.outputs[0]
        if raw:
            return oip.from_raw("x", "FP32", tuple(output.shape), response.raw_output_contents[0])
        return oip.from_contents(output)

    return ask


def oip_tensor(rows: Rows, **more: Any) -> dict[str, Any]:
    return {"name": "inputs", "datatype": "FP32", "shape": list(rows.shape)} | more


def oip_json(client: Client, model: str, rows: Rows) -> Rows:
    data = [None if np.isnan(value) else value for value in rows.ravel().tolist()]
    body = json.dumps({"inputs": [oip_tensor(rows, data=data)]}).encode()
    content, _ = client.post(f"/v2/models/{model}/infer", body)
    return np.array(json.loads(content)["outputs"][0]["data"])


def oip_binary(client: Client, model: str, rows: Rows) -> Rows:
    data = oip.to_raw(rows)
    tensor = oip_tensor(rows, parameters={"binary_data_size": len(data)})
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(document).encode()
    name = "Inference-Header-Content-Length"
    content, headers = client.post(f"/v2/models/{model}/infer", head + data, {name: str(len(head))})
    return np.frombuffer(content[int(headers[name]) :], np.float32)


def oip_columns(client: Client, model: str, rows: Rows) -> Rows:
    request = message("ModelInferRequest")(model_name=model)
    for index, name in enumerate(models.NAMES):
        oip.fill_contents(request.inputs.add(name=name), rows[:, index : index + 1])
    response = stub(client.channel, "ModelInfer")(request, timeout=DEADLINE_S)
    return oip.from_contents(response.outputs[0])


PROTOCOLS: dict[str, Ask] = {
    "predict": predict(to_proto),
    "predict_float64": predict(lambda rows: to_proto(rows.astype(np.float64))),
    "predict_repeated": predict(repeated),
    "regress": regress,
    "rest_rows": rest_rows,
    "rest_columns": rest_columns,
    "rest_names": rest_names,
    "oip_grpc_raw": oip_grpc(raw=True),
    "oip_grpc_contents": oip_grpc(raw=False),
    "oip_json": oip_json,
    "oip_binary": oip_binary,
    "oip_columns": oip_columns,
}
#: They fill in what is missing, as in training; the others send it as it is.
IMPUTING = frozenset({"regress", "rest_names", "oip_columns"})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, dict[str, Any]]]:
    """A server of one model of each kind, in a thread of its own."""
    folder = tmp_path_factory.mktemp("models")
    python = torch_models.find()
    kinds = [kind for kind in models.FOLDERS if python or kind not in models.REMOTE]
    scores = {kind: models.FOLDERS[kind](folder / kind / "1") for kind in kinds}
    configs = tuple(
        ModelConfig(kind, folder, load=loader(models.PYTHON_CLASS))
        if kind == "python_class"
        else ModelConfig(kind, folder)
        for kind in kinds
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    options = ServerOptions(configs, http_port=0, grace_s=0.0, model_python=python)
    running = asyncio.run_coroutine_threadsafe(start(options), loop).result(DEADLINE_S)
    client = Client(running.ports)
    yield client, scores
    client.channel.close()
    client.http.close()
    asyncio.run_coroutine_threadsafe(running.stop(), loop).result(DEADLINE_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


# In another order a sum of larger numbers that nearly cancel differs by more than the tolerance.
VALUES = st.floats(-10, 10, width=32) | st.just(float("nan"))
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(5)), elements=VALUES)


@pytest.mark.parametrize("kind", list(models.FOLDERS))
def test_every_protocol_gives_the_librarys_score(served: Any, kind: str) -> None:
    client, scores = served
    if kind in models.REMOTE:
        torch_models.torch_python()
    # scikit-learn's Isolation Forest takes no missing values.
    imputed = np.float32(0.0) if kind == "isolation_forest" else np.float32(np.nan)

    @settings(max_examples=EXAMPLES)
    @given(ROWS)
    def check(rows: Rows) -> None:
        filled = np.where(np.isnan(rows), imputed, rows)
        clean = filled if kind == "isolation_forest" else rows
        expected = scores[kind](filled)
        for name, ask in PROTOCOLS.items():
            answer = ask(client, kind, rows if name in IMPUTING else clean)
            assert answer.shape == expected.shape, name
            assert np.abs(answer - expected).max() < TOLERANCE * max(1.0, np.abs(expected).max()), (
                name
            )

    check()
