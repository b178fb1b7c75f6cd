"""The demo's model: trained on its data, used again while nothing it depends on changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from jobs import training
from jobs.demo import data as demo_data
from jobs.model_folders import METRICS_FILE
from jobs.settings import Settings
from model_server.errors import RepositoryError
from model_server.repository import find_version

STAMP_FILE = "model.json"


@dataclass(frozen=True, slots=True)
class Model:
    """The demo's model.

    Attributes:
        version: Its number.
        metrics: What training measured.
    """

    version: int
    metrics: Mapping[str, Any]

    @property
    def test_from_ms(self) -> int:
        """Event time of the first record that it was not trained on, epoch."""
        return round(datetime.fromisoformat(self.metrics["test"]["from"]).timestamp() * 1_000)


def stamp(settings: Settings, size: str, limit: int) -> dict[str, Any]:
    """What the model depends on: the data, the features, the training's settings."""
    return {
        "size": asdict(demo_data.SIZES[size]),
        "format": demo_data.FORMAT,
        "limit": limit,
        "config_hash": settings.features_hash,
        "training": settings.training.model_dump(mode="json"),
    }


def stored(settings: Settings, folder: Path, wanted: Mapping[str, Any]) -> Model | None:
    """The model of an earlier demo in this folder, none if it has another stamp."""
    try:
        known = orjson.loads((folder / STAMP_FILE).read_bytes())
        if known["stamp"] != wanted:
            return None
        found = find_version(settings.model.path, settings.model.name, known["version"])
        metrics = orjson.loads((found.path / METRICS_FILE).read_bytes())
    except (OSError, ValueError, KeyError, RepositoryError):
        return None
    return Model(found.version, metrics)


def train(
    settings: Settings,
    folder: Path,
    made_of: Mapping[str, Any],
    frame: pd.DataFrame,
    progress: Callable[[str, float], None],
) -> Model:
    """Train a new version and leave its stamp in the folder.

    Raises:
        TrainingError: no model can be trained on these transactions.
    """
    trained = training.train(settings, frame, progress)
    number = trained.version.version
    (folder / STAMP_FILE).write_bytes(orjson.dumps({"stamp": made_of, "version": number}))
    return Model(number, trained.metrics)
