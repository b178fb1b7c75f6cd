"""A ranking network of random weights, and rows for it."""

from pathlib import Path
from typing import Any

import numpy as np

from udfs.ranking.features import FEATURES
from udfs.ranking.network import Network


def rows_with_gaps(count: int) -> np.ndarray:
    random = np.random.default_rng(5)
    rows = random.normal(3, 4, (count, len(FEATURES))).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows


def a_network() -> Network:
    random = np.random.default_rng(1)
    width = len(FEATURES)
    weights: dict[str, Any] = {
        "mean": random.normal(size=width).astype(np.float32),
        "inverse": random.uniform(0.1, 1, width).astype(np.float32),
        "limit": np.float32(5),
    }
    for n, (rows, columns) in enumerate([(2 * width, 16), (16, 8), (8, 1)]):
        weights[f"weights_{n}"] = random.normal(0, 0.3, (rows, columns)).astype(np.float32)
        weights[f"biases_{n}"] = random.normal(0, 0.1, columns).astype(np.float32)
    return Network(weights, Path(), rows_with_gaps(1), np.zeros(1, np.float32))
