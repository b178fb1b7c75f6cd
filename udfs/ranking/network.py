"""The networks of a ranking model: two towers, and a ranking network over the pairs' features.

TensorFlow trains them in a process of its own (``network_worker.py``), so that neither the job nor
the server needs it. The ranking network comes back twice: as a SavedModel and, written here from
the same weights, as ONNX.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from udfs.ranking.arrays import Keys, Singles, halved
from udfs.ranking.examples import Examples
from udfs.ranking.index import ItemIndex
from udfs.ranking.log import PurchaseLog, item_keys
from udfs.ranking.users import UserLimits, UserState
from udfs.ranking.views import HISTORY_HALF_LIFE_DAYS

__all__ = ["Network", "NetworkError", "NetworkOptions", "scores_of", "train_ranker", "with_towers"]

_WORKER = Path(__file__).with_name("network_worker.py")
_HISTORY = 50  # items of a pair's history
_TARGETS = 5  # items of a basket that become pairs
PROBE = 512


class NetworkError(RuntimeError):
    """The networks cannot be trained; the text says why."""


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How the networks are trained.

    Attributes:
        python: Interpreter that has TensorFlow; this one if empty.
        epochs: Passes over the examples.
        seed: Of all that is random.
    """

    python: str
    epochs: int
    seed: int


@dataclass(frozen=True)
class Network:
    """A trained ranking network.

    Attributes:
        weights: By name: ``mean`` and ``inverse`` (F,), ``limit``, ``weights_n`` and ``biases_n``.
        saved_model: A folder that ``train_ranker`` was given.
        probe: float32 (n, F), rows whose scores are known.
        probe_scores: What the SavedModel gave for them, float32 (n,).
    """

    weights: dict[str, Any]
    saved_model: Path
    probe: Singles
    probe_scores: Singles


def with_towers(log: PurchaseLog, index: ItemIndex, options: NetworkOptions) -> ItemIndex:
    """The index with two-tower embeddings, learnt from the purchases before its time.

    Raises:
        NetworkError: There is no TensorFlow, or it failed.
    """
    pairs = _pairs(log.before(index.as_of_ms), index, np.random.default_rng(options.seed))
    if not len(pairs["targets"]):
        return index
    with tempfile.TemporaryDirectory() as folder:
        task = {"embeddings": index.embeddings, **pairs}
        found = _run("towers", Path(folder), task, options)
    # An item without a purchase keeps the direction 0.
    known = np.linalg.norm(index.embeddings, axis=1, keepdims=True) > 0
    embeddings = np.where(known, found["embeddings"], np.float32(0))
    return replace(index, embeddings=embeddings, user_tower=found["tower"])


def train_ranker(examples: Examples, folder: Path, options: NetworkOptions) -> Network:
    """Train the ranking network.

    Args:
        examples: Rows to learn from.
        folder: An empty one, which gets the SavedModel.
        options: How.

    Raises:
        NetworkError: There is no TensorFlow, or it failed.
    """
    task = {"features": examples.features, "labels": examples.labels, "probe": np.int64(PROBE)}
    found = _run("ranker", folder, task, options)
    scores = found.pop("probe_scores")
    return Network(found, folder / "saved_model", examples.features[:PROBE], scores)


def _pairs(past: PurchaseLog, index: ItemIndex, random: np.random.Generator) -> dict[str, Any]:
    """Histories, their weights, and what was bought next."""
    keys = item_keys(past)
    rows = index.rows_of(keys)
    users: dict[int, UserState] = {}
    history, weights, targets = list[Any](), list[Any](), list[int]()
    for basket in past.in_baskets():
        state = users.setdefault(basket.user, UserState())
        if len(state.entries):
            shown = _shown(index, state, basket.time_ms)
            count = min(_TARGETS, len(basket.items))
            for item in random.choice(basket.items, count, replace=False).tolist():
                history.append(shown[0])
                weights.append(shown[1])
                targets.append(int(rows[item]))
        _take(state, keys[basket.items], basket.time_ms)
    return {
        "history": np.array(history, np.int32).reshape(-1, _HISTORY),
        "weights": np.array(weights, np.float32).reshape(-1, _HISTORY),
        "targets": np.array(targets, np.int32),
    }


def _take(state: UserState, keys: Keys, time_ms: int) -> None:
    state.add(keys, time_ms, None, UserLimits(items=_HISTORY))


def _shown(index: ItemIndex, state: UserState, time_ms: int) -> tuple[Any, Any]:
    """The history's rows and weights, filled up with weight 0."""
    rows = np.zeros(_HISTORY, np.int32)
    weights = np.zeros(_HISTORY, np.float32)
    count = len(state.entries)
    rows[:count] = index.rows_of(state.entries["key"])
    weights[:count] = halved(time_ms - state.entries["last_ms"], HISTORY_HALF_LIFE_DAYS)
    return rows, weights


def _run(what: str, folder: Path, task: dict[str, Any], options: NetworkOptions) -> dict[str, Any]:
    settings = {"epochs": np.int64(options.epochs), "seed": np.int64(options.seed)}
    np.savez(folder / "task.npz", **task, **settings)
    # -I: not this interpreter's packages, which may be of other versions, nor the modules beside
    # the worker, whose names other packages have too.
    command = [options.python or sys.executable, "-I", str(_WORKER), what, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as exc:
        raise NetworkError(f"{command[0]} cannot be run: {exc}") from exc
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise NetworkError(
            f"{command[0]} could not train: {last}; it needs TensorFlow: make setup "
            "EXTRA=tensorflow, or name an interpreter that has it as training.ranking.python"
        )
    with np.load(folder / "result.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def scores_of(network: Network, rows: Singles) -> Singles:
    """The network's scores, float32 (n,), computed with NumPy.

    Args:
        network: Trained.
        rows: float32 (n, F); NaN is missing.
    """
    weights = network.weights
    missing = np.isnan(rows)
    scaled = (np.where(missing, weights["mean"], rows) - weights["mean"]) * weights["inverse"]
    limit = float(weights["limit"])
    values = np.concatenate((np.clip(scaled, -limit, limit), missing), axis=1).astype(np.float32)
    layers = sum(name.startswith("weights_") for name in weights)
    for n in range(layers):
        values = values @ weights[f"weights_{n}"] + weights[f"biases_{n}"]
        if n < layers - 1:
            values = np.maximum(values, np.float32(0))
    scores: Singles = (1 / (1 + np.exp(-values[:, 0]))).astype(np.float32)
    return scores
