"""Trains a small autoencoder with PyTorch, in a process of an interpreter that has it.

Run as ``python autoencoder_worker.py FOLDER``: the folder has ``rows.npy``, float32 (n, columns),
and ``options.json``. Written there are ``model.pt2``, an ExportedProgram of the scores, and
``weights.npz``, of which ``jobs.training_autoencoder`` computes the same. Progress goes to stdout,
a number from 0 to 1 a line.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found, unused-ignore]

BATCH = 256


class Scores(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """Rows to scores: ``e / (e + usual)``, with e the mean squared error of the reconstruction."""

    def __init__(self, rows: torch.Tensor, hidden: int, code: int) -> None:
        super().__init__()
        columns = rows.shape[1]
        self.register_buffer("mean", rows.mean(0))
        self.register_buffer("scale", rows.std(0).clamp_min(1e-6))
        self.register_buffer("usual", torch.ones(()))
        sizes = [columns, hidden, code, hidden, columns]
        layers: list[Any] = []
        for one, two in pairwise(sizes):
            layers += [torch.nn.Linear(one, two), torch.nn.Tanh()]
        self.layers = torch.nn.Sequential(*layers[:-1])

    def errors(self, x: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each row, in standard deviations."""
        z = (x - self.mean) / self.scale
        return ((self.layers(z) - z) ** 2).mean(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, float32 (n,)."""
        errors = self.errors(x)
        return errors / (errors + self.usual)


def train(rows: torch.Tensor, options: dict[str, Any]) -> Scores:
    """Fit to normal rows; the error that 99 % of them do not exceed becomes a score of 0.5."""
    torch.manual_seed(options["seed"])
    torch.set_num_threads(1)
    model = Scores(rows, options["hidden"], options["code"])
    optimizer = torch.optim.Adam(model.layers.parameters(), lr=options["learning_rate"])
    for epoch in range(options["epochs"]):
        for part in torch.randperm(len(rows)).split(BATCH):
            optimizer.zero_grad()
            model.errors(rows[part]).mean().backward()
            optimizer.step()
        print((epoch + 1) / options["epochs"], flush=True)
    with torch.no_grad():
        model.usual.fill_(float(torch.quantile(model.errors(rows), 0.99)))
    model.eval()
    return model


def main(folder: Path) -> None:
    """Train, and write what the docstring of this module says."""
    options = json.loads((folder / "options.json").read_text())
    rows = torch.from_numpy(np.load(folder / "rows.npy"))
    model = train(rows, options)
    many = torch.export.Dim("rows", min=0)
    program = torch.export.export(model, (rows[:3],), dynamic_shapes={"x": {0: many}})
    torch.export.save(program, folder / "model.pt2")
    np.savez(folder / "weights.npz", **{k: v.numpy() for k, v in model.state_dict().items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
