"""The log in both formats."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest

from model_server import logs
from model_server.call_record import CallRecord, Observers, recorded
from model_server.protos import PredictionServiceStub

logger = logging.getLogger("model_server.test")


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was afterwards."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield root
    root.handlers, root.level = before


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.usefixtures("root")
def test_json_has_the_fields_as_they_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logger.info("event=loaded model=%s version=%d took_ms=%.0f", "a b", 3, 12.5)
    logger.error("event=load_failed model=%s version=%d message=%s", "m", 1, 'no "x": y=z')
    logger.info("event=compiling message=once per machine, for some seconds")
    logger.info("of another library: %s", "x=1")
    first, second, third, fourth = lines(capsys)
    assert first.pop("time").endswith("+00:00")
    expected = {"event": "loaded", "model": "a b", "version": 3, "took_ms": 12.5}
    assert first == expected | {"level": "INFO", "logger": "model_server.test"}
    assert (second["level"], second["message"]) == ("ERROR", 'no "x": y=z')
    assert third["message"] == "once per machine, for some seconds"
    assert fourth["text"] == "of another library: x=1"


@pytest.mark.usefixtures("root")
def test_what_is_logged_during_a_call_has_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("text", "json"):
        logs.configure(form)  # type: ignore[arg-type]
        with recorded(CallRecord("GRPC", "Predict", "abc"), Observers([])):
            try:
                raise ValueError("inside")
            except ValueError:
                logger.exception("event=call_failed method=%s", "Predict")
        logger.info("event=after")
    text, *_, after, document, later = capsys.readouterr().err.splitlines()
    assert text.endswith("event=call_failed method=Predict request_id=abc")
    assert "request_id" not in after + later
    assert json.loads(document)["request_id"] == "abc"
    assert "ValueError: inside" in json.loads(document)["error"]


@pytest.mark.usefixtures("root")
async def test_calls_are_logged_with_the_callers_id(
    serving: Any, predict_request: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json")
    async with serving(log_calls=True) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            await PredictionServiceStub(channel).Predict(
                predict_request(np.zeros((1, 5), np.float32)), metadata=[("x-request-id", "one")]
            )
        async with aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as web:
            for given in ("two", "x" * 200):
                headers = {"X-Request-Id": given}
                async with web.get("/v1/models/nobody", headers=headers) as response:
                    assert response.status == 404
                    assert (response.headers["X-Request-Id"] == given) == (given == "two")
    calls = [line for line in lines(capsys) if line.get("event") == "call"]
    assert [(c["call"], c["status"], c["model"], c["version"]) for c in calls] == [
        ("Predict", "OK", "fraud", 10),
        ("model", "NOT_FOUND", "", 0),
        ("model", "NOT_FOUND", "", 0),
    ]
    assert [call["request_id"] for call in calls[:2]] == ["one", "two"]
    assert len(calls[2]["request_id"]) == 32
