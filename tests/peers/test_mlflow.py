"""Models of a real MLflow registry, behind our server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from jobs.ports import free_port
from model_server.backends import load as load_by_files
from model_server.errors import RepositoryError
from model_server.lifecycle import Manager, ModelConfig
from model_server.mirror import mirror
from model_server.options import ServerOptions
from model_server.protos import PredictionServiceStub, PredictRequest
from model_server.servables import Servables
from model_server.server import start
from model_server.tensors import from_proto, to_proto

mlflow = pytest.importorskip("mlflow", reason="MLflow's client is not installed: make dev")

PATIENCE_S = 60.0
PICKLED, BROKEN = 3, 4


class Registry:
    """MLflow with the models of ``clients/mlflow_models.py``."""

    def __init__(self, uri: str, scores: dict[str, list[float]]) -> None:
        self.uri = uri
        self.scores = scores
        self._client = mlflow.MlflowClient(uri)

    def point(self, version: int, alias: str = "champion") -> None:
        self._client.set_registered_model_alias("fraud", alias, version)

    def config(self, address: str = "models:/fraud@champion", name: str = "fraud") -> ModelConfig:
        return ModelConfig(name, address, tracking_uri=self.uri)


made: dict[str, Registry] = {}


@pytest.fixture
def registry(
    mlflow_uri: str,
    stranger: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Registry:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)  # restores what the client sets
    if mlflow_uri not in made:
        scores = stranger("mlflow", "mlflow_models.py", tracking_uri=mlflow_uri)
        made[mlflow_uri] = Registry(mlflow_uri, scores)
    mirror.cache_clear()
    made[mlflow_uri].point(1)
    return made[mlflow_uri]


def predict(rows: np.ndarray) -> PredictRequest:
    request = PredictRequest()
    request.model_spec.name = "fraud"
    request.inputs["inputs"].CopyFrom(to_proto(rows))
    return request


async def test_no_call_fails_while_the_alias_moves(registry: Registry, rows: np.ndarray) -> None:
    """Forth, over versions that cannot be served, and back."""
    running = await start(ServerOptions((registry.config(),), poll_s=0.05))
    seen: list[int] = []
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            stub = PredictionServiceStub(channel)

            async def until(version: int) -> None:
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        answer = await stub.Predict(predict(rows))  # raises if one call fails
                        seen.append(answer.model_spec.version.value)
                        scores = from_proto(answer.outputs["scores"])
                        expected = registry.scores[f"fraud {seen[-1]}"]
                        assert np.abs(scores - expected).max() < 1e-6
                        if seen[-1] == version:
                            return

            async def until_refused(version: int) -> str:
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        await until(1)
                        statuses = running.server.servables.statuses("fraud")
                        if version in statuses and statuses[version].error:
                            return statuses[version].error

            await until(1)
            registry.point(PICKLED)
            assert "skl2onnx" in await until_refused(PICKLED)
            registry.point(BROKEN)
            assert "not an XGBoost model" in await until_refused(BROKEN)
            registry.point(2)
            await until(2)
            registry.point(1)
            await until(1)
    finally:
        await running.stop()
    assert set(seen) == {1, 2}


async def test_a_pinned_version_and_an_onnx_model(
    registry: Registry, rows: np.ndarray, tmp_path: Path
) -> None:
    servables = Servables()
    manager = Manager(servables, lambda folder, threads: load_by_files(folder, threads))
    await manager.configure(
        [
            registry.config("models:/fraud/2"),
            registry.config("models:/linear/1", name="other"),
        ]
    )
    assert servables.loaded("fraud") == (2,)
    with servables.use("other") as servable:
        model: Any = servable.model
        assert model.feature_names == ("amount", "count_5m", "sum_5m", "max_5m", "age_s")
        assert np.abs(model.predict(rows) - registry.scores["linear"]).max() < 1e-6
    folders = [path for path in (tmp_path / "cache").rglob("*") if path.is_dir()]
    await manager.poll()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_dir()] == folders
    await servables.close()


async def test_without_mlflow_what_is_loaded_goes_on(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    servables = Servables()
    manager = Manager(servables, lambda folder, threads: load_by_files(folder, threads))
    await manager.configure([registry.config()])
    gone = ModelConfig(
        "fraud", "models:/fraud@champion", tracking_uri=f"http://127.0.0.1:{free_port()}"
    )
    manager._configs["fraud"] = gone
    async with asyncio.timeout(PATIENCE_S):
        await manager.poll()
    assert servables.loaded("fraud") == (1,)
    assert "cannot read models:/fraud@champion" in caplog.text
    await servables.close()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("models:/fraud@nobody", "alias nobody not found"),
        ("models:/fraud/99", "version=99"),
        ("models:/absent@champion", "absent"),
        ("models:/fraud", "must be as models:/name@alias"),
        ("models:/fraud/Production", "must be as models:/name@alias"),
    ],
)
def test_an_address_that_leads_nowhere(registry: Registry, address: str, words: str) -> None:
    with pytest.raises(RepositoryError, match=words):
        registry.config(address).list_versions()


def test_a_pickle_is_refused_before_it_is_downloaded(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"flavours python_function, sklearn, none .* pickle"):
        registry.config().find(PICKLED)
    assert not list((tmp_path / "cache").rglob("*.pkl"))


def test_without_an_address_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RepositoryError, match="mlflow_tracking_uri or MLFLOW_TRACKING_URI"):
        ModelConfig("fraud", "models:/fraud@champion").list_versions()
