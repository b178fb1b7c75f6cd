"""tf.Example to columns, and the calls that take it, through TensorFlow Serving's own stubs."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from model_server.errors import InvalidRequest
from model_server.examples import serialized, to_rows
from model_server.protos import (
    ClassificationRequest,
    Example,
    MultiInferenceRequest,
    PredictionServiceStub,
    RegressionRequest,
)
from model_server.repository import Feature, FeatureList
from model_server.tensors import from_proto

COLUMNS = FeatureList((Feature("amount", 0.0), Feature("age_s", None)), "")
NAMES = ("amount", "count_5m", "sum_5m", "max_5m", "age_s")
Code = grpc.StatusCode


def example(**values: Any) -> Any:
    message = Example()
    for name, value in values.items():
        feature = message.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.float_list.value.extend(value if isinstance(value, list) else [value])
    return message


def parsed(*examples: Any) -> Any:
    array = np.array([message.SerializeToString() for message in examples], dtype=object)
    return to_rows(array, COLUMNS)


def test_numbers_integers_and_missing_values() -> None:
    rows = parsed(
        example(amount=1.5, age_s=2.0, other=b"ignored"),
        example(amount=3, age_s=[]),
        example(),
    )
    assert rows.dtype == np.float32
    assert np.array_equal(rows, [[1.5, 2], [3, np.nan], [0, np.nan]], equal_nan=True)


@pytest.mark.parametrize("wrong", [example(amount=b"x"), example(amount=[1.0, 2.0])])
def test_feature_that_is_no_single_number_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidRequest, match="amount"):
        parsed(wrong)


@pytest.mark.parametrize("data", [b"\xff", "text", 3])
def test_what_is_no_example_is_refused(data: Any) -> None:
    with pytest.raises(InvalidRequest, match="Could not parse example"):
        to_rows(np.array([data], dtype=object), COLUMNS)


def test_context_is_merged_and_the_example_wins() -> None:
    request = ClassificationRequest()
    group = request.input.example_list_with_context
    group.context.CopyFrom(example(amount=1.0, age_s=5.0))
    group.examples.extend([example(amount=2.0), example()])
    rows = to_rows(serialized(request.input), COLUMNS)
    assert rows.tolist() == [[2.0, 5.0], [1.0, 5.0]]


def fill(message: Any, rows: np.ndarray) -> None:
    for row in rows:
        values = dict(zip(NAMES, row.tolist(), strict=True))
        message.input.example_list.examples.append(example(**values))


async def test_classify_and_regress_give_predicts_scores(
    serving: Any, predict_request: Any, rows: np.ndarray
) -> None:
    classify, regress, both = ClassificationRequest(), RegressionRequest(), MultiInferenceRequest()
    for request in (classify, regress, both):
        fill(request, rows)
    for method in ("classify", "regress"):
        task = both.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "fraud"
        task.model_spec.signature_name = method
    classify.model_spec.name = regress.model_spec.name = "fraud"
    async with (
        serving() as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        stub = PredictionServiceStub(channel)
        predicted = await stub.Predict(predict_request(rows))
        classified = await stub.Classify(classify)
        regressed = await stub.Regress(regress)
        inferred = await stub.MultiInference(both)
    scores = from_proto(predicted.outputs["scores"]).tolist()
    assert [entry.value for entry in regressed.result.regressions] == scores
    entries = classified.result.classifications
    assert [[c.label for c in entry.classes] for entry in entries] == [["0", "1"]] * len(rows)
    assert [entry.classes[1].score for entry in entries] == scores
    assert classified.model_spec.version.value == regressed.model_spec.version.value == 10
    assert inferred.results[0].classification_result == classified.result
    assert inferred.results[1].regression_result == regressed.result


def classify_request(**changes: Any) -> Any:
    request = ClassificationRequest()
    request.model_spec.name = changes.get("name", "fraud")
    request.model_spec.signature_name = changes.get("signature", "")
    request.input.example_list.examples.extend(changes.get("examples", [example(amount=1.0)]))
    return request


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"name": "other"}, Code.NOT_FOUND, "Servable not found"),
        ({"signature": "nope"}, Code.FAILED_PRECONDITION, "not found"),
        (
            {"signature": "serving_default"},
            Code.INVALID_ARGUMENT,
            "Expected classification signature method_name to be tensorflow/serving/classify. "
            "Was: tensorflow/serving/predict",
        ),
        ({"examples": []}, Code.INVALID_ARGUMENT, "Input is empty"),
        ({"examples": [example(amount=b"x")]}, Code.INVALID_ARGUMENT, "amount"),
    ],
)
async def test_wrong_classify_is_refused(
    serving: Any, changes: dict[str, Any], code: Any, words: str
) -> None:
    async with (
        serving() as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await PredictionServiceStub(channel).Classify(classify_request(**changes))
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


def tasks(*entries: tuple[str, str, str]) -> Any:
    request = MultiInferenceRequest()
    request.input.example_list.examples.append(example(amount=1.0))
    for name, signature, method in entries:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = name, signature
    return request


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (tasks(), "at least one task"),
        (
            tasks(("fraud", "a", "tensorflow/serving/classify"), ("b", "", "x")),
            "must access the same model",
        ),
        (tasks(*[("fraud", "a", "tensorflow/serving/classify")] * 2), "Duplicate evaluation"),
        (tasks(("fraud", "", "tensorflow/serving/predict")), "Unsupported signature method_name"),
    ],
)
async def test_wrong_multi_inference_is_refused(serving: Any, request_: Any, words: str) -> None:
    async with (
        serving() as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await PredictionServiceStub(channel).MultiInference(request_)
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert words in (caught.value.details() or "")
