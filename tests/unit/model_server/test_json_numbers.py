"""Numbers out of JSON arrive exactly or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.errors import InvalidRequest
from model_server.json_numbers import to_array

INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]


@given(st.lists(st.integers(-(2**65), 2**65), min_size=1), st.sampled_from(INTEGERS))
def test_integers_are_exact_or_refused(values: list[int], dtype: np.dtype[Any]) -> None:
    limits = np.iinfo(dtype)
    if all(limits.min <= value <= limits.max for value in values):
        assert to_array("x", "INT", dtype, values).tolist() == values
    else:
        with pytest.raises(InvalidRequest):
            to_array("x", "INT", dtype, values)


@pytest.mark.parametrize("values", [[2**63, 0.5], [0.5], [True], ["1"], [[1], [2, 3]], [None]])
def test_what_is_no_integer_is_refused(values: list[Any]) -> None:
    with pytest.raises(InvalidRequest):
        to_array("x", "UINT64", np.dtype(np.uint64), values)


def test_null_is_nan() -> None:
    assert np.isnan(to_array("x", "FP32", np.dtype(np.float32), [1, None])[1])
