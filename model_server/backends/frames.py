"""Named arrays as bytes, between this server and processes of its own.

A line of JSON says what follows: a head of any content, and each array's name, type, shape and
place. The values lie behind it, aligned, and are read where they lie. Strings are their lengths
followed by their bytes. Nothing is pickled: the other end can send wrong numbers, but no code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["pack", "unpack"]

_ALIGNMENT = 64
_STRINGS = "O"
_SIZE = np.dtype("<i8")


def pack(head: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return a frame.

    Args:
        head: What JSON can hold.
        arrays: Numbers, booleans, or objects that are bytes.
    """
    entries, body = [], bytearray()
    for name, array in arrays.items():
        kind = _STRINGS if array.dtype.kind == "O" else array.dtype.str
        entries.append((name, kind, array.shape, len(body)))
        body += _joined(array) if kind == _STRINGS else np.ascontiguousarray(array).tobytes()
        body += bytes(_aligned(len(body)) - len(body))
    line = json.dumps({"head": head, "arrays": entries}).encode() + b"\n"
    return line + bytes(_aligned(len(line)) - len(line)) + bytes(body)


def unpack(frame: Any) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return a frame's head and arrays, which are views of it and read-only.

    Args:
        frame: Bytes, or anything else that has them and ``find``, as an ``mmap``.
    """
    end = frame.find(b"\n") + 1
    described = json.loads(frame[:end])
    begin = _aligned(end)
    arrays = {}
    for name, kind, shape, at in described["arrays"]:
        count = math.prod(shape)
        if kind == _STRINGS:
            array = _split(frame, begin + at, count)
        else:
            array = np.frombuffer(frame, np.dtype(kind), count, begin + at)
        arrays[name] = array.reshape(shape)
    return described["head"], arrays


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _joined(array: npt.NDArray[Any]) -> bytes:
    parts = array.ravel().tolist()
    return np.array([len(part) for part in parts], _SIZE).tobytes() + b"".join(parts)


def _split(frame: Any, begin: int, count: int) -> npt.NDArray[Any]:
    ends = np.cumsum(np.frombuffer(frame, _SIZE, count, begin)) + begin + count * _SIZE.itemsize
    strings = np.empty(count, object)
    at = begin + count * _SIZE.itemsize
    for index, end in enumerate(ends.tolist()):
        strings[index] = bytes(frame[at:end])
        at = end
    return strings
