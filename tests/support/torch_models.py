"""PyTorch's model files, written by an interpreter that has PyTorch; this one has not.

Run by that interpreter: ``python torch_models.py FOLDER``.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[2]
COLUMNS = 5
WEIGHTS = np.linspace(-1, 1, COLUMNS)
_NAME = "STREAMSCORE_TORCH_PYTHON"
_PATIENCE_S = 120.0


def find() -> str:
    """Return the interpreter; empty if there is none."""
    python = os.environ.get(_NAME) or str(ROOT / "build" / "peers" / "torch" / "bin" / "python")
    return python if Path(python).exists() else ""


def torch_python() -> str:
    """Return the interpreter; the test is skipped if there is none."""
    if not (python := find()):
        import pytest

        pytest.skip(f"no interpreter with PyTorch: make peer-torch, or name one as {_NAME}")
    return python


@cache
def files() -> Path:
    """Return a folder with ``table.pt``, ``table.pt2`` and others; see ``_write_here``."""
    folder = tempfile.TemporaryDirectory(prefix="streamscore-torch-")
    atexit.register(folder.cleanup)
    command = [torch_python(), __file__, folder.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3_000:]
    return Path(folder.name)


def score(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """What ``table`` gives."""
    margins = np.nan_to_num(rows, nan=0.0).astype(np.float64) @ WEIGHTS
    return np.asarray(1 / (1 + np.exp(-margins)), np.float64)


def _write_here(folder: Path) -> None:
    import torch  # type: ignore[import-not-found, unused-ignore]

    class Table(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(COLUMNS, 1, bias=False, dtype=torch.float64)
            self.linear.weight.data = torch.from_numpy(WEIGHTS)[None]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            margins = self.linear(torch.nan_to_num(x, 0.0).double())
            return torch.sigmoid(margins).squeeze(-1).float()

    class Mixed(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """Several types, a keyword, a dict, an output of a size of its own."""

        def forward(
            self, x: torch.Tensor, ids: torch.Tensor, half: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            doubled = {"total": x.sum(1), "ids": ids * 2, "half": half * 2}
            return doubled | {"found": torch.nonzero(ids).flatten()}

    class Pair(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        """Two outputs in a tuple, for TorchScript."""

        def forward(self, x: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x @ x.T, n + 1

    table, rows = Table().eval(), torch.export.Dim("rows", min=0)
    torch.jit.trace(table, torch.zeros(2, COLUMNS)).save(str(folder / "table.pt"))
    exported = torch.export.export(
        table, (torch.zeros(3, COLUMNS),), dynamic_shapes={"x": {0: rows}}
    )
    torch.export.save(exported, folder / "table.pt2")
    torch.jit.script(Pair()).save(str(folder / "pair.pt"))
    inputs = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    half = torch.zeros(3, dtype=torch.bfloat16)
    mixed = torch.export.export(
        Mixed(),
        inputs,
        {"half": half},
        dynamic_shapes={"x": {0: rows}, "ids": {0: rows}, "half": {0: rows}},
    )
    torch.export.save(mixed, folder / "mixed.pt2")
    torch.save(table.state_dict(), folder / "saved.pt")


if __name__ == "__main__":
    _write_here(Path(sys.argv[1]))
