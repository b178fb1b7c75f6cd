"""NumPy arrays <-> TensorFlow's TensorProto.

Out: numbers go as ``tensor_content`` (one copy), strings as ``string_val``. In: ``tensor_content``
is viewed, not copied (``np.frombuffer``, hence read-only); the repeated ``*_val`` fields follow
TensorFlow's rule that the last value fills the rest. NumPy has no bfloat16: it is read as float32,
which holds each of its values. Two deliberate differences from TensorFlow: a tensor that has
elements but carries no value at all is refused instead of read as zeros, for a zero score must have
been sent by somebody; and a tensor that would grow by the fill rule beyond ``max_elements`` is
refused, for a few bytes must not claim gigabytes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model_server.errors import TensorError
from model_server.protos import DTYPE_NAMES, DataType, TensorProto

__all__ = ["MAX_ELEMENTS", "data_type", "from_proto", "shape_of", "to_proto", "widen_bfloat16"]

#: Largest number of elements that repeated fields may expand to (64 MiB of float32).
MAX_ELEMENTS = 16 * 1024 * 1024


class _Kind(NamedTuple):
    dtype: np.dtype[Any]
    field: str


# Wire bytes are little-endian whatever the host is.
_KINDS: dict[int, _Kind] = {
    DataType.Value(f"DT_{name}"): _Kind(np.dtype(dtype), field)
    for name, dtype, field in (
        ("HALF", "<f2", "half_val"),
        ("FLOAT", "<f4", "float_val"),
        ("DOUBLE", "<f8", "double_val"),
        ("INT8", "i1", "int_val"),
        ("INT16", "<i2", "int_val"),
        ("INT32", "<i4", "int_val"),
        ("INT64", "<i8", "int64_val"),
        ("UINT8", "u1", "int_val"),
        ("UINT16", "<u2", "int_val"),
        ("UINT32", "<u4", "uint32_val"),
        ("UINT64", "<u8", "uint64_val"),
        ("COMPLEX64", "<c8", "scomplex_val"),
        ("COMPLEX128", "<c16", "dcomplex_val"),
        ("BOOL", "?", "bool_val"),
        ("STRING", "O", "string_val"),
    )
}
_STRING: int = DataType.Value("DT_STRING")
_HALF: int = DataType.Value("DT_HALF")
_BFLOAT16: int = DataType.Value("DT_BFLOAT16")
_NUMBER_OF_DTYPE = {kind.dtype: number for number, kind in _KINDS.items()}


def widen_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the float32 values of bfloat16 bit patterns, of the same shape."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


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
    return ", ".join(DTYPE_NAMES[number] for number in (*_KINDS, _BFLOAT16))


def to_proto(array: npt.NDArray[Any]) -> Any:
    """Encode an array of any shape.

    Args:
        array: Of a number type that NumPy has, bool, or bytes/str elements.

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
    if proto.dtype == _BFLOAT16:
        return widen_bfloat16(_decoded(proto, _Kind(np.dtype("<u2"), "half_val"), max_elements))
    kind = _KINDS.get(proto.dtype)
    if kind is None:
        name = DTYPE_NAMES.get(proto.dtype, str(proto.dtype))
        raise TensorError(f"tensor type {name} is not supported; supported: {_supported()}")
    if proto.dtype == _HALF and not proto.tensor_content:
        bits = _decoded(proto, _Kind(np.dtype("<u2"), "half_val"), max_elements)
        return bits.view(np.float16)
    return _decoded(proto, kind, max_elements)


def shape_of(proto: Any) -> tuple[int, ...]:
    """Return the shape of a TensorProto.

    Raises:
        TensorError: The rank or a dimension is unknown.
    """
    shape = tuple(int(dim.size) for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise TensorError(f"tensor shape {shape} is not fully known")
    return shape


def _decoded(proto: Any, kind: _Kind, max_elements: int) -> npt.NDArray[Any]:
    shape = shape_of(proto)
    content: bytes = proto.tensor_content
    if content:
        return _from_content(content, proto.dtype, kind.dtype, shape)
    values = getattr(proto, kind.field)
    if kind.dtype.kind == "c":
        values = _complex_values(values)
    return _from_values(values, kind.dtype, shape, max_elements)


def _from_content(
    content: bytes, number: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    if number == _STRING:
        raise TensorError("string tensors must use string_val, not tensor_content")
    expected_bytes = math.prod(shape) * dtype.itemsize
    if len(content) != expected_bytes:
        raise TensorError(
            f"tensor_content has {len(content)} bytes, shape {shape} of "
            f"{DTYPE_NAMES[number]} needs {expected_bytes}"
        )
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def _complex_values(parts: Any) -> list[complex]:
    """Pair up real and imaginary parts."""
    if len(parts) % 2:
        raise TensorError(f"complex tensor has {len(parts)} parts, must be pairs")
    return [
        complex(real, imaginary) for real, imaginary in zip(parts[::2], parts[1::2], strict=True)
    ]


def _from_values(
    values: Any, dtype: np.dtype[Any], shape: tuple[int, ...], max_elements: int
) -> npt.NDArray[Any]:
    count = math.prod(shape)
    if len(values) > count or (count and not values):
        raise TensorError(f"tensor has {len(values)} values, shape {shape} needs {count}")
    if count > max(max_elements, len(values)):
        raise TensorError(f"tensor of shape {shape} is above the limit of {max_elements} elements")
    # The narrow types travel in wider fields, and NumPy would wrap what does not fit.
    if dtype.kind in "ui" and count:
        limits = np.iinfo(dtype)
        if not limits.min <= min(values) <= max(values) <= limits.max:
            raise TensorError(f"a value does not fit {dtype}")
    array = np.empty(count, dtype=dtype)
    array[: len(values)] = values
    if count:
        array[len(values) :] = array[len(values) - 1]
    return array.reshape(shape)
