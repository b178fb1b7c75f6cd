"""The session's broker and model server, and what is made on its model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fixtures import bootstrap
from tests.support.scorers import output_of, prepared, write_model
from tests.support.servers import ModelServerProcess
from tests.support.streams import SCHEMA
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.output import Output

__all__ = ["bootstrap"]


@pytest.fixture(scope="module", autouse=True)
def garbage_collector() -> Iterator[None]:
    """Opened functions change how this process collects garbage; other tests get it back."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one version of a small model over the schema's columns."""
    return write_model(tmp_path_factory.mktemp("models"), prepared())


@pytest.fixture(scope="session")
def output(models_dir: Path) -> Output:
    return output_of(SCHEMA, models_dir)


@pytest.fixture(scope="session")
def server_port(models_dir: Path) -> Iterator[int]:
    with ModelServerProcess(models_dir, models_dir / "server.log") as server:
        yield server.port


@pytest.fixture
def embedded(models_dir: Path, output: Output) -> EmbeddedScoring:
    return EmbeddedScoring(models_dir / "fraud" / "7", "fraud", output)
