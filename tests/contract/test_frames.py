"""Arrays survive their way to another process."""

from __future__ import annotations

import mmap
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from model_server.backends.frames import pack, unpack

NUMBERS = arrays_of.arrays(
    arrays_of.scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc"),
    arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@st.composite
def strings(draw: st.DrawFn) -> np.ndarray:
    shape = draw(arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    array = np.empty(shape, object)
    for index in np.ndindex(shape):
        array[index] = draw(st.binary(max_size=20))
    return array


@given(
    st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text())),
    st.dictionaries(st.text(), st.one_of(NUMBERS, strings()), max_size=5),
)
def test_frames_round_trip(head: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    found_head, found = unpack(pack(head, arrays))
    assert found_head == head
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        if array.dtype.kind == "O":
            assert found[name].tolist() == array.tolist()
        else:
            assert found[name].tobytes() == array.tobytes()


def test_numbers_are_views_of_a_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(pack({"a": 1}, {"x": np.arange(5.0), "y": np.ones((2, 3), np.float32)}))
        file.flush()
        _, arrays = unpack(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert arrays["x"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert arrays["y"].flags.aligned and arrays["y"].flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        arrays["x"][0] = 1.0
