"""XGBoost boosters of one probability per row, served or embedded in a Flink operator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import xgboost

from model_server import repository
from model_server.backends.base import check_rows
from model_server.backends.forest import Forest, compile_forest
from model_server.backends.tabular import Tabular
from model_server.errors import InvalidRows, ModelError

__all__ = ["XGBoostModel"]

# Objectives whose prediction is one probability.
_OBJECTIVES = frozenset({"binary:logistic", "reg:logistic"})
# Boosters that XGBoost documents as safe to predict with from several threads.
_BOOSTERS = frozenset({"gbtree", "dart"})


class XGBoostModel(Tabular):
    """A booster with the names of its columns.

    Safe for several threads: XGBoost's prediction on tree boosters is, and nothing here changes
    after ``load``. Only XGBoost's own UBJSON and JSON files are read, never a pickle.
    """

    platform: ClassVar[str] = "xgboost_xgboost"

    def __init__(
        self,
        booster: xgboost.Booster,
        features: repository.FeatureList,
        forest: Forest | None = None,
    ) -> None:
        """Take a booster that is already checked, and its compiled form; see ``load``."""
        super().__init__(features, explains=True, classifies=True)
        self._booster = booster
        self._forest = forest

    @classmethod
    def load(cls, version_dir: Path | str, *, threads: int = 1) -> Self:
        """Load ``model.ubj`` (or ``model.json``) and ``features.json`` of a version folder.

        Args:
            version_dir: Folder in the repository's layout.
            threads: XGBoost threads for one call; at least 1. More than 1 pays off only for
                thousands of rows per call.

        Raises:
            RepositoryError: A file is missing or malformed.
            ModelError: The booster cannot be loaded, gives no probability, or has other columns.
            ValueError: ``threads`` is below 1.
        """
        if threads < 1:
            raise ValueError(f"threads must be at least 1, is {threads}")
        folder = Path(version_dir)
        features = repository.load_features(folder)
        path = repository.model_file(folder)
        booster = _load_booster(path, threads)
        _check_kind(booster, path)
        _check_columns(booster, path, features)
        return cls(booster, features, compile_forest(booster))

    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Score rows.

        Args:
            rows: float32 (n, F); NaN is XGBoost's missing value.

        Returns:
            Probabilities, float64 (n,); every one is exactly a float32. A compiled forest's
            differ from XGBoost's own by less than 1e-6.

        Raises:
            InvalidRows: Another type, rank or width.
        """
        check_rows(rows, len(self._features.features))
        if self._forest is not None:
            return self._forest.predict(rows)
        scores = self._booster.inplace_predict(rows, missing=np.nan, validate_features=False)
        return np.asarray(scores, dtype=np.float64)

    def explain(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return each column's SHAP contribution to the log-odds.

        Args:
            rows: float32 (n, F); NaN is XGBoost's missing value.

        Returns:
            Contributions, float64 (n, F), exact (TreeSHAP) and rounded to float32;
            the bias column is left out.

        Raises:
            InvalidRows: Another type, rank or width, or an infinite value.
        """
        check_rows(rows, len(self._features.features))
        if np.isinf(rows).any():
            raise InvalidRows("rows to explain hold an infinite value")
        if self._forest is not None and self._forest.paths is not None:
            shares = self._forest.paths.contributions(rows)
            return shares.astype(np.float32).astype(np.float64)  # all that the signature has
        if not len(rows):
            return np.empty(rows.shape, dtype=np.float64)
        matrix = xgboost.DMatrix(rows, missing=np.nan, nthread=1)
        contributions = self._booster.predict(matrix, pred_contribs=True, validate_features=False)
        return np.asarray(contributions[:, :-1], dtype=np.float64)


def _load_booster(path: Path, threads: int) -> xgboost.Booster:
    try:
        booster = xgboost.Booster(model_file=path)
        booster.set_param({"nthread": threads, "device": "cpu"})
    except (xgboost.core.XGBoostError, ValueError) as exc:
        reason = str(exc).splitlines()[0]
        raise ModelError(f"{path} is not an XGBoost model: {reason}") from exc
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
