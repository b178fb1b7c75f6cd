"""Arrays to the Open Inference Protocol's tensors and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_server.errors import InvalidRequest
from model_server.oip import tensors
from model_server.oip.messages import message

NUMBERS = (
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
any_numbers = st.sampled_from(NUMBERS).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
)
any_strings = st.lists(st.binary(max_size=9), max_size=5).map(lambda x: np.array(x, dtype=object))


def output() -> Any:
    return message("ModelInferResponse")().outputs.add(name="x")


@given(any_numbers | any_strings)
def test_raw_bytes_survive_the_round_trip(array: np.ndarray) -> None:
    datatype = tensors.datatype_of(array.dtype)
    decoded = tensors.from_raw("x", datatype, array.shape, tensors.to_raw(array))
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    assert decoded.tolist() == array.tolist() or decoded.tobytes() == array.tobytes()


@given(any_numbers | any_strings)
def test_contents_survive_the_round_trip(array: np.ndarray) -> None:
    tensor = output()
    tensors.fill_contents(tensor, array)
    decoded = tensors.from_contents(tensor)
    expected = array.astype(np.float32) if array.dtype == np.float16 else array
    assert (decoded.dtype, decoded.shape) == (expected.dtype, expected.shape)
    assert decoded.tolist() == expected.tolist() or decoded.tobytes() == expected.tobytes()


@given(any_numbers.filter(lambda array: bool(np.isfinite(array).all())), st.booleans())
def test_json_survives_the_round_trip_flat_and_nested(array: np.ndarray, nested: bool) -> None:
    data = array.tolist() if nested and array.ndim else tensors.to_json(array)
    datatype = tensors.datatype_of(array.dtype)
    decoded = tensors.from_json("x", datatype, array.shape, orjson.loads(orjson.dumps(data)))
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    assert np.array_equal(decoded, array)


def test_bfloat16_is_read_as_float32() -> None:
    assert tensors.from_raw("x", "BF16", (2,), b"\x80\x3f\x49\xc0").tolist() == [1.0, -3.140625]
    assert tensors.from_json("x", "BF16", (1,), [0.5]).dtype == np.float32


def test_null_is_nan_and_texts_are_bytes() -> None:
    assert np.isnan(tensors.from_json("x", "FP32", (2,), [1.0, None])[1])
    assert tensors.from_json("x", "BYTES", (2, 1), [["a"], ["ß"]]).tolist() == [
        [b"a"],
        ["ß".encode()],
    ]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("FP31", (1,), b"1234", "datatype 'FP31' is not one of"),
        ("FP32", (2,), b"1234", "4 bytes"),
        ("FP32", (-1,), b"1234", "negative"),
        ("FP32", (2**62, 2**62), b"", "0 bytes"),
        ("BYTES", (1,), b"\x05\x00\x00\x00ab", "ends inside"),
        ("BYTES", (1,), b"\x05\x00", "ends inside"),
        ("BYTES", (2,), b"\x00\x00\x00\x00", "1 elements"),
    ],
)
def test_malformed_raw_bytes_are_refused(
    datatype: str, shape: Any, data: bytes, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tensors.from_raw("x", datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "fields", "words"),
    [
        ("FP32", {"fp64_contents": [1.0]}, "0 values in fp32_contents"),
        ("FP32", {"fp32_contents": [1.0, 2.0]}, "2 values"),
        ("FP16", {"fp32_contents": [1.0]}, "raw bytes"),
        ("INT8", {"int_contents": [128]}, "does not fit INT8"),
        ("UINT16", {"uint_contents": [2**16]}, "does not fit UINT16"),
        ("X", {}, "datatype 'X'"),
    ],
)
def test_malformed_contents_are_refused(datatype: str, fields: Any, words: str) -> None:
    tensor = message("ModelInferRequest")().inputs.add(name="x", datatype=datatype, shape=[1])
    for name, values in fields.items():
        getattr(tensor.contents, name).extend(values)
    with pytest.raises(InvalidRequest, match=words):
        tensors.from_contents(tensor)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("FP32", (1,), None, "must be a list"),
        ("FP32", (2,), [1.0], "1 values"),
        ("FP32", (2,), [[1.0], [1.0, 2.0]], "no even list"),
        ("FP32", (1,), ["a"], "not FP32"),
        ("FP32", (1,), [{}], "no even list"),
        ("INT64", (1,), [1.5], "not INT64"),
        ("INT8", (1,), [128], "does not fit INT8"),
        ("UINT64", (1,), [-1], "does not fit UINT64"),
        ("INT64", (1,), [10**30], "does not fit INT64"),
        ("BOOL", (1,), [1], "not BOOL"),
        ("BYTES", (1,), [1], "takes bytes or text"),
    ],
)
def test_malformed_json_is_refused(datatype: str, shape: Any, data: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tensors.from_json("x", datatype, shape, data)


def test_dtype_without_a_datatype_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no datatype"):
        tensors.to_raw(np.zeros(1, "M8[s]"))
