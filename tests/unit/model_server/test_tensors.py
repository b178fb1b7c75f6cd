"""Arrays to messages and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model_server.errors import TensorError
from model_server.protos import DataType, TensorProto
from model_server.tensors import from_proto, shape_of, to_proto

NUMBERS = (
    *("float16", "float32", "float64", "complex64", "complex128", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


@given(
    st.sampled_from(NUMBERS).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    )
)
def test_numbers_survive_the_round_trip(array: np.ndarray) -> None:
    decoded = from_proto(TensorProto.FromString(to_proto(array).SerializeToString()))
    assert decoded.dtype == array.dtype
    assert decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()


@pytest.mark.parametrize("array", [np.array([[b"a", b""], [b"\xff", b"d"]]), np.array("text")])
def test_strings_survive_the_round_trip_as_bytes(array: np.ndarray) -> None:
    decoded = from_proto(to_proto(array))
    assert decoded.shape == array.shape
    expected = [x if isinstance(x, bytes) else x.encode() for x in array.ravel().tolist()]
    assert decoded.ravel().tolist() == expected


def test_memory_order_does_not_matter() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for view in (array.T, array[:, ::2], array[::-1]):
        assert np.array_equal(from_proto(to_proto(view)), view)


def test_content_is_viewed_not_copied() -> None:
    decoded = from_proto(to_proto(np.ones((2, 2), np.float32)))
    assert not decoded.flags.writeable
    assert not decoded.flags.owndata


def proto(dtype: str, shape: list[int], **fields: Any) -> Any:
    message = TensorProto(dtype=DataType.Value(dtype), **fields)
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (proto("DT_FLOAT", [2], float_val=[1.5, 2.5]), [1.5, 2.5]),
        (proto("DT_DOUBLE", [2], double_val=[1.5, 2.5]), [1.5, 2.5]),
        (proto("DT_INT32", [2], int_val=[-1, 2]), [-1, 2]),
        (proto("DT_INT64", [2], int64_val=[-1, 2**40]), [-1, 2**40]),
        (proto("DT_UINT8", [2], int_val=[0, 255]), [0, 255]),
        (proto("DT_INT8", [2], int_val=[-128, 127]), [-128, 127]),
        (proto("DT_UINT16", [2], int_val=[0, 65_535]), [0, 65_535]),
        (proto("DT_UINT32", [1], uint32_val=[2**32 - 1]), [2**32 - 1]),
        (proto("DT_UINT64", [1], uint64_val=[2**64 - 1]), [2**64 - 1]),
        (proto("DT_HALF", [3], half_val=[0x3C00, 0xC000]), [1.0, -2.0, -2.0]),
        (proto("DT_BFLOAT16", [2], half_val=[0x3F80, 0xC049]), [1.0, -3.140625]),
        (proto("DT_BFLOAT16", [1], tensor_content=b"\x80\x3f"), [1.0]),
        (proto("DT_COMPLEX64", [2], scomplex_val=[1, 2]), [1 + 2j, 1 + 2j]),
        (proto("DT_COMPLEX128", [2], dcomplex_val=[1, 2, 3, 4]), [1 + 2j, 3 + 4j]),
        (proto("DT_BOOL", [2], bool_val=[True, False]), [True, False]),
        (proto("DT_STRING", [2], string_val=[b"a", b"b"]), [b"a", b"b"]),
        (proto("DT_FLOAT", [3], float_val=[0.5]), [0.5, 0.5, 0.5]),
        (proto("DT_FLOAT", [4], float_val=[1, 2]), [1, 2, 2, 2]),
        (proto("DT_STRING", [2], string_val=[b"a"]), [b"a", b"a"]),
        (proto("DT_FLOAT", [2, 2], float_val=[1, 2, 3, 4]), [[1, 2], [3, 4]]),
        (proto("DT_FLOAT", [], float_val=[7]), 7),
        (proto("DT_FLOAT", [0, 5]), []),
    ],
)
def test_repeated_values_and_the_fill_rule(message: Any, expected: Any) -> None:
    assert from_proto(message).tolist() == expected


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (proto("DT_QINT8", [1], int_val=[1]), "DT_QINT8"),
        (proto("DT_COMPLEX64", [1], scomplex_val=[1]), "must be pairs"),
        (proto("DT_BFLOAT16", [1], tensor_content=b"1"), "1 bytes"),
        (proto("DT_INT16", [1], int_val=[32_768]), "does not fit"),
        (proto("DT_INVALID", [1]), "DT_INVALID"),
        (proto("DT_FLOAT", [2]), "0 values"),
        (proto("DT_FLOAT", [2], float_val=[1, 2, 3]), "3 values"),
        (proto("DT_FLOAT", [2], tensor_content=b"1234"), "4 bytes"),
        (proto("DT_FLOAT", [-1], float_val=[1]), "not fully known"),
        (proto("DT_STRING", [1], tensor_content=b"a"), "string_val"),
        (proto("DT_UINT8", [1], int_val=[256]), "does not fit"),
        (proto("DT_UINT8", [1], int_val=[-1]), "does not fit"),
        (proto("DT_FLOAT", [2**40, 2**20], float_val=[1]), "above the limit"),
        (proto("DT_FLOAT", [2**62, 2**62], tensor_content=b"1234"), "4 bytes"),
    ],
)
def test_malformed_tensor_is_refused(message: Any, words: str) -> None:
    with pytest.raises(TensorError, match=words):
        from_proto(message)


def test_unknown_rank_is_refused() -> None:
    message = proto("DT_FLOAT", [])
    message.tensor_shape.unknown_rank = True
    with pytest.raises(TensorError, match="not fully known"):
        shape_of(message)


@pytest.mark.parametrize("array", [np.zeros(1, "M8[s]"), np.array([1, None], dtype=object)])
def test_array_that_cannot_be_sent_is_refused(array: np.ndarray) -> None:
    with pytest.raises(TensorError):
        to_proto(array)
