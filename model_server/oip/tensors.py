"""NumPy arrays <-> the Open Inference Protocol's tensors: raw bytes, typed fields, JSON.

Raw bytes are little-endian and in row-major order; a BYTES tensor is each element's length as a
32-bit number followed by the element. NumPy has no bfloat16: BF16 is read as float32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model_server.errors import InvalidRequest
from model_server.json_numbers import to_array
from model_server.oip.datatypes import DATATYPE_NAMES, DATATYPES
from model_server.tensors import widen_bfloat16

__all__ = [
    "datatype_of",
    "fill_contents",
    "from_contents",
    "from_json",
    "from_raw",
    "to_json",
    "to_raw",
]


class _Kind(NamedTuple):
    dtype: np.dtype[Any]
    field: str | None


_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_KINDS = {name: _Kind(dtype, _FIELDS.get(name)) for name, dtype in DATATYPES.items()}
_BF16_BITS = np.dtype("<u2")


def datatype_of(dtype: npt.DTypeLike) -> str:
    """Return the protocol's name of a NumPy dtype.

    Raises:
        InvalidRequest: It has none.
    """
    wanted = np.dtype(dtype)
    if wanted.kind in "SU":
        return "BYTES"
    if wanted not in DATATYPE_NAMES:
        raise InvalidRequest(f"dtype {wanted} has no datatype in the Open Inference Protocol")
    return DATATYPE_NAMES[wanted]


def _kind(datatype: str) -> _Kind:
    kind = _KINDS.get(datatype)
    if kind is None:
        known = ", ".join([*_KINDS, "BF16"])
        raise InvalidRequest(f"datatype {datatype!r} is not one of {known}")
    return kind


def _count(name: str, shape: Sequence[int]) -> int:
    if any(size < 0 for size in shape):
        raise InvalidRequest(f"input {name} has shape {list(shape)}: no size may be negative")
    return math.prod(shape)


def from_raw(name: str, datatype: str, shape: Sequence[int], data: bytes) -> npt.NDArray[Any]:
    """Decode raw bytes; numbers are viewed, not copied, hence read-only.

    Raises:
        InvalidRequest: Unknown datatype, or bytes that do not fill the shape.
    """
    count = _count(name, shape)
    if datatype == "BYTES":
        return _split(name, data, count).reshape(shape)
    bfloat16 = datatype == "BF16"
    dtype = _BF16_BITS if bfloat16 else _kind(datatype).dtype
    if len(data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"input {name} has {len(data)} bytes, shape {list(shape)} of {datatype} needs "
            f"{count * dtype.itemsize}"
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    return widen_bfloat16(array) if bfloat16 else array


def _split(name: str, data: bytes, count: int) -> npt.NDArray[Any]:
    elements, at = [], 0
    while at < len(data):
        end = at + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, at)[0]
        if end > len(data):
            raise InvalidRequest(f"input {name} ends inside an element")
        elements.append(bytes(data[at + 4 : end]))
        at = end
    if len(elements) != count:
        raise InvalidRequest(f"input {name} has {len(elements)} elements, its shape needs {count}")
    return _strings(elements)


def _strings(elements: Sequence[bytes]) -> npt.NDArray[Any]:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def to_raw(array: npt.NDArray[Any]) -> bytes:
    """Encode an array as raw bytes.

    Raises:
        InvalidRequest: Its dtype has no datatype.
    """
    datatype = datatype_of(array.dtype)
    if datatype == "BYTES":
        elements = [_as_bytes(element) for element in array.ravel().tolist()]
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return array.astype(_KINDS[datatype].dtype, copy=False).tobytes()


def _as_bytes(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode()
    raise InvalidRequest(f"a BYTES tensor takes bytes or text, not {type(element).__name__}")


def from_contents(tensor: Any) -> npt.NDArray[Any]:
    """Decode an InferInputTensor or InferOutputTensor that carries its values itself.

    Raises:
        InvalidRequest: Unknown datatype, or values that do not fill the shape.
    """
    name, shape = tensor.name, tuple(tensor.shape)
    kind = _kind(tensor.datatype) if tensor.datatype != "BF16" else _Kind(_BF16_BITS, None)
    if kind.field is None:
        raise InvalidRequest(f"input {name} is {tensor.datatype}, which must be sent as raw bytes")
    values = getattr(tensor.contents, kind.field)
    count = _count(name, shape)
    if len(values) != count:
        raise InvalidRequest(
            f"input {name} has {len(values)} values in {kind.field}, shape {list(shape)} "
            f"of {tensor.datatype} needs {count}"
        )
    if kind.dtype.kind == "O":
        return _strings(values).reshape(shape)
    if kind.dtype.kind in "ui" and count:
        _check_range(name, min(values), max(values), kind.dtype)
    return np.fromiter(values, kind.dtype, count).reshape(shape)


def _check_range(name: str, low: int, high: int, dtype: np.dtype[Any]) -> None:
    limits = np.iinfo(dtype)
    if low < limits.min or high > limits.max:
        raise InvalidRequest(f"input {name} has a value that does not fit {DATATYPE_NAMES[dtype]}")


def fill_contents(tensor: Any, array: npt.NDArray[Any]) -> None:
    """Put an array's values into an output tensor's fields; float16 goes as FP32.

    Raises:
        InvalidRequest: Its dtype has no datatype.
    """
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    tensor.datatype = datatype_of(array.dtype)
    tensor.shape.extend(array.shape)
    values = array.ravel().tolist()
    if tensor.datatype == "BYTES":
        values = [_as_bytes(value) for value in values]
    getattr(tensor.contents, _KINDS[tensor.datatype].field or "").extend(values)


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> npt.NDArray[Any]:
    """Decode a JSON tensor: a flat list, or lists nested as the shape says.

    Raises:
        InvalidRequest: Unknown datatype, or data that does not fill the shape or is of other types.
    """
    dtype = np.dtype(np.float32) if datatype == "BF16" else _kind(datatype).dtype
    count = _count(name, shape)
    if not isinstance(data, list):
        raise InvalidRequest(f'input {name}: "data" must be a list')
    if dtype.kind == "O":
        array: npt.NDArray[Any] = _strings([_as_bytes(element) for element in _flat(data)])
    else:
        array = to_array(name, datatype, dtype, data)
    if array.size != count:
        raise InvalidRequest(
            f"input {name} has {array.size} values, shape {list(shape)} needs {count}"
        )
    return array.reshape(shape)


def _flat(data: list[Any]) -> list[Any]:
    if data and isinstance(data[0], list):
        return [element for part in data for element in _flat(part)]
    return data


def to_json(array: npt.NDArray[Any]) -> list[Any]:
    """Return an array's values as a flat list; bytes must be UTF-8.

    Raises:
        InvalidRequest: A string is not UTF-8 and must be asked for as binary data.
    """
    values = array.ravel().tolist()
    if array.dtype.kind != "O":
        return list(values)
    try:
        return [v.decode() if isinstance(v, bytes) else v for v in values]
    except UnicodeDecodeError as exc:
        raise InvalidRequest("an output is not UTF-8: ask for it as binary data") from exc
