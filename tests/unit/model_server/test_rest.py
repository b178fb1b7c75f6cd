"""TensorFlow Serving's REST interface, as curl sees it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from model_server.backends import load as load_by_files
from model_server.backends.base import Arrays, Signature, TensorSpec
from model_server.options import ServerOptions
from model_server.server import start

BEGUN = b"Host: x\r\nContent-Length: 90\r\n\r\n{"
COLUMNS = ("amount", "count_5m", "sum_5m", "max_5m", "age_s")


@pytest.fixture
async def web(serving: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with (
        serving() as running,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as opened,
    ):
        yield opened


async def post(web: Any, path: str, document: Any) -> tuple[int, Any]:
    body = {"data": document} if isinstance(document, bytes) else {"json": document}
    async with web.post(f"/v1/models/{path}", **body) as response:
        return response.status, await response.json()


@pytest.fixture
def expected(models_dir: Path, rows: np.ndarray) -> np.ndarray:
    model: Any = load_by_files(models_dir / "fraud" / "10", 1)
    return np.asarray(model.predict(rows))


@pytest.mark.parametrize("path", ["fraud:predict", "fraud/versions/10:predict"])
async def test_row_and_column_format(
    web: Any, rows: np.ndarray, expected: np.ndarray, path: str
) -> None:
    named = [{"inputs": row} for row in rows.tolist()]
    for document, key in (
        ({"instances": rows.tolist()}, "predictions"),
        ({"instances": named, "signature_name": "serving_default"}, "predictions"),
        ({"inputs": rows.tolist()}, "outputs"),
        ({"inputs": {"inputs": rows.tolist()}}, "outputs"),
    ):
        status, answer = await post(web, path, document)
        assert status == 200, answer
        assert np.array_equal(np.array(answer[key], np.float32), expected)


async def test_instances_may_name_columns_and_leave_some_out(web: Any, rows: np.ndarray) -> None:
    filled = rows.astype(float).copy()
    filled[0, 2] = filled[1, 0] = 0.0  # the imputed value
    _, whole = await post(web, "fraud:predict", {"instances": filled.tolist()})
    instances = [dict(zip(COLUMNS, row, strict=True)) for row in rows.tolist()]
    del instances[0]["sum_5m"]
    instances[1]["amount"] = None
    status, answer = await post(web, "fraud:predict", {"instances": instances})
    assert (status, answer) == (200, whole)
    columns = {name: filled[:, index].tolist() for index, name in enumerate(COLUMNS)}
    status, answer = await post(web, "fraud:predict", {"inputs": columns})
    assert (status, answer["outputs"]) == (200, whole["predictions"])


async def test_nan_is_taken_as_a_word(web: Any) -> None:
    status, answer = await post(web, "fraud:predict", b'{"instances": [[NaN, 1, 2, Infinity, 0]]}')
    assert status == 200
    assert 0 <= answer["predictions"][0] <= 1


async def test_classify_and_regress(web: Any, rows: np.ndarray, expected: np.ndarray) -> None:
    examples = [dict(zip(COLUMNS, row, strict=True)) for row in rows.tolist()]
    document = {"examples": [e | {"note": "x"} for e in examples], "context": {"age_s": 1}}
    status, answer = await post(web, "fraud:regress", document)
    assert status == 200
    assert np.array_equal(np.array(answer["result"], np.float32), expected)
    status, answer = await post(web, "fraud:classify", document)
    assert status == 200
    assert [[label for label, _ in entry] for entry in answer["result"]] == [["0", "1"]] * len(rows)
    scores = [entry[1][1] for entry in answer["result"]]
    assert np.array_equal(np.array(scores, np.float32), expected)


async def test_status_and_metadata(web: Any) -> None:
    available = {
        "version": "10",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    for path in ("fraud", "fraud/versions/10"):
        async with web.get(f"/v1/models/{path}") as response:
            assert await response.json() == {"model_version_status": [available]}
        async with web.get(f"/v1/models/{path}/metadata") as response:
            answer = await response.json()
        assert answer["model_spec"]["name"] == "fraud"
        assert answer["model_spec"]["version"] == "10"
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        assert set(signatures) == {"serving_default", "explain", "classify", "regress"}
        assert signatures["serving_default"]["inputs"]["inputs"]["dtype"] == "DT_FLOAT"


@pytest.mark.parametrize(
    ("path", "document", "status", "words"),
    [
        ("other:predict", {"instances": [[0] * 5]}, 404, "Servable not found for request"),
        ("fraud/versions/9:predict", {"instances": [[0] * 5]}, 404, "Specific(fraud, 9)"),
        (f"fraud/versions/{9**30}:predict", {"instances": [[0] * 5]}, 400, "out of range"),
        ("fraud/labels/canary:predict", {"instances": [[0] * 5]}, 400, "label: canary"),
        ("fraud:predict", b"{", 400, "JSON Parse error"),
        ("fraud:predict", b"[" * 100_000, 400, "JSON Parse error"),
        ("fraud:predict", [], 400, "must be a JSON object"),
        ("fraud:predict", {}, 400, "instances"),
        ("fraud:predict", {"instances": [[0] * 5], "inputs": []}, 400, "either"),
        ("fraud:predict", {"instances": []}, 400, "not empty"),
        ("fraud:predict", {"instances": [[0] * 4]}, 400, "shape (1, 4)"),
        ("fraud:predict", {"instances": [[0] * 5, [0] * 4]}, 400, "no even list"),
        ("fraud:predict", {"instances": [["a"] * 5]}, 400, "not float32"),
        ("fraud:predict", {"instances": [{"x": 1}]}, 400, "sent {x}, expected {inputs}"),
        ("fraud:predict", {"instances": [{"amount": "a"}]}, 400, "column amount"),
        ("fraud:predict", {"instances": [{"inputs": 1}, 2]}, 400, "mixes"),
        ("fraud:predict", {"instances": [1], "signature_name": 3}, 400, "signature_name"),
        ("fraud:predict", {"instances": [1], "signature_name": "x"}, 400, "not found"),
        ("fraud:classify", {"examples": [{"amount": "x"}]}, 400, "amount"),
        ("fraud:classify", {}, 400, "examples"),
        ("fraud:nothing", {}, 404, "Not Found"),
    ],
)
async def test_wrong_request_is_refused(
    web: Any, path: str, document: Any, status: int, words: str
) -> None:
    actual, answer = await post(web, path, document)
    assert (actual, words in answer["error"]) == (status, True), answer


class Echo:
    """A model of several inputs and outputs, strings among them."""

    platform = "test"
    signatures: Mapping[str, Signature] = {
        "serving_default": Signature(
            (
                TensorSpec("text", np.dtype(object), (None,)),
                TensorSpec("number", np.dtype(np.int32), (None,)),
            ),
            (
                TensorSpec("text", np.dtype(object), (None,)),
                TensorSpec("raw_bytes", np.dtype(object), (None,)),
                TensorSpec("inverse", np.dtype(np.float64), (None,)),
            ),
        )
    }

    def warm_up(self) -> None: ...

    def close(self) -> None: ...

    def is_quick(self, signature_name: str, rows: int) -> bool:
        return True

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        with np.errstate(divide="ignore"):
            inverse = 1.0 / inputs["number"]
        outputs = {"text": inputs["text"], "raw_bytes": inputs["text"], "inverse": inverse}
        return {name: outputs[name] for name in wanted}


async def test_strings_bytes_and_infinity_go_both_ways(models_dir: Path) -> None:
    options = ServerOptions.of_one_model(models_dir, "fraud", grace_s=0, http_port=0)
    running = await start(options, load_model=lambda folder, threads: Echo())
    b64 = {"b64": base64.b64encode(b"\xff\x00").decode()}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as web:
        instances = [{"text": "ä", "number": 2}, {"text": b64, "number": 0}]
        _, by_row = await post(web, "fraud:predict", {"instances": instances[:1]})
        assert by_row["predictions"] == [
            {"text": "ä", "raw_bytes": {"b64": "w6Q="}, "inverse": 0.5}
        ]
        inputs = {"text": ["ä"], "number": [0]}
        _, by_column = await post(web, "fraud:predict", {"inputs": inputs})
        assert by_column["outputs"]["inverse"] == [float("inf")]
        assert by_column["outputs"]["raw_bytes"] == [{"b64": "w6Q="}]
        status, answer = await post(web, "fraud:predict", {"instances": instances})
        assert status == 200 and answer["predictions"][1]["raw_bytes"] == b64
        for wrong in ({"text": ["a"], "number": [1.5]}, {"text": ["a"], "number": [2**40]}):
            status, answer = await post(web, "fraud:predict", {"inputs": wrong})
            assert (status, "number" in answer["error"]) == (400, True)
        status, answer = await post(
            web, "fraud:predict", {"inputs": {"text": ["a", "b"], "number": [1]}}
        )
        assert (status, "unequal numbers of rows" in answer["error"]) == (400, True)
    await running.stop()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"POST /v1/models/fraud:predict HTTP/1.1\r\nX-Slow: 1\r\n", b""),
        (
            b"POST /v1/models/fraud:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{",
            b"408",
        ),
        (b"POST /v2/models/fraud/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{", b"408"),
    ],
)
async def test_slow_requests_are_ended(serving: Any, sent: bytes, status: bytes) -> None:
    async with serving(http_timeout_s=0.2) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.ports.http)

        async def trickle() -> None:
            writer.write(sent)
            while b"Content-Length" not in sent:
                writer.write(sent and b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(60):
            answer = await reader.read()
        trickling.cancel()
        writer.close()
    assert answer[9:12] == status
