"""The client against our server, and what it refuses on its own."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from model_server.backends.xgboost import XGBoostModel
from model_server.breaker import BreakerState
from model_server.client import ClientOptions, PredictClient
from model_server.client_protocols import TensorMetadata
from model_server.errors import Rejected


@pytest.mark.parametrize("protocol", ["tfserving", "oip"])
@pytest.mark.parametrize("row_count", [0, 1, 32, 200])
async def test_served_scores_equal_embedded_ones(
    serving: Any, connecting: Any, models_dir: Any, rows: np.ndarray, row_count: int, protocol: str
) -> None:
    batch = rows[:row_count].copy()
    batch[::3, 1] = np.nan
    embedded = XGBoostModel.load(models_dir / "fraud" / "10")
    async with serving() as running, connecting(running.port, protocol=protocol) as client:
        scores = await client.predict(batch)
        contributions = await client.explain(batch)
    assert np.array_equal(scores.values, embedded.predict(batch))
    assert scores.values.dtype == np.float64
    assert np.array_equal(contributions, embedded.explain(batch))
    assert (scores.model_name, scores.model_version) == ("fraud", 10)


async def test_metadata(serving: Any, connecting: Any) -> None:
    async with serving() as running, connecting(running.port) as client:
        metadata = await client.metadata()
    assert (metadata.model_name, metadata.model_version) == ("fraud", 10)
    assert metadata.signatures["serving_default"].inputs == {
        "inputs": TensorMetadata("DT_FLOAT", (-1, 5))
    }
    assert metadata.signatures["explain"].outputs == {
        "contributions": TensorMetadata("DT_FLOAT", (-1, 5))
    }


async def test_metadata_of_the_open_inference_protocol(serving: Any, connecting: Any) -> None:
    async with serving() as running, connecting(running.port, protocol="oip") as client:
        metadata = await client.metadata()
    assert (metadata.model_name, metadata.model_version) == ("fraud", 10)
    signature = metadata.signatures["serving_default"]
    assert signature.inputs == {"inputs": TensorMetadata("FP32", (-1, 5))}
    assert signature.outputs == {"scores": TensorMetadata("FP32", (-1,))}


@pytest.mark.parametrize("protocol", ["tfserving", "oip"])
async def test_pinned_version(
    serving: Any, connecting: Any, rows: np.ndarray, protocol: str
) -> None:
    async with serving() as running:
        async with connecting(running.port, model_version=10, protocol=protocol) as client:
            assert (await client.predict(rows)).model_version == 10
        async with connecting(running.port, model_version=9, protocol=protocol) as client:
            with pytest.raises(Rejected, match="Specific\\(fraud, 9\\)"):
                await client.predict(rows)


async def test_missing_explain_signature_is_rejected(serving: Any, connecting: Any) -> None:
    settings = {"explain_signature": "nothing_such"}
    async with serving() as running, connecting(running.port, **settings) as client:
        with pytest.raises(Rejected, match="nothing_such"):
            await client.explain(np.zeros((1, 5), np.float32))


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
async def test_foreign_server_with_repeated_values(
    faking: Any, connecting: Any, answer: Any, shape: tuple[int, ...]
) -> None:
    """TensorFlow Serving answers with float_val, and Keras models with a column."""
    response = answer(np.zeros(shape))
    response.outputs["scores"].tensor_content = b""
    response.outputs["scores"].float_val.extend([0.25, 0.5, 1.0])

    async def handler(request: Any, context: Any) -> Any:
        return response

    async with faking(handler) as fake, connecting(fake.port) as client:
        scores = await client.predict(np.zeros((3, 5), np.float32))
    assert scores.values.tolist() == [0.25, 0.5, 1.0]


async def test_other_numbers_are_cast(serving: Any, connecting: Any, rows: np.ndarray) -> None:
    async with serving() as running, connecting(running.port) as client:
        expected = await client.predict(rows)
        actual = await client.predict(rows.astype(np.float64))
    assert np.array_equal(actual.values, expected.values)


@pytest.mark.parametrize(
    "bad_rows", [np.zeros(5, np.float32), np.zeros((1, 2, 3)), np.array([["a"]])]
)
async def test_rows_that_cannot_be_sent_are_rejected(
    dead_port: int, connecting: Any, bad_rows: Any
) -> None:
    async with connecting(dead_port) as client:
        with pytest.raises(Rejected):
            await client.predict(bad_rows)


async def test_too_large_a_batch_is_rejected_unsent(dead_port: int, connecting: Any) -> None:
    async with connecting(dead_port, max_message_bytes=2_000) as client:
        with pytest.raises(Rejected, match="do not fit"):
            await client.predict(np.zeros((1_000, 5), np.float32))


async def test_too_large_a_batch_for_the_server_is_rejected(serving: Any, connecting: Any) -> None:
    async with serving(max_message_bytes=2_000) as running, connecting(running.port) as client:
        with pytest.raises(Rejected, match="larger than max"):
            await client.predict(np.zeros((1_000, 5), np.float32))


def test_nothing_is_opened_outside_a_loop_and_each_loop_gets_a_channel(
    serving: Any, connecting: Any, rows: np.ndarray
) -> None:
    async def once(client: PredictClient | None = None) -> None:
        async with serving() as running:
            options = ClientOptions(f"127.0.0.1:{running.port}", "fraud", deadline_ms=20_000)
            used = PredictClient(options)
            await used.predict(rows)
            await asyncio.to_thread(asyncio.run, _predict_and_close(used, rows))

    asyncio.run(once())


async def _predict_and_close(client: PredictClient, rows: np.ndarray) -> None:
    await client.predict(rows)
    await client.close()
    await client.close()


def test_breaker_state_is_readable_before_any_call() -> None:
    client = PredictClient(ClientOptions("127.0.0.1:1", "fraud"))
    assert client.breaker_state is BreakerState.CLOSED
    assert int(client.breaker_state) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"target": ""},
        {"model_name": ""},
        {"deadline_ms": 0},
        {"deadline_ms": float("nan")},
        {"max_attempts": 0},
        {"backoff_ms": -1},
        {"max_message_bytes": 10},
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ClientOptions(**({"target": "127.0.0.1:1", "model_name": "fraud"} | changes))
