"""How a model is made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from jobs.sections.ranking import RankingTraining
from udfs.definition.types import Strict


class TrainingSettings(Strict):
    """How `streamscore train` makes a model."""

    kind: Literal["xgboost", "isolation_forest", "autoencoder"] = Field(
        "xgboost",
        description="`xgboost`: from labels of both kinds; `isolation_forest` and `autoencoder`: "
        "from normal rows, those of label 0, alone",
    )
    train_fraction: float = Field(0.7, gt=0, lt=1, description="earliest part of time trained on")
    trees: int = Field(200, ge=1, description="boosting rounds, or trees of an isolation_forest")
    depth: int = Field(6, ge=1, description="depth of a boosted tree")
    learning_rate: float = Field(0.1, gt=0, description="shrinkage of each boosted tree")
    max_samples: int = Field(256, ge=2, description="rows that a tree of an isolation_forest sees")
    epochs: int = Field(60, ge=1, description="passes of an autoencoder's training over the rows")
    torch_python: Path | None = Field(
        None, description="interpreter that trains an autoencoder; none: this one, with PyTorch"
    )
    seed: int = Field(42, description="random seed")
    label: str | None = Field(
        None,
        description="column of the training data with the label, 0 or 1; none: labels.value",
    )
    ranking: RankingTraining = Field(
        default_factory=lambda: RankingTraining(), description="of a ranking job"
    )
