"""Boosters read from their files and checked; importing this imports XGBoost."""

from __future__ import annotations

import json
from pathlib import Path

import xgboost

from model_server import repository
from model_server.errors import ModelError

__all__ = ["load"]

# Objectives whose prediction is one probability.
_OBJECTIVES = frozenset({"binary:logistic", "reg:logistic"})
# Boosters that XGBoost documents as safe to predict with from several threads.
_BOOSTERS = frozenset({"gbtree", "dart"})


def load(path: Path, features: repository.FeatureList, threads: int = 1) -> xgboost.Booster:
    """Load a booster of one probability per row.

    Args:
        path: XGBoost's own UBJSON or JSON file; a pickle is never read.
        features: Its columns.
        threads: XGBoost's threads for one call.

    Raises:
        ModelError: The booster cannot be loaded, gives no probability, or has other columns.
    """
    try:
        booster = xgboost.Booster(model_file=path)
        booster.set_param({"nthread": threads, "device": "cpu"})
    except (xgboost.core.XGBoostError, ValueError) as exc:
        reason = str(exc).splitlines()[0]
        raise ModelError(f"{path} is not an XGBoost model: {reason}") from exc
    _check_kind(booster, path)
    _check_columns(booster, path, features)
    return booster


def _check_kind(booster: xgboost.Booster, path: Path) -> None:
    learner = json.loads(booster.save_config())["learner"]
    objective = learner["objective"]["name"]
    kind = learner["gradient_booster"]["name"]
    if objective not in _OBJECTIVES:
        raise ModelError(
            f"{path}: objective {objective} gives no probability; "
            f"train with one of {', '.join(sorted(_OBJECTIVES))}"
        )
    if kind not in _BOOSTERS:
        raise ModelError(f"{path}: booster {kind} cannot be served; train with gbtree or dart")


def _check_columns(booster: xgboost.Booster, path: Path, features: repository.FeatureList) -> None:
    expected = booster.num_features()
    if expected != len(features.features):
        raise ModelError(
            f"{path} takes {expected} columns, {repository.FEATURES_FILE} beside it names "
            f"{len(features.features)}: write both from one training run"
        )
    own_names = booster.feature_names
    if own_names is not None and tuple(own_names) != features.names:
        raise ModelError(
            f"{path} was trained on columns {own_names}, {repository.FEATURES_FILE} beside it "
            f"names {list(features.names)}: write both from one training run"
        )
