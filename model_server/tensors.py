"""NumPy arrays <-> TensorFlow's TensorProto.

Out: numbers go as ``tensor_content`` (one copy), strings as ``string_val``. In: ``tensor_content``
is viewed, not copied (``np.frombuffer``, hence read-only); the repeated ``*_val`` fields follow
TensorFlow's rule that the last value fills the rest. Two deliberate differences from TensorFlow: a
tensor that has elements but carries no value at all is refused instead of read as zeros, for a
zero score must have been sent by somebody; and a tensor that would grow by the fill rule beyond
``max_elements`` is refused, for a few bytes must not claim gigabytes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model_server.errors import TensorError
from model_server.protos import DTYPE_NAMES, DataType, TensorProto

__all__ = ["MAX_ELEMENTS", "data_type", "from_proto", "shape_of", "to_proto"]

#: Largest number of elements that repeated fields may expand to (64 MiB of float32).
MAX_ELEMENTS = 16 * 1024 * 1024


class _Kind(NamedTuple):
    dtype: np.dtype[Any]
    field: str


# Wire bytes are little-endian whatever the host is.
_KINDS: dict[int, _Kind] = {
    DataType.Value("DT_FLOAT"): _Kind(np.dtype("<f4"), "float_val"),
    DataType.Value("DT_DOUBLE"): _Kind(np.dtype("<f8"), "double_val"),
    DataType.Value("DT_INT32"): _Kind(np.dtype("<i4"), "int_val"),
    DataType.Value("DT_INT64"): _Kind(np.dtype("<i8"), "int64_val"),
    DataType.Value("DT_UINT8"): _Kind(np.dtype("u1"), "int_val"),
    DataType.Value("DT_BOOL"): _Kind(np.dtype("?"), "bool_val"),
    DataType.Value("DT_STRING"): _Kind(np.dtype("O"), "string_val"),
}
_STRING: int = DataType.Value("DT_STRING")
_NUMBER_OF_DTYPE = {kind.dtype: number for number, kind in _KINDS.items()}


def data_type(dtype: npt.DTypeLike) -> int:
    """Return the DataType number of a NumPy dtype.

    Raises:
        TensorError: The dtype has no counterpart here.
    """
    wanted = np.dtype(dtype)
    if wanted.kind in "SUO":
        return _STRING
    number = _NUMBER_OF_DTYPE.get(wanted)
    if number is None:
        raise TensorError(f"dtype {wanted} cannot be sent; supported: {_supported()}")
    return number


def _supported() -> str:
    return ", ".join(DTYPE_NAMES[number] for number in _KINDS)


def to_proto(array: npt.NDArray[Any]) -> Any:
    """Encode an array of any shape.

    Args:
        array: float32, float64, int32, int64, uint8, bool, or bytes/str elements.

    Returns:
        A TensorProto of the same shape.

    Raises:
        TensorError: The dtype is not supported, or an object element is neither bytes nor str.
    """
    number = data_type(array.dtype)
    proto = TensorProto(dtype=number)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if number == _STRING:
        proto.string_val.extend(_as_bytes(item) for item in array.ravel().tolist())
    else:
        proto.tensor_content = array.astype(_KINDS[number].dtype, copy=False).tobytes()
    return proto


def _as_bytes(item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    raise TensorError(f"a string tensor takes bytes or str, not {type(item).__name__}")


def from_proto(proto: Any, *, max_elements: int = MAX_ELEMENTS) -> npt.NDArray[Any]:
    """Decode a TensorProto.

    Args:
        proto: The message. Strings come back as an object array of bytes.
        max_elements: Bound on what the repeated fields may be expanded to.

    Returns:
        The array; read-only when it views ``tensor_content``.

    Raises:
        TensorError: Unsupported type, unknown shape, or values that do not fill the shape.
    """
    kind = _KINDS.get(proto.dtype)
    if kind is None:
        name = DTYPE_NAMES.get(proto.dtype, str(proto.dtype))
        raise TensorError(f"tensor type {name} is not supported; supported: {_supported()}")
    shape = shape_of(proto)
    content: bytes = proto.tensor_content
    if content:
        return _from_content(content, proto.dtype, shape)
    return _from_values(getattr(proto, kind.field), kind.dtype, shape, max_elements)


def shape_of(proto: Any) -> tuple[int, ...]:
    """Return the shape of a TensorProto.

    Raises:
        TensorError: The rank or a dimension is unknown.
    """
    shape = tuple(int(dim.size) for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise TensorError(f"tensor shape {shape} is not fully known")
    return shape


def _from_content(content: bytes, number: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if number == _STRING:
        raise TensorError("string tensors must use string_val, not tensor_content")
    dtype = _KINDS[number].dtype
    expected_bytes = math.prod(shape) * dtype.itemsize
    if len(content) != expected_bytes:
        raise TensorError(
            f"tensor_content has {len(content)} bytes, shape {shape} of "
            f"{DTYPE_NAMES[number]} needs {expected_bytes}"
        )
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def _from_values(
    values: Any, dtype: np.dtype[Any], shape: tuple[int, ...], max_elements: int
) -> npt.NDArray[Any]:
    count = math.prod(shape)
    if len(values) > count or (count and not values):
        raise TensorError(f"tensor has {len(values)} values, shape {shape} needs {count}")
    if count > max(max_elements, len(values)):
        raise TensorError(f"tensor of shape {shape} is above the limit of {max_elements} elements")
    # int_val carries 32 bits, and NumPy would wrap what does not fit.
    if dtype.kind == "u" and count and not 0 <= min(values) <= max(values) <= np.iinfo(dtype).max:
        raise TensorError(f"a value does not fit {dtype}")
    array = np.empty(count, dtype=dtype)
    array[: len(values)] = values
    if count:
        array[len(values) :] = array[len(values) - 1]
    return array.reshape(shape)
