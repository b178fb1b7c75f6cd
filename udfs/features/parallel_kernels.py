"""The loops over histories for threads side by side: a whole history's features, not a job's."""

from __future__ import annotations

import numpy as np

from udfs.compiled import Floats, Ints, compiled_without_gil
from udfs.features import log_kernels, measure_kernels
from udfs.features.log_kernels import Layout, Log, Rows
from udfs.features.measure_kernels import Bounds, Plan


@compiled_without_gil
def observe(
    log: Log,
    rows: Rows,
    layout: Layout,
    plan: Plan,
    bounds: Bounds,
    features: Floats,
    verdicts: Ints,
    n: int,
) -> int:
    """As ``measure_kernels.observe``."""
    return measure_kernels.observe(log, rows, layout, plan, bounds, features, verdicts, n)


@compiled_without_gil
def observe_first(
    log: Log,
    rows: Rows,
    layout: Layout,
    plan: Plan,
    bounds: Bounds,
    features: Floats,
    changed: Ints,
    n: int,
) -> int:
    """As ``measure_kernels.observe_first``."""
    return measure_kernels.observe_first(log, rows, layout, plan, bounds, features, changed, n)


@compiled_without_gil
def learn(log: Log, rows: Rows, layout: Layout, verdicts: Ints, n: int) -> int:
    """As ``log_kernels.learn``."""
    return log_kernels.learn(log, rows, layout, verdicts, n)


@compiled_without_gil
def add(log: Log, rows: Rows, layout: Layout, plan: Plan, n: int) -> int:
    """As ``measure_kernels.add``."""
    return measure_kernels.add(log, rows, layout, plan, n)


@compiled_without_gil
def measure(
    log: Log,
    slots: Ints,
    times: Ints,
    layout: Layout,
    plan: Plan,
    bounds: Bounds,
    features: Floats,
) -> None:
    """As ``measure_kernels.measure``."""
    measure_kernels.measure(log, slots, times, layout, plan, bounds, features)


@compiled_without_gil
def group(codes: Ints, starts: Ints) -> Ints:
    """Rows by their code, those of one code in their order (counting sort).

    Args:
        codes: Of each row, 0 to ``len(starts) - 2``; a row with -1 is left out; (n,).
        starts: Written: where the rows of each code begin, and where the last ones end.

    Returns:
        The rows, (n,) or fewer.
    """
    starts[:] = 0
    for code in codes:
        if code >= 0:
            starts[code + 1] += 1
    for code in range(1, len(starts)):
        starts[code] += starts[code - 1]
    rows, ends = np.empty(starts[-1], np.int64), starts.copy()
    for row in range(len(codes)):
        code = codes[row]
        if code >= 0:
            rows[ends[code]] = row
            ends[code] += 1
    return rows
