"""An autoencoder of PyTorch, trained on normal rows alone and stored as an ExportedProgram.

PyTorch is 4 GB and no part of the default install: an interpreter that has it trains the model in a
process of its own, as the model server serves it in one. A row's score is ``e / (e + usual)``: e is
the mean squared error of its reconstruction, ``usual`` what 99 % of the normal rows do not exceed.
So it lies in 0 to 1, and 0.5 is as far off as one normal row in a hundred.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jobs.environment import NotReadyError
from jobs.sections.training import TrainingSettings
from udfs.batches.events import FloatArray
from udfs.offline.offline import Progress
from udfs.preparation.encoders import Matrix

WORKER = Path(__file__).with_name("autoencoder_worker.py")
HIDDEN, CODE = 6, 3
LEARNING_RATE = 3e-3
LAYERS = (0, 2, 4, 6)
"""The places of the linear layers; a tanh follows each but the last."""


class Autoencoder:
    """An autoencoder as ``train`` needs it; see ``jobs.training.Trainable``."""

    skips_blank: ClassVar[bool] = True

    def __init__(self, program: bytes, weights: dict[str, npt.NDArray[np.float32]]) -> None:
        """Take what the worker wrote; see ``fit``."""
        self._program = program
        self._weights = weights

    @classmethod
    def fit(
        cls,
        training: TrainingSettings,
        columns: tuple[str, ...],
        matrix: Matrix,
        labels: FloatArray,
        progress: Progress,
    ) -> Autoencoder:
        """See ``jobs.training.Trainable``; only rows of label 0 are looked at.

        Raises:
            NotReadyError: the interpreter has no PyTorch.
        """
        options = {
            "seed": training.seed,
            "epochs": training.epochs,
            "hidden": HIDDEN,
            "code": CODE,
            "learning_rate": LEARNING_RATE,
        }
        with tempfile.TemporaryDirectory(prefix="streamscore-") as name:
            folder = Path(name)
            np.save(folder / "rows.npy", matrix[labels == 0])
            (folder / "options.json").write_text(json.dumps(options))
            _run(training.torch_python or Path(sys.executable), folder, progress)
            with np.load(folder / "weights.npz") as weights:
                return cls((folder / "model.pt2").read_bytes(), dict(weights))

    def scores(self, matrix: Matrix) -> FloatArray:
        """See ``jobs.training.Trainable``."""
        w = self._weights
        z = (matrix - w["mean"]) / w["scale"]
        made = z
        for layer in LAYERS:
            made = made @ w[f"layers.{layer}.weight"].T + w[f"layers.{layer}.bias"]
            made = made if layer == LAYERS[-1] else np.tanh(made)
        errors = ((made - z) ** 2).mean(axis=1)
        return np.asarray(errors / (errors + w["usual"]), np.float64)

    def about(self) -> dict[str, Any]:
        """``usual_error``: what becomes a score of 0.5."""
        return {"usual_error": float(self._weights["usual"])}

    def save(self, folder: Path) -> dict[str, Any]:
        """See ``jobs.training.Trainable``."""
        (folder / "model.pt2").write_bytes(self._program)
        return {}


def _run(python: Path, folder: Path, progress: Progress) -> None:
    command = [str(python), str(WORKER), str(folder)]
    with (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                progress("Training", float(line))
        if process.returncode:
            errors.seek(0)
            last = errors.read().strip().splitlines() or ["no error text"]
            raise NotReadyError(
                f"{python} cannot train an autoencoder: {last[-1]}",
                "run: make setup EXTRA=torch, or name an interpreter that has PyTorch 2.10 or "
                "newer and NumPy as training.torch_python",
            )
