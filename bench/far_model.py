"""A model on a machine of its own, as far as this machine can have one: it waits and uses no CPU.

For ``streamscore serve``, as ``python_class: bench.far_model:FarModel``. It scores as the booster
in its folder does, one call at a time, each row after the time that FAR_MODEL_US says.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from model_server.backends.xgboost import XGBoostModel

ROW_US = "FAR_MODEL_US"


class FarModel(XGBoostModel):
    """A booster that is as fast as it is told to be."""

    _seconds_per_row: float
    _turn: threading.Lock

    @classmethod
    def load(cls, version_dir: Path | str, *, threads: int = 1, isolated: bool = False) -> Self:
        """See ``XGBoostModel.load``."""
        model = super().load(version_dir, threads=threads, isolated=isolated)
        model._seconds_per_row = float(os.environ[ROW_US]) / 1e6
        model._turn = threading.Lock()
        return model

    def is_quick(self, signature_name: str, rows: int) -> bool:
        """Never: it waits in a thread."""
        return False

    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """See ``Tabular``."""
        with self._turn:
            time.sleep(len(rows) * self._seconds_per_row)
        return super().predict(rows)
