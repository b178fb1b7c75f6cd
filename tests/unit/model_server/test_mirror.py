"""Model repositories in S3, by moto's server, and in fsspec's memory."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import grpc
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from model_server.backends import load as load_by_files
from model_server.copies import Copies
from model_server.errors import RepositoryError
from model_server.lifecycle import Manager, ModelConfig
from model_server.mirror import Mirror, mirror
from model_server.options import ServerOptions
from model_server.protos import PredictionServiceStub
from model_server.servables import Servables
from model_server.server import start
from model_server.tensors import from_proto

BUCKET = "bucket"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of a server of S3's protocol."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # its servers share what they hold
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    mirror.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield client
    server.stop()
    mirror.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def upload(client: Any, folder: Path, key: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{key}/{path.relative_to(folder)}")


async def test_versions_come_and_are_replaced(
    bucket: Any, models_dir: Path, predict_request: Any, rows: np.ndarray
) -> None:
    upload(bucket, models_dir / "fraud" / "2", "models/fraud/2")
    url = f"s3://{BUCKET}/models"
    running = await start(ServerOptions.of_one_model(url, "fraud", poll_s=0.05))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            stub = PredictionServiceStub(channel)
            first = await stub.Predict(predict_request(rows))
            assert first.model_spec.version.value == 2
            upload(bucket, models_dir / "fraud" / "10", "models/fraud/10")
            response = first
            while response.model_spec.version.value == 2:
                response = await stub.Predict(predict_request(rows))
        assert response.model_spec.version.value == 10
    finally:
        await running.stop()
    model: Any = load_by_files(models_dir / "fraud" / "10", 1)
    assert np.array_equal(from_proto(response.outputs["scores"]), model.predict(rows))


async def test_a_broken_upload_is_tried_again_when_it_changes(
    bucket: Any, models_dir: Path, tmp_path: Path
) -> None:
    upload(bucket, models_dir / "fraud" / "2", "fraud/2")
    servables = Servables()
    manager = Manager(servables, load_by_files)
    await manager.configure([ModelConfig("fraud", f"s3://{BUCKET}")])
    broken = tmp_path / "broken"
    shutil.copytree(models_dir / "fraud" / "10", broken)
    (broken / "model.ubj").write_bytes(b"half")
    upload(bucket, broken, "fraud/10")
    await manager.poll()
    assert servables.loaded("fraud") == (2,)
    assert "not an XGBoost model" in servables.statuses("fraud", 10)[10].error
    upload(bucket, models_dir / "fraud" / "10", "fraud/10")
    await manager.poll()
    assert servables.loaded("fraud") == (10,)


async def test_while_nobody_answers_what_is_loaded_goes_on(bucket: Any, models_dir: Path) -> None:
    upload(bucket, models_dir / "fraud" / "2", "fraud/2")
    servables = Servables()
    manager = Manager(servables, load_by_files)
    await manager.configure([ModelConfig("fraud", f"s3://{BUCKET}")])
    bucket.delete_objects(
        Bucket=BUCKET,
        Delete={
            "Objects": [
                {"Key": entry["Key"]} for entry in bucket.list_objects_v2(Bucket=BUCKET)["Contents"]
            ]
        },
    )
    await manager.poll()
    assert servables.loaded("fraud") == (2,)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[tuple[Any, Mirror]]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files, Mirror("memory://models", Copies(tmp_path))
    files.store.clear()


def test_a_version_is_copied_once_until_it_changes(memory: tuple[Any, Mirror]) -> None:
    files, repository = memory
    files.pipe({"/models/m/3/a": b"1", "/models/m/3/deep/b": b"2", "/models/m/x/c": b"3"})
    files.pipe("/models/m/03/d", b"4")
    assert repository.list_versions("m") == [3]
    folder = repository.fetch("m", 3)
    assert folder.name == "3"
    assert (folder / "deep" / "b").read_bytes() == b"2"
    assert repository.fetch("m", 3) == folder
    files.pipe("/models/m/3/a", b"longer")
    changed = repository.fetch("m", 3)
    assert (changed / "a").read_bytes() == b"longer"
    assert not folder.exists()


def test_what_leads_out_of_the_folder_is_refused(
    memory: tuple[Any, Mirror], tmp_path: Path
) -> None:
    files, repository = memory
    files.pipe("/models/m/1/a", b"1")
    files.store["/models/m/1/../../../escaped"] = files.store["/models/m/1/a"]
    with pytest.raises(RepositoryError, match="leads out of"):
        repository.fetch("m", 1)
    assert not list(tmp_path.rglob("escaped"))
    with pytest.raises(RepositoryError, match="not allowed"):
        repository.list_versions("../m")


def test_errors_name_the_address(memory: tuple[Any, Mirror], tmp_path: Path) -> None:
    _, repository = memory
    with pytest.raises(RepositoryError, match="memory://models has no m"):
        repository.list_versions("m")
    with pytest.raises(RepositoryError, match="nosuch"):
        Mirror("nosuch://bucket", Copies(tmp_path))
