"""Compiled trees score as XGBoost does, or are not compiled at all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.backends.trees.compiler import compile_booster, compile_paths
from model_server.backends.trees.contributions import MAX_DEPTH
from model_server.backends.trees.forest import Forest
from model_server.backends.trees.sample import TOLERANCE

COLUMNS = 5
FORESTS: dict[str, Any] = {
    "seed": st.integers(0, 1_000),
    "trees": st.integers(1, 40),
    "depth": st.integers(1, MAX_DEPTH),
    "rate": st.sampled_from([0.1, 1.0]),
}


def train(seed: int, trees: int, **parameters: Any) -> xgboost.Booster:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(600, COLUMNS)).round(2)
    rows[rng.random(rows.shape) < 0.15] = np.nan
    labels = (np.nansum(rows[:, :3], axis=1) + rng.normal(size=600) > 0.5).astype(float)
    defaults = {"objective": "binary:logistic", "max_depth": 4, "seed": seed}
    return xgboost.train(defaults | parameters, xgboost.DMatrix(rows, labels), trees)


def compile_forest(booster: xgboost.Booster) -> Forest | None:
    compiled = compile_booster(booster)
    return None if compiled is None else compiled.checked()


def expected(booster: xgboost.Booster, rows: np.ndarray) -> np.ndarray:
    return booster.inplace_predict(rows, missing=np.nan, validate_features=False)


@settings(max_examples=25)
@given(**FORESTS, rows=st.integers(0, 200))
def test_scores_equal_xgboosts(seed: int, trees: int, depth: int, rate: float, rows: int) -> None:
    booster = train(seed, trees, max_depth=depth, learning_rate=rate)
    forest = compile_forest(booster)
    assert forest is not None
    rng = np.random.default_rng(seed + 1)
    edges = forest.thresholds[np.isfinite(forest.thresholds)]
    pool = np.concatenate(
        [edges, np.nextafter(edges, np.float32(-9)), [np.nan, np.inf, -np.inf, 0, -0.0, 1e30]]
    ).astype(np.float32)
    sample = rng.choice(pool, (rows, COLUMNS))
    difference = np.abs(forest.predict(sample) - expected(booster, sample))
    assert difference.max(initial=0) < TOLERANCE


def test_a_row_scores_the_same_in_any_batch() -> None:
    forest = compile_forest(train(3, 60, max_depth=6))
    assert forest is not None
    rows = np.random.default_rng(0).normal(size=(131, COLUMNS)).astype(np.float32)
    together = forest.predict(rows)
    assert np.array_equal(together, [forest.predict(row[None])[0] for row in rows])
    rows[7, 2] = np.nan  # the loop that minds missing values is another one
    assert np.array_equal(np.delete(forest.predict(rows), 7), np.delete(together, 7))


def test_rows_need_not_be_contiguous() -> None:
    booster = train(5, 10)
    forest = compile_forest(booster)
    assert forest is not None
    rows = np.random.default_rng(0).normal(size=(COLUMNS, 64)).astype(np.float32).T
    assert np.abs(forest.predict(rows) - expected(booster, np.ascontiguousarray(rows))).max() < 1e-6


def test_a_base_score_of_its_own_counts() -> None:
    booster = train(1, 3, base_score=0.02)
    forest = compile_forest(booster)
    assert forest is not None
    rows = np.zeros((1, COLUMNS), np.float32)
    assert forest.predict(rows)[0] == pytest.approx(expected(booster, rows)[0], abs=1e-6)


def test_pruned_trees_are_compiled() -> None:
    """Pruning leaves nodes in the file that no other leads to."""
    booster = train(4, 200, tree_method="exact", max_depth=8, gamma=0.05, learning_rate=0.3)
    learner = json.loads(bytes(booster.save_raw(raw_format="json")))["learner"]
    trees = learner["gradient_booster"]["model"]["trees"]
    kept = sum(len(tree["left_children"]) for tree in trees)
    forest = compile_forest(booster)
    assert forest is not None and forest.paths is not None
    assert len(forest.paths.columns) < kept
    rows = np.random.default_rng(0).normal(size=(50, COLUMNS)).astype(np.float32)
    assert np.abs(forest.predict(rows) - expected(booster, rows)).max() < TOLERANCE
    theirs = booster.predict(
        xgboost.DMatrix(rows, missing=np.nan), pred_contribs=True, validate_features=False
    )[:, :-1]
    assert np.abs(forest.paths.contributions(rows) - theirs).max() < 1e-3


@pytest.mark.parametrize(("array", "value"), [("children", 10**6), ("earlier", -1)])
def test_nodes_that_lead_out_of_their_tree_are_refused(array: str, value: int) -> None:
    forest = compile_forest(train(1, 5))
    assert forest is not None and forest.paths is not None
    wrong = getattr(forest.paths, array).copy()
    wrong[forest.paths.columns.argmax()] = value
    with pytest.raises(ValueError, match="hang together"):
        replace(forest.paths, **{array: wrong})


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_depth": MAX_DEPTH + 4, "min_child_weight": 0, "gamma": 0, "lambda": 0},
        {"booster": "dart", "rate_drop": 0.5},
        {"objective": "count:poisson"},
        {"objective": "multi:softprob", "num_class": 2},
    ],
    ids=["too deep", "dart", "no probability", "classes"],
)
def test_other_kinds_are_left_to_xgboost(parameters: dict[str, Any]) -> None:
    assert compile_forest(train(2, 12, **parameters)) is None


def test_categorical_splits_are_left_to_xgboost() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, (400, 2)).astype(float)
    matrix = xgboost.DMatrix(
        rows, (rows[:, 0] == 2).astype(float), feature_types=["c", "c"], enable_categorical=True
    )
    booster = xgboost.train({"objective": "binary:logistic", "max_cat_to_onehot": 1}, matrix, 3)
    assert compile_forest(booster) is None


@settings(max_examples=25)
@given(**FORESTS, rows=st.integers(1, 40))
def test_contributions_equal_xgboosts(
    seed: int, trees: int, depth: int, rate: float, rows: int
) -> None:
    booster = train(seed, trees, max_depth=depth, learning_rate=rate, min_child_weight=0.1)
    forest = compile_forest(booster)
    assert forest is not None and forest.paths is not None
    rng = np.random.default_rng(seed + 1)
    edges = forest.thresholds[np.isfinite(forest.thresholds)]
    sample = rng.choice(np.concatenate([edges, [np.nan, 0.0, 1e30]]), (rows, COLUMNS))
    sample = sample.astype(np.float32)
    matrix = xgboost.DMatrix(sample, missing=np.nan)
    theirs = booster.predict(matrix, pred_contribs=True)[:, :-1]
    scale = max(1.0, np.abs(theirs).max(initial=0))
    assert np.abs(forest.paths.contributions(sample) - theirs).max(initial=0) < 2e-5 * scale


def test_contributions_by_hand() -> None:
    # x0 < 1: (x1 < 2: 8, else 4) with half of the weight each; else 0 with half of all weight
    tree = {
        "left_children": [1, 3, -1, -1, -1],
        "right_children": [2, 4, -1, -1, -1],
        "split_indices": [0, 1, 0, 0, 0],
        "split_conditions": [1.0, 2.0, 0.0, 8.0, 4.0],
        "default_left": [1, 1, 0, 0, 0],
        "sum_hessian": [8.0, 4.0, 4.0, 2.0, 2.0],
    }
    paths = compile_paths([tree])
    assert paths is not None
    # Values of the coalitions {}, {x0}, {x1}, {x0, x1}: 3, 6, 4, 8 for the first row
    # and 3, 0, 4, 0 for the second: a Shapley value is the mean over both orders.
    found = paths.contributions(np.array([[0, 0], [5, 0]], np.float32))
    assert np.allclose(found, [[(3 + 4) / 2, (1 + 2) / 2], [(-3 - 4) / 2, (1 + 0) / 2]], atol=1e-6)


def test_a_split_without_weight_on_a_side_is_left_to_xgboost() -> None:
    tree = {
        "left_children": [1, -1, -1],
        "right_children": [2, -1, -1],
        "split_indices": [0, 0, 0],
        "split_conditions": [1.0, 0.0, 8.0],
        "default_left": [1, 0, 0],
        "sum_hessian": [4.0, 0.0, 4.0],
    }
    assert compile_paths([tree]) is None
