"""How the inner loops are compiled to machine code.

A loop over rows in Python costs some microseconds a row and a NumPy formulation some microseconds
a call, whatever the batch's size; compiled, a row costs less than one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

Function = TypeVar("Function", bound=Callable[..., Any])
_SOURCES = (
    "batches/frames.py",
    "batches/templates.py",
    "compiled.py",
    "features/aggregate_kernels.py",
    "features/aggregates.py",
    "features/log_kernels.py",
    "features/measure_kernels.py",
    "features/pane_kernels.py",
    "features/parallel_kernels.py",
    "features/sketch_kernels.py",
    "features/slot_kernels.py",
    "ranking/kernels.py",
    "rollup/kernels.py",
)


def _digest() -> str:
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / s).read_bytes() for s in _SOURCES)).hexdigest()


_STAMP = _digest()


def compiled(function: Function) -> Function:
    """Compile a function; the machine code is kept beside the source.

    Numba would keep it until the function's own file changes, though it holds the code of all that
    the function calls: here it is made anew when any of the compiled files has changed.

    The GIL is kept: a call takes some microseconds, and getting the GIL back from another operator
    of the same TaskManager can take 5 ms.
    """
    return _compiled(function, nogil=False)


def compiled_without_gil(function: Function) -> Function:
    """As ``compiled``, for calls of milliseconds that threads make side by side."""
    return _compiled(function, nogil=True)


def _compiled(function: Function, nogil: bool) -> Function:
    dispatcher: Any = njit(cache=True, error_model="numpy", nogil=nogil)(function)
    dispatcher._cache._cache_file._source_stamp = _STAMP
    made: Function = dispatcher
    return made
