"""Fixtures that the whole session shares: a broker, the demo's data, a model, settings.

Imported by the ``conftest.py`` of each folder that uses them; what they start is kept in pytest's
stash, so there is one of each however many folders ask.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pytest

from jobs import jars, training
from jobs.demo import data as demo_data
from jobs.environment import ROOT
from jobs.kafka_broker import KafkaBroker
from jobs.settings import Settings, load

CONFIG = ROOT / "conf" / "fraud.yaml"
MakeSettings = Callable[..., Settings]

_T = TypeVar("_T")
_BROKER = pytest.StashKey[KafkaBroker]()
_DATA = pytest.StashKey[pd.DataFrame]()
_MODELS = pytest.StashKey[Path]()
_numbers = count()


def _once(request: pytest.FixtureRequest, key: pytest.StashKey[_T], make: Callable[[], _T]) -> _T:
    stash = request.config.stash
    if key not in stash:
        stash[key] = make()
    return stash[key]


@pytest.fixture(scope="session")
def bootstrap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """host:port of a real broker; it is stopped with the session."""

    def start() -> KafkaBroker:
        jars.fetch()
        broker = KafkaBroker(tmp_path_factory.mktemp("kafka"))
        broker.start()
        request.config.add_cleanup(broker.stop)
        return broker

    return _once(request, _BROKER, start).bootstrap


@pytest.fixture(scope="session")
def demo(request: pytest.FixtureRequest) -> pd.DataFrame:
    """The small demo data, 147,269 transactions of 75 days."""
    return _once(request, _DATA, lambda: demo_data.load("small"))


@pytest.fixture(scope="session")
def models(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    demo: pd.DataFrame,
) -> Path:
    """A model repository with version 1 of a small model of the demo data."""

    def train() -> Path:
        folder = tmp_path_factory.mktemp("models")
        settings = load(CONFIG, {"training.trees": 50, "model.path": str(folder)})
        training.train(settings, demo)
        return folder

    return _once(request, _MODELS, train)


@pytest.fixture
def make_settings(bootstrap: str, models: Path, tmp_path: Path) -> MakeSettings:
    """conf/fraud.yaml with topics and a checkpoint folder of its own, and what is given."""

    def make(overrides: dict[str, Any] | None = None) -> Settings:
        return load(CONFIG, own_overrides(bootstrap, models, tmp_path) | (overrides or {}))

    return make


def own_overrides(bootstrap: str, models: Path, folder: Path) -> dict[str, Any]:
    """What keeps a job apart from the others of the session; plain JSON types."""
    name = f"test{next(_numbers)}"
    topics = ("events", "labels", "predictions", "alerts", "dead_letters", "duplicates")
    return {
        **{f"topics.{topic}": f"{name}-{topic}" for topic in topics},
        "name": name,
        "kafka.bootstrap_servers": bootstrap,
        "kafka.group_id": name,
        "model.path": str(models),
        "flink.checkpoint_dir": str(folder / f"{name}-checkpoints"),
        "flink.checkpoint_interval": "500ms",
        "flink.restart_attempts": 0,
    }
