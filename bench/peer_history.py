"""The features of ``bench/features.py`` over a whole history: pandas, Polars and DuckDB.

Runs in an environment of its own. The table is in memory in the engine's own form before the clock
starts; it stops when all features are NumPy columns in the order of the events. Windows are
half-open, ``(t - length, t]``, as ours are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.peer_windows import Group, read_groups

Groups = dict[str, list[Group]]
Features = dict[str, "np.ndarray[Any, Any]"]


def by_pandas(frame: pd.DataFrame, groups: Groups) -> Callable[[], Features]:
    """``groupby().rolling()`` on times, its documented way."""
    indexed = frame.assign(time=pd.to_datetime(frame["event_time_ms"], unit="ms"))
    methods = {"count": "count", "sum": "sum", "mean": "mean", "min": "min", "max": "max"}

    def run() -> Features:
        features: Features = {}
        own = indexed["amount"].to_numpy()
        for key, windows in groups.items():
            # Its result is in the order of the groups, and of the rows within a group.
            order = np.argsort(indexed[key].factorize(sort=True)[0], kind="stable")
            for length_ms, aggregates, names in windows:
                rolling = indexed.groupby(key).rolling(f"{length_ms}ms", on="time")["amount"]
                for name, aggregate in zip(names, aggregates, strict=True):
                    if aggregate == "std":
                        found = rolling.std(ddof=0)
                    else:
                        found = getattr(rolling, methods.get(aggregate, "mean"))()
                    column = np.empty(len(frame))
                    column[order] = found.to_numpy()
                    features[name] = own / column if aggregate == "ratio_to_mean" else column
        return features

    return run


def by_polars(frame: pd.DataFrame, groups: Groups) -> Callable[[], Features]:
    """``rolling()`` with a group per key: one pass per window for all of its aggregates."""
    import polars as pl

    table = pl.from_pandas(frame).with_row_index("row").with_columns(
        pl.from_epoch("event_time_ms", time_unit="ms").alias("time")
    )  # fmt: skip
    amount = pl.col("amount")
    expressions = {
        "count": amount.len(),
        "sum": amount.sum(),
        "mean": amount.mean(),
        "min": amount.min(),
        "max": amount.max(),
        "std": amount.std(ddof=0),
        "ratio_to_mean": amount.last() / amount.mean(),
    }

    def run() -> Features:
        lazy = table.lazy()
        parts = []
        for key, windows in groups.items():
            for length_ms, aggregates, names in windows:
                columns = [expressions[a].alias(n) for n, a in zip(names, aggregates, strict=True)]
                rolling = lazy.rolling("time", period=f"{length_ms}ms", group_by=key)
                parts.append(rolling.agg(pl.col("row").last(), *columns).sort("row"))
        return {
            name: part[name].to_numpy()
            for part in pl.collect_all(parts)
            for name in part.columns
            if name not in ("row", "time", *groups)
        }

    return run


def by_polars_over(frame: pd.DataFrame, groups: Groups) -> Callable[[], Features]:
    """``rolling_*_by(...).over(key)``: an expression per feature."""
    import polars as pl

    table = pl.from_pandas(frame).with_columns(
        pl.from_epoch("event_time_ms", time_unit="ms").alias("time")
    )
    amount = pl.col("amount")
    one = amount * 0.0 + 1.0  # there is no rolling count
    methods = {
        "count": lambda p: one.rolling_sum_by("time", p),
        "sum": lambda p: amount.rolling_sum_by("time", p),
        "mean": lambda p: amount.rolling_mean_by("time", p),
        "min": lambda p: amount.rolling_min_by("time", p),
        "max": lambda p: amount.rolling_max_by("time", p),
        "std": lambda p: amount.rolling_std_by("time", p, ddof=0),
        "ratio_to_mean": lambda p: amount / amount.rolling_mean_by("time", p),
    }

    def run() -> Features:
        columns = [
            methods[aggregate](f"{length_ms}ms").over(key).alias(name)
            for key, windows in groups.items()
            for length_ms, aggregates, names in windows
            for name, aggregate in zip(names, aggregates, strict=True)
        ]
        found = table.lazy().select(columns).collect()
        return {name: found[name].to_numpy() for name in found.columns}

    return run


def by_duckdb(frame: pd.DataFrame, groups: Groups) -> Callable[[], Features]:
    """Window functions with ``RANGE BETWEEN INTERVAL``, all in one SELECT."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE events AS SELECT *, row_number() OVER () - 1 AS row,"
        " epoch_ms(event_time_ms) AS time FROM frame"
    )
    functions = {
        "count": "COUNT(amount)", "sum": "SUM(amount)", "mean": "AVG(amount)",
        "min": "MIN(amount)", "max": "MAX(amount)", "std": "STDDEV_POP(amount)",
        "ratio_to_mean": "amount / AVG(amount)",
    }  # fmt: skip
    columns, clauses = [], []
    for key, windows in groups.items():
        for length_ms, aggregates, names in windows:
            window = f"w{len(clauses)}"
            clauses.append(
                f"{window} AS (PARTITION BY {key} ORDER BY time RANGE BETWEEN"
                f" INTERVAL {length_ms - 1} MILLISECOND PRECEDING AND CURRENT ROW)"
            )
            columns += [
                f"{functions[a]} OVER {window} AS {n}"
                for n, a in zip(names, aggregates, strict=True)
            ]
    sql = f"SELECT row, {', '.join(columns)} FROM events WINDOW {', '.join(clauses)} ORDER BY row"

    def run() -> Features:
        found = connection.execute(sql).fetchnumpy()
        return {name: np.asarray(column) for name, column in found.items() if name != "row"}

    return run


ENGINES = {
    "pandas": by_pandas,
    "polars": by_polars,
    "polars_over": by_polars_over,
    "duckdb": by_duckdb,
}


def main() -> None:
    """Run an engine; the features go to a file, seconds and version to standard output."""
    arguments = argparse.ArgumentParser(prog="python -m bench.peer_history", description=__doc__)
    arguments.add_argument("--engine", choices=tuple(ENGINES), required=True)
    for name in ("events", "columns", "output"):
        arguments.add_argument(f"--{name}", required=True)
    options = arguments.parse_args()
    groups = read_groups(options.columns)
    frame = pd.read_parquet(options.events)
    small = ENGINES[options.engine](frame.head(1_000), groups)
    small()  # imports and thread pools are not the measurement
    run = ENGINES[options.engine](frame, groups)
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    features = run()
    about = {
        "seconds": time.perf_counter() - begun_s,
        "cpu_s": time.process_time() - cpu_s,
    }
    names = [n for windows in groups.values() for _, _, part in windows for n in part]
    np.save(Path(options.output), np.stack([features[n].astype(float) for n in names], axis=1))
    package = options.engine.split("_")[0]
    print(json.dumps({**about, package: metadata.version(package)}), flush=True)


if __name__ == "__main__":
    main()
