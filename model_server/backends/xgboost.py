"""XGBoost boosters of one probability per row, served or embedded in a Flink operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import numpy.typing as npt

from model_server import repository
from model_server.backends.base import check_rows
from model_server.backends.tabular import Tabular
from model_server.backends.trees.forest import Forest
from model_server.backends.trees.isolated import compile_in_child
from model_server.errors import InvalidRows

if TYPE_CHECKING:
    import xgboost

__all__ = ["XGBoostModel"]


class XGBoostModel(Tabular):
    """A booster with the names of its columns.

    Most boosters are compiled, and XGBoost itself is not even imported; see ``trees.compiler`` for
    which are not. Safe for several threads: XGBoost's prediction on tree boosters is, and nothing
    here changes after ``load``. Only XGBoost's own UBJSON and JSON files are read, never a pickle.
    """

    platform: ClassVar[str] = "xgboost_xgboost"

    def __init__(
        self,
        features: repository.FeatureList,
        forest: Forest | None,
        booster: xgboost.Booster | None,
    ) -> None:
        """Take what is already checked; see ``load``.

        Args:
            features: The columns.
            forest: The compiled trees, if they can be.
            booster: What answers where the forest cannot; None if the forest always can.
        """
        super().__init__(features, explains=True, classifies=True)
        self._forest = forest
        self._own = booster

    @classmethod
    def load(cls, version_dir: Path | str, *, threads: int = 1, isolated: bool = False) -> Self:
        """Load ``model.ubj`` (or ``model.json``) and ``features.json`` of a version folder.

        Args:
            version_dir: Folder in the repository's layout.
            threads: XGBoost threads for one call; at least 1. More than 1 pays off only for
                thousands of rows per call.
            isolated: Whether another process reads the booster, so that this one, if it answers
                calls meanwhile, is not held up; see ``trees.isolated``.

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
        booster: xgboost.Booster | None = None
        if isolated:
            compiled = compile_in_child(folder)
        else:
            from model_server.backends import boosters
            from model_server.backends.trees.compiler import compile_booster

            booster = boosters.load(path, features, threads)
            compiled = compile_booster(booster)
        forest = None if compiled is None else compiled.checked()
        if forest is not None and forest.paths is not None:
            return cls(features, forest, None)
        if booster is None:
            from model_server.backends import boosters

            booster = boosters.load(path, features, threads)
        return cls(features, forest, booster)

    @property
    def _booster(self) -> xgboost.Booster:
        assert self._own is not None
        return self._own

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
        import xgboost

        matrix = xgboost.DMatrix(rows, missing=np.nan, nthread=1)
        contributions = self._booster.predict(matrix, pred_contribs=True, validate_features=False)
        return np.asarray(contributions[:, :-1], dtype=np.float64)
