"""What training fits, against counting by hand; no row sees its own label."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.batches.categories import code_of, codes_of, texts_of
from udfs.definition.schema import Schema
from udfs.preparation.encoders import Hashing, OneHot, Ordinal, Target
from udfs.preparation.fitting import TARGET_BLOCKS, Rows, fit, training_matrix

SHOPS = ["a", "b", "c", "d"]


def schema(preparation: dict[str, Any] | None = None, **category: Any) -> Schema:
    """A number, and a category if it is described."""
    expressions = [{"name": "amount", "type": "value", "fields": ["amount"]}]
    if category:
        expressions.append({"name": "shop", "type": "category", "fields": ["shop"], **category})
    return Schema.model_validate(
        {
            "event": {
                "id": "id",
                "time": {"field": "t"},
                "fields": [
                    {"name": "id", "type": "string"},
                    {"name": "t", "type": "int"},
                    {"name": "amount", "type": "float", "required": False},
                    {"name": "shop", "type": "string", "required": False},
                ],
            },
            "key": "id",
            "features": {"expressions": expressions, "preparation": preparation or {}},
        }
    )


def rows_of(shops: list[str | None], labels: list[int], times: list[int] | None = None) -> Rows:
    features = np.column_stack([np.arange(len(shops), dtype=float), codes_of(shops)])
    when = np.array(times if times is not None else range(len(shops)), np.int64)
    return Rows(features, np.array(labels, np.float64), when)


def encoder(shops: list[str | None], labels: list[int] | None = None, **category: Any) -> Any:
    rows = rows_of(shops, labels or [0] * len(shops))
    return fit(schema(**category), rows, {"shop": texts_of(shops)}).inputs[1].encoding


# -- missing values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("impute", "value"),
    [("median", 3.0), ("mean", 4.0), ("none", None), (-7.25, -7.25), (0, 0.0)],
)
@pytest.mark.parametrize("own", [False, True])
def test_missing_values(impute: Any, value: float | None, own: bool) -> None:
    column = np.array([[1.0], [np.nan], [3.0], [8.0]])
    spec = {"columns": {"amount": {"impute": impute}}} if own else {"default": impute}
    fitted = fit(schema(spec), Rows(column, np.zeros(4), np.arange(4)), {})
    assert fitted.inputs[0].impute == value


def test_a_column_of_nothing_is_imputed_with_zero() -> None:
    rows = Rows(np.full((3, 1), np.nan), np.zeros(3), np.arange(3))
    for impute in ("median", "mean"):
        assert fit(schema({"default": impute}), rows, {}).inputs[0].impute == 0.0


def test_an_indicator_goes_with_the_default() -> None:
    rows = Rows(np.array([[2.0], [np.nan]]), np.zeros(2), np.arange(2))
    spec = {"default": "mean", "columns": {"amount": {"indicator": True}}}
    fitted = fit(schema(spec), rows, {})
    assert fitted.columns == ("amount", "amount_missing")
    assert fitted.transform(rows.features).tolist() == [[2.0, 0.0], [2.0, 1.0]]


# -- categories ---------------------------------------------------------------------------------

columns = st.lists(st.sampled_from([*SHOPS, None]), min_size=1, max_size=40)


@given(columns, st.integers(1, 4), st.none() | st.integers(1, 3))
def test_the_most_frequent_are_kept(
    shops: list[str | None], min_count: int, most: int | None
) -> None:
    counted = Counter(shop for shop in shops if shop is not None)
    order = sorted(counted, key=lambda shop: (-counted[shop], shop))
    kept = [shop for shop in order if counted[shop] >= min_count][:most]
    limits = {"min_count": min_count, "max_categories": most}
    ranks = encoder(shops, encoding="ordinal", **limits)
    shown = encoder(shops, encoding="one_hot", **limits)
    means = encoder(shops, encoding="target", **limits)
    assert isinstance(ranks, Ordinal) and isinstance(shown, OneHot) and isinstance(means, Target)
    assert list(ranks.texts) == list(shown.texts) == list(means.texts) == kept
    assert list(ranks.codes) == [code_of(text) for text in kept]
    assert shown.other == (len(kept) < len(counted) or not kept)


def test_one_hot_has_32_columns_unless_more_are_asked_for() -> None:
    shops: list[str | None] = [f"s{n}" for n in range(40)]
    assert len(encoder(shops, encoding="one_hot").texts) == 32
    assert len(encoder(shops, encoding="one_hot", max_categories=40).texts) == 40
    assert len(encoder(shops, encoding="ordinal").texts) == 40


def test_hashing_has_its_buckets() -> None:
    assert encoder(["a"], encoding="hashing", buckets=5) == Hashing(buckets=5)


# -- target encodings ---------------------------------------------------------------------------


def smoothed(labels: list[int], prior: float, m: float, min_count: int) -> float:
    if len(labels) < min_count:
        return prior
    return (sum(labels) + m * prior) / (len(labels) + m)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[str | None], list[int], list[int]]:
    n = draw(st.integers(1, 60))
    exactly = {"min_size": n, "max_size": n}
    shops = draw(st.lists(st.sampled_from([*SHOPS, None]), **exactly))
    labels = draw(st.lists(st.integers(0, 1), **exactly))
    return shops, labels, sorted(draw(st.lists(st.integers(0, 20), **exactly)))


@given(labelled(), st.sampled_from([0.0, 0.5, 20.0]), st.integers(1, 3))
def test_target_encodings(
    history: tuple[list[str | None], list[int], list[int]], m: float, min_count: int
) -> None:
    shops, labels, times = history
    job = schema(encoding="target", smoothing=m, min_count=min_count)
    rows = rows_of(shops, labels, times)
    fitted = fit(job, rows, {"shop": texts_of(shops)})
    encoding = fitted.inputs[1].encoding
    assert isinstance(encoding, Target)
    prior = sum(labels) / len(labels)
    assert encoding.prior == pytest.approx(prior)
    for text, value in zip(encoding.texts, encoding.values, strict=True):
        own = [label for label, shop in zip(labels, shops, strict=True) if shop == text]
        assert value == pytest.approx(smoothed(own, prior, m, min_count))
    trained = training_matrix(job, fitted, rows)
    even = [times[len(times) * n // TARGET_BLOCKS] for n in range(TARGET_BLOCKS)]
    for n, shop in enumerate(shops):
        since = max(start for start in even if start <= times[n])
        before = [
            labels[i] for i in range(len(shops)) if times[i] < since and shops[i] == shop and shop
        ]
        expected = smoothed(before, prior, m, min_count)
        assert trained[n, 1] == pytest.approx(expected, rel=1e-6)


@given(labelled(), st.data())
def test_no_row_sees_its_own_label(
    history: tuple[list[str | None], list[int], list[int]], data: st.DataObject
) -> None:
    shops, labels, times = history
    first, second = (data.draw(st.integers(0, len(shops) - 1)) for _ in range(2))
    labels[first], labels[second] = 0, 1  # exchanged, the prior stays as it is
    swapped = [1 - label if n in (first, second) else label for n, label in enumerate(labels)]
    job, found = schema(encoding="target", smoothing=1.0), []
    for chosen in (labels, swapped):
        rows = rows_of(shops, chosen, times)
        fitted = fit(job, rows, {"shop": texts_of(shops)})
        found.append(training_matrix(job, fitted, rows)[:, 1])
    earliest = min(times[first], times[second])
    if first != second:
        same = np.array(times) <= earliest
        np.testing.assert_array_equal(found[0][same], found[1][same])


def test_other_columns_are_trained_on_as_they_are_served() -> None:
    rows = rows_of(["a", "b", None, "a"], [0, 1, 0, 1])
    job = schema({"columns": {"shop": {"indicator": True}}}, encoding="target")
    fitted = fit(job, rows, {"shop": texts_of(["a", "b"])})
    served, trained = fitted.transform(rows.features), training_matrix(job, fitted, rows)
    np.testing.assert_array_equal(served[:, [0, 2]], trained[:, [0, 2]])
    assert fitted.columns == ("amount", "shop", "shop_missing")


def test_an_unknown_and_a_missing_category_have_the_prior() -> None:
    rows = rows_of(["a", "a", "b", "b"], [0, 0, 1, 1])
    fitted = fit(schema(encoding="target"), rows, {"shop": texts_of(["a", "b"])})
    served = fitted.transform(np.array([[0.0, code_of("new")], [0.0, math.nan]]))
    assert served[:, 1].tolist() == [0.5, 0.5]
