"""Trains the networks in a process that has TensorFlow; it has nothing else of this project.

Called as ``python network_worker.py towers|ranker FOLDER``. It reads ``task.npz`` in the folder and
writes ``result.npz``, the ranker also ``saved_model/``. No file is pickled.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf

_TEMPERATURE = 0.1
_PAIRS = 512  # of a batch: each is the others' negative
_ROWS = 1_024
_LIMIT = 5.0  # standard deviations
_HIDDEN = (64, 32)


def train_towers(task: Any) -> dict[str, Any]:
    """Learn embeddings and the user tower from pairs of a history and what was bought next.

    The loss is a softmax over the items of the batch, each item's logit lessened by the logarithm
    of how often it is one, so that popular ones are not punished (Yi et al., 2019).
    """
    items = tf.Variable(task["embeddings"])
    tower = tf.Variable(np.zeros((items.shape[1],) * 2, np.float32))
    optimizer = tf.keras.optimizers.Adam(1e-3)
    targets = task["targets"]
    often = np.log(np.bincount(targets, minlength=len(task["embeddings"])) / len(targets) + 1e-9)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator, unused-ignore]
    def step(history: Any, weights: Any, wanted: Any, logs: Any) -> Any:
        with tf.GradientTape() as tape:
            directions = tf.math.l2_normalize(items, axis=1)
            mean = tf.einsum("ph,phd->pd", weights, tf.gather(directions, history))
            mean = tf.math.l2_normalize(mean, axis=1)
            users = tf.math.l2_normalize(mean + tf.tanh(mean @ tower), axis=1)
            logits = users @ tf.transpose(tf.gather(directions, wanted)) / _TEMPERATURE - logs
            same = tf.logical_and(wanted[:, None] == wanted, ~tf.eye(len(wanted), dtype=tf.bool))
            logits = tf.where(same, -1e9, logits)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(len(wanted)), logits)
            )
        gradients = tape.gradient(loss, [items, tower])
        gradients[0] = tf.convert_to_tensor(gradients[0])
        optimizer.apply_gradients(zip(gradients, [items, tower], strict=True))
        return loss

    random = np.random.default_rng(int(task["seed"]))
    for _ in range(int(task["epochs"])):
        order = random.permutation(len(targets))
        for start in range(0, len(order), _PAIRS):
            rows = order[start : start + _PAIRS]
            wanted = targets[rows]
            step(
                tf.constant(np.maximum(task["history"][rows], 0)),
                tf.constant(task["weights"][rows]),
                tf.constant(wanted),
                tf.constant(often[wanted].astype(np.float32)),
            )
    return {"embeddings": tf.math.l2_normalize(items, axis=1).numpy(), "tower": tower.numpy()}


def train_ranker(task: Any, folder: Path) -> dict[str, Any]:
    """Learn the ranking network and write its SavedModel."""
    features, labels = task["features"], task["labels"]
    mean = np.nan_to_num(np.nanmean(features, axis=0)).astype(np.float32)
    scale = np.nan_to_num(np.nanstd(features, axis=0)).astype(np.float32)
    inverse = (1 / np.where(scale > 1e-6, scale, 1.0)).astype(np.float32)

    def prepared(rows: Any) -> Any:
        missing = tf.math.is_nan(rows)
        scaled = (tf.where(missing, mean, rows) - mean) * inverse
        scaled = tf.clip_by_value(scaled, -_LIMIT, _LIMIT)
        return tf.concat([scaled, tf.cast(missing, tf.float32)], axis=1)

    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((2 * features.shape[1],)),
            *(tf.keras.layers.Dense(width, activation="relu") for width in _HIDDEN),
            tf.keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(tf.keras.optimizers.Adam(2e-3), "binary_crossentropy")
    inputs = prepared(tf.constant(features)).numpy()
    model.fit(inputs, labels, _ROWS, int(task["epochs"]), verbose=0)
    module = tf.Module()
    module.model = model  # it owns the variables
    module.scores = tf.function(
        lambda inputs: {"scores": tf.squeeze(model(prepared(inputs)), axis=1)},
        input_signature=[tf.TensorSpec((None, features.shape[1]), tf.float32, "inputs")],
    )
    tf.saved_model.save(module, str(folder / "saved_model"), module.scores)
    probe = features[: int(task["probe"])]
    found = {"mean": mean, "inverse": inverse, "limit": np.float32(_LIMIT)}
    found["probe_scores"] = module.scores(tf.constant(probe))["scores"].numpy()
    for n, layer in enumerate(model.layers):
        found[f"weights_{n}"], found[f"biases_{n}"] = layer.get_weights()
    return found


def main(what: str, folder: Path) -> None:
    """Read the task, train, write the result."""
    with np.load(folder / "task.npz", allow_pickle=False) as stored:
        task = {name: stored[name] for name in stored.files}
    tf.keras.utils.set_random_seed(int(task["seed"]))
    found = train_towers(task) if what == "towers" else train_ranker(task, folder)
    np.savez(folder / "result.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
