"""The Open Inference Protocol's names of tensors' types."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["DATATYPES", "DATATYPE_NAMES"]

#: By name; BYTES' elements are objects. NumPy has no BF16.
DATATYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in (
        ("BOOL", "?"),
        ("UINT8", "u1"),
        ("UINT16", "<u2"),
        ("UINT32", "<u4"),
        ("UINT64", "<u8"),
        ("INT8", "i1"),
        ("INT16", "<i2"),
        ("INT32", "<i4"),
        ("INT64", "<i8"),
        ("FP16", "<f2"),
        ("FP32", "<f4"),
        ("FP64", "<f8"),
        ("BYTES", "O"),
    )
}
DATATYPE_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
