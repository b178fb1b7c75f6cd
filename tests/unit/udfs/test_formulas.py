"""The formula language: Python's own answers, and nothing else that Python can do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.features.formulas import FormulaError, Kind, parse

KINDS: dict[str, Kind] = {"a": "number", "b": "number", "flag": "truth", "kind": "text"}
COLUMNS: dict[str, Any] = {
    "a": np.array([1.0, -2.0, np.nan, 0.0]),
    "b": np.array([4.0, 0.5, 3.0, np.nan]),
    "flag": np.array([1.0, 0.0, np.nan, 1.0]),
    "kind": ["CNP", "CP", None, "CNP"],
}
NAN = math.nan


def numbers(text: str) -> list[float]:
    return parse(text, KINDS).numbers(COLUMNS, 4).tolist()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a", [1, -2, NAN, 0]),
        ("a + b * 2 - 1", [8, -2, NAN, NAN]),
        ("-a", [-1, 2, NAN, 0]),
        ("a / b", [0.25, -4, NAN, NAN]),
        ("b // 3", [1, 0, 1, NAN]),
        ("b % 3", [1, 0.5, 0, NAN]),
        ("b ** 2", [16, 0.25, 9, NAN]),
        ("7", [7, 7, 7, 7]),
        ("a > 0", [1, 0, 0, 0]),
        ("a != 1", [0, 1, 0, 1]),
        ("not a > 0", [0, 1, 1, 1]),
        ("0 <= a < 1", [0, 0, 0, 1]),
        ("a in (1, 0)", [1, 0, 0, 1]),
        ("a not in (1, 5)", [0, 1, 0, 1]),
        ("kind == 'CNP'", [1, 0, 0, 1]),
        ("'CNP' != kind", [0, 1, 0, 0]),
        ("kind in ('CP', 'x')", [0, 1, 0, 0]),
        ("kind not in ['CP']", [1, 0, 0, 1]),
        ("kind == kind", [1, 1, 0, 1]),
        ("flag", [1, 0, 0, 1]),
        ("flag and a > 0 or kind == 'CP'", [1, 1, 0, 0]),
        ("is_missing(a)", [0, 0, 1, 0]),
        ("is_missing(flag)", [0, 0, 1, 0]),
        ("is_missing(kind)", [0, 0, 1, 0]),
        ("if_missing(a, b)", [1, -2, 3, 0]),
        ("a if flag else b", [1, 0.5, 3, 0]),
        ("min(a, b, 2)", [1, -2, NAN, NAN]),
        ("max(a, 0)", [1, 0, NAN, 0]),
        ("abs(a)", [1, 2, NAN, 0]),
        ("round(b)", [4, 0, 3, NAN]),
        ("log(a)", [0, NAN, NAN, -math.inf]),
        ("sqrt(b)", [2, math.sqrt(0.5), math.sqrt(3), NAN]),
    ],
)
def test_what_a_formula_yields(text: str, wanted: list[float]) -> None:
    np.testing.assert_array_equal(numbers(text), wanted)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no formula"),
        ("a +", "no formula"),
        ("a = 1", "no formula"),
        ("c + 1", "no column 'c'; there are a, b, flag, kind"),
        ("kind + 1", "'kind' is a text, but a number is needed"),
        ("kind > 'a'", "compare it with ==, != or in"),
        ("kind == 1", "is a number and is compared with a text"),
        ("a and b", "'a' is a number, but a truth is needed"),
        ("a is b", "not allowed: use =="),
        ("a in b", "must be a list of constants"),
        ("a in ()", "must be a list of constants"),
        ("a in ('x',)", "constants of numbers"),
        ("kind in (1, 2)", "constants of texts"),
        ("a @ b", "use + - * / // % **"),
        ("~a", "use not or -"),
        ("a.real", "is not allowed in a formula"),
        ("a[0]", "is not allowed"),
        ("[a for a in b]", "is not allowed"),
        ("lambda: 1", "is not allowed"),
        ("(a := 1)", "is not allowed"),
        ("f'{a}'", "is not allowed"),
        ("__import__('os')", "is no function"),
        ("open('x')", "is no function"),
        ("abs.__class__(a)", "is no function"),
        ("abs(x=a)", "is no function"),
        ("abs(a, b)", "takes 1 values, not 2"),
        ("min(a)", "takes at least 2 values"),
        ("is_missing()", "takes one value"),
        ("1" * 400, "too large"),
        ("a in (" + "1" * 400 + ",)", "too large"),
        ("a in (1,) in (2,)", "chains `in`"),
        ("None", "is no number, text"),
        ("b'x' == kind", "is no number, text"),
        ("a if kind else b", "a truth is needed"),
        ("a" + " + 1" * 200, "nested at most"),
        ("1" * 2_001, "at most 2000 characters"),
    ],
)
def test_what_is_refused_and_why(text: str, why: str) -> None:
    with pytest.raises(FormulaError, match=why.replace("+", r"\+").replace("*", r"\*")):
        parse(text, KINDS)


def test_a_formula_names_what_it_reads() -> None:
    formula = parse("a / b if kind == 'CP' else a", KINDS)
    assert set(formula.names) == {"a", "b", "kind"} and formula.kind == "number"


leaves = st.sampled_from(["a", "b", "1.5", "-2", "0"])
arithmetic = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
        st.builds(
            "({} if {} {} {} else {})".format, inner, inner, st.sampled_from("<>"), inner, inner
        ),
        st.builds("max({}, {})".format, inner, inner),
    ),
    max_leaves=8,
)
values = st.lists(st.tuples(*[st.floats(-100, 100)] * 2), min_size=1, max_size=6)


@given(text=arithmetic, rows=values)
@settings(max_examples=200)
def test_it_says_what_python_says(text: str, rows: list[tuple[float, float]]) -> None:
    columns = {"a": np.array([a for a, _ in rows]), "b": np.array([b for _, b in rows])}
    got = parse(text, KINDS).numbers(columns, len(rows))
    wanted = [eval(text, {"max": max}, {"a": a, "b": b}) for a, b in rows]
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_its_columns_stay_as_they_are() -> None:
    before = COLUMNS["a"].copy()
    result = parse("a", KINDS).numbers(COLUMNS, 4)
    result[:] = 9.0
    np.testing.assert_array_equal(COLUMNS["a"], before)


def test_nested_chains_are_computed_once() -> None:
    text = "a"
    for _ in range(20):
        text = f"(0 < {text} < 9)"
    assert numbers(text) == [1, 0, 0, 0]
