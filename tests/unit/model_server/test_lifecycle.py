"""Versions that come and go while calls are answered."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from model_server.backends import load as load_by_files
from model_server.batching import BatchingOptions
from model_server.errors import ModelError, RepositoryError
from model_server.lifecycle import Manager, ModelConfig, VersionPolicy
from model_server.protos import PredictionServiceStub
from model_server.servables import Servables, ServableState

PATIENCE_S = 60.0


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (VersionPolicy(), (10,)),
        (VersionPolicy("latest", 2), (3, 10)),
        (VersionPolicy("latest", 9), (2, 3, 10)),
        (VersionPolicy("all"), (2, 3, 10)),
        (VersionPolicy("specific", versions=(3, 7)), (3,)),
    ],
)
def test_policy_chooses_versions(policy: VersionPolicy, chosen: tuple[int, ...]) -> None:
    assert policy.choose([10, 2, 3]) == chosen


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"kind": "specific"}, {"kind": "all", "versions": (1,)}]
)
def test_policy_that_cannot_be_met_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        VersionPolicy(**wrong)


def managed(
    models_dir: Path, policy: VersionPolicy | None = None
) -> tuple[Manager, Servables, ModelConfig]:
    servables = Servables()
    config = ModelConfig("fraud", models_dir, policy=policy or VersionPolicy())
    return Manager(servables, load_by_files), servables, config


async def test_new_version_replaces_the_old(
    models_dir: Path, write_version: Callable[..., Path]
) -> None:
    manager, servables, config = managed(models_dir)
    await manager.configure([config])
    assert servables.loaded("fraud") == (10,)
    write_version(models_dir / "fraud" / "11")
    await manager.poll()
    assert servables.loaded("fraud") == (11,)
    assert servables.statuses("fraud")[10].state is ServableState.END


async def test_version_that_goes_from_the_folder_goes_if_another_is_left(models_dir: Path) -> None:
    manager, servables, config = managed(models_dir, VersionPolicy("all"))
    await manager.configure([config])
    assert servables.loaded("fraud") == (2, 10)
    shutil.rmtree(models_dir / "fraud" / "10")
    await manager.poll()
    assert servables.loaded("fraud") == (2,)
    shutil.rmtree(models_dir / "fraud" / "2")
    await manager.poll()
    assert servables.loaded("fraud") == (2,)  # the last one stays: never a moment without
    shutil.rmtree(models_dir / "fraud")
    await manager.poll()
    assert servables.loaded("fraud") == (2,)


async def test_broken_version_is_refused_and_tried_again_when_it_changes(
    models_dir: Path, write_version: Callable[..., Path]
) -> None:
    loads: list[Path] = []

    def load(folder: Path, threads: int) -> Any:
        loads.append(folder)
        return load_by_files(folder, threads)

    servables = Servables()
    manager = Manager(servables, load)
    await manager.configure([ModelConfig("fraud", models_dir)])
    file = write_version(models_dir / "fraud" / "11") / "model.ubj"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    for _ in range(3):
        await manager.poll()
    assert len(loads) == 2  # the first version, and once the broken one
    assert servables.loaded("fraud") == (10,)
    status = servables.statuses("fraud", 11)[11]
    assert status.state is ServableState.END and "not an XGBoost model" in status.error
    file.write_bytes(whole)
    await manager.poll()
    assert servables.loaded("fraud") == (11,)


async def test_whatever_a_loader_raises_harms_no_other_version(
    models_dir: Path, write_version: Callable[..., Path]
) -> None:
    def load(folder: Path, threads: int) -> Any:
        if folder.name == "11":
            raise ZeroDivisionError("inside a library")
        return load_by_files(folder, threads)

    servables = Servables()
    manager = Manager(servables, load)
    await manager.configure([ModelConfig("fraud", models_dir)])
    write_version(models_dir / "fraud" / "11")
    await manager.poll()
    assert servables.loaded("fraud") == (10,)
    assert "ZeroDivisionError: inside a library" in servables.statuses("fraud", 11)[11].error


async def test_first_load_says_what_is_wrong(models_dir: Path) -> None:
    manager, _, config = managed(models_dir, VersionPolicy("specific", versions=(9,)))
    with pytest.raises(RepositoryError, match=r"no version \[9\]: it has \[2, 10\]"):
        await manager.configure([config])
    for version in ("2", "10"):
        (models_dir / "fraud" / version / "model.ubj").write_bytes(b"garbage")
    manager, _, config = managed(models_dir)
    with pytest.raises(ModelError, match="not an XGBoost model"):
        await manager.configure([config])


async def test_an_older_version_answers_if_the_newest_is_broken_at_the_start(
    models_dir: Path, write_version: Callable[..., Path]
) -> None:
    file = models_dir / "fraud" / "10" / "model.ubj"
    whole = file.read_bytes()
    file.write_bytes(b"garbage")
    middle = write_version(models_dir / "fraud" / "7")
    (middle / "model.ubj").write_bytes(b"garbage")
    manager, servables, config = managed(models_dir)
    for _ in range(2):
        await manager.configure([config])
        assert servables.loaded("fraud") == (2,)
        await manager.unload("fraud")
    await manager.configure([config])
    await manager.poll()
    assert servables.loaded("fraud") == (2,)
    assert "not an XGBoost model" in servables.statuses("fraud", 10)[10].error
    file.write_bytes(whole)
    await manager.poll()
    assert servables.loaded("fraud") == (10,)


async def test_labels_that_lead_nowhere_are_logged_once(
    models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servables = Servables()
    manager = Manager(servables, load_by_files)
    labels = {"stable": 10, "canary": 77}
    await manager.configure([ModelConfig("fraud", models_dir, labels=labels)])
    await manager.poll()
    (line,) = [r.getMessage() for r in caplog.records if "labels_without" in r.getMessage()]
    assert "labels={'canary': 77} served=[10]" in line


async def test_models_are_added_removed_and_loaded_by_name(
    models_dir: Path, write_version: Callable[..., Path]
) -> None:
    manager, servables, config = managed(models_dir)
    await manager.configure([config])
    write_version(models_dir / "other" / "1")
    other = ModelConfig("other", models_dir)
    await manager.load(other)
    assert servables.names == ("fraud", "other")
    with pytest.raises(RepositoryError):
        await manager.load(ModelConfig("none", models_dir))
    assert servables.names == ("fraud", "other")
    await manager.unload("fraud")
    await manager.poll()
    assert servables.names == ("other",)
    await manager.configure([config])
    assert servables.names == ("fraud",)


async def test_twenty_switches_under_load_lose_no_call(
    serving: Any,
    models_dir: Path,
    write_version: Callable[..., Path],
    predict_request: Any,
    rows: np.ndarray,
) -> None:
    """Every fourth version is broken; callers must only ever see whole ones, in order."""
    versions = range(11, 31)
    broken = {version for version in versions if version % 4 == 0}
    stop = asyncio.Event()

    async def ask(stub: Any) -> list[int]:
        seen = []
        while not stop.is_set():
            response = await stub.Predict(predict_request(rows[:4]))
            seen.append(response.model_spec.version.value)
        return seen

    async with (
        serving(poll_s=0.01) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        stub = PredictionServiceStub(channel)
        callers = [asyncio.create_task(ask(stub)) for _ in range(8)]
        for version in versions:
            folder = models_dir / "fraud" / str(version)
            staged = write_version(models_dir.parent / "staged" / str(version))
            if version in broken:
                (staged / "model.ubj").write_bytes(b"broken")
            staged.rename(folder)
            async with asyncio.timeout(PATIENCE_S):
                wanted = version - 1 if version in broken else version
                while True:
                    response = await stub.Predict(predict_request(rows[:1]))
                    if response.model_spec.version.value == wanted:
                        break
        stop.set()
        answers = await asyncio.gather(*callers)
    for seen in answers:
        assert seen == sorted(seen)
        assert not broken & set(seen)


async def test_a_model_that_takes_anothers_place_is_there_before_that_goes(
    models_dir: Path, write_version: Callable[..., Path]
) -> None:
    servables = Servables()
    answered: list[tuple[int, ...]] = []

    def load(folder: Path, threads: int) -> Any:
        answered.append(servables.loaded("fraud"))
        return load_by_files(folder, threads)

    manager = Manager(servables, load)
    await manager.configure([ModelConfig("fraud", models_dir)])
    write_version(models_dir / "other" / "1")
    batching = BatchingOptions(max_rows=8)
    await manager.configure([ModelConfig("other", models_dir, batching=batching)])
    assert answered == [(), (10,)]
    assert servables.names == ("other",)
    with servables.use("other") as servable:
        assert servable.batching == batching
    with pytest.raises(RepositoryError):
        await manager.configure([ModelConfig("missing", models_dir)])
    assert servables.loaded("other") == (1,)
