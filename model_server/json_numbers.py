"""Lists of numbers out of JSON as arrays of a given type, for both protocols over HTTP."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from model_server.errors import InvalidRequest

__all__ = ["to_array"]

_ALLOWED = {"b": "b", "u": "ui", "i": "ui", "f": "fui"}
_LARGEST_INT64 = 2**63


def to_array(name: str, type_name: str, dtype: np.dtype[Any], data: Any) -> npt.NDArray[Any]:
    """Convert a number or even lists of numbers; null is how JSON writes NaN.

    Args:
        name: The input's, for messages.
        type_name: As its protocol calls the type, for messages.
        dtype: Boolean, integer or float.
        data: What JSON held.

    Raises:
        InvalidRequest: The lists are uneven, hold values of another type, or values out of range.
    """
    try:
        array = np.array(data)
        if array.dtype.kind == "O":
            array = np.array(data, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidRequest(f"input {name} is no even list of {type_name} values") from exc
    if not array.size:
        return array.astype(dtype)
    if dtype.kind in "ui" and array.dtype.kind == "f" and array.max() >= _LARGEST_INT64:
        array = _large_integers(data, array)
    if array.dtype.kind not in _ALLOWED[dtype.kind] and array.dtype.kind != "O":
        raise InvalidRequest(f"input {name} holds values that are not {type_name}")
    if dtype.kind in "ui":
        low, high, limits = int(array.min()), int(array.max()), np.iinfo(dtype)
        if low < limits.min or high > limits.max:
            raise InvalidRequest(f"input {name} has a value that does not fit {type_name}")
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _large_integers(data: Any, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return integers as they are: NumPy makes floats of [2**63, 0]. Others are left alone."""
    exact = np.array(data, dtype=object)
    whole = all(isinstance(value, int) for value in exact.flat)
    return exact if whole else array
