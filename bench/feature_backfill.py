"""The features of a whole history: our offline code beside pandas, Polars and DuckDB.

A figure counts only if all of the engine's values are equal to ours to 1e-9, and a sample of ours
to the oracle's.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.common import BenchError, Result, compared, say
from bench.feature_data import Column, Floats, Oracle, differences
from bench.lab import installed_environment
from jobs.environment import BUILD, ROOT, NotReadyError
from udfs.definition.schema import Schema
from udfs.offline.offline import features_of, history_of

PYTHON = BUILD / "peers" / "history" / "bin" / "python"
ENGINES = ("polars", "polars_over", "duckdb", "pandas")
_SAMPLE = 2_000
_TIMEOUT_S = 900


def measure(
    schema: Schema,
    columns: Sequence[Column],
    frame: pd.DataFrame,
    folder: Path,
    columns_file: Path,
    failures: list[str],
) -> tuple[list[Result], list[dict[str, Any]], dict[str, str]]:
    """Compute the features of a history with every engine.

    Args:
        schema: The job's.
        columns: Its features.
        frame: The history, in time order.
        folder: For what goes between the processes.
        columns_file: The features for the peers.
        failures: Gets what went wrong.

    Returns:
        The figures, the runs for the document, and the engines' versions.
    """
    if not PYTHON.exists():
        raise NotReadyError("pandas, Polars and DuckDB are not installed", "make bench-peers")
    ours, seconds = _ours(schema, frame)
    failures += _wrong(columns, frame, ours)
    runs: list[dict[str, Any]] = [{"name": "backfill", **seconds}]
    rates: dict[str, float] = {}
    versions: dict[str, str] = {}
    events = folder / "history.parquet"
    frame.to_parquet(events)
    for engine in ENGINES:
        say(f"[bold]backfill, {engine}[/]: starting")
        try:
            features, about = _peer(engine, events, columns_file, folder)
            if wrong := differences(features, ours, columns):
                raise BenchError(f"other values than ours: {'; '.join(wrong[:3])}")
        except BenchError as exc:
            failures.append(f"backfill, {engine}: {exc}")
            continue
        rates[engine] = len(frame) / about["seconds"]
        runs.append({"name": f"backfill_{engine}", **about})
        versions |= {name: text for name, text in about.items() if isinstance(text, str)}
        say(f"backfill, {engine}: {rates[engine]:,.0f} events/s, values equal")
    return results_of(len(frame), seconds, rates), runs, versions


def _ours(schema: Schema, frame: pd.DataFrame) -> tuple[Floats, dict[str, float]]:
    """Our features in the order of the table, and the seconds of each step."""
    say("[bold]backfill, ours[/]: starting")
    features_of(schema, history_of(schema, frame.head(2_048)).events)  # compile
    begun_s = time.perf_counter()
    history = history_of(schema, frame)
    read_s, cpu_s = time.perf_counter(), time.process_time()
    found = features_of(schema, history.events)
    done_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
    if len(found.rows) != len(frame):
        raise BenchError(f"ours kept {len(found.rows):,} of {len(frame):,} events")
    features = np.empty_like(found.features)
    features[history.table_rows[found.rows]] = found.features
    say(f"backfill, ours: {len(frame) / (done_s - read_s):,.0f} events/s")
    return features, {"read_s": read_s - begun_s, "seconds": done_s - read_s, "cpu_s": cpu_s}


def _wrong(columns: Sequence[Column], frame: pd.DataFrame, ours: Floats) -> list[str]:
    oracle = Oracle(frame, columns)
    rows = np.unique(np.linspace(0, len(frame) - 1, min(_SAMPLE, len(frame)), dtype=np.int64))
    expected = np.array([oracle.features(row) for row in rows.tolist()], dtype=np.float64)
    return [f"backfill, ours: {text}" for text in differences(ours[rows], expected, columns)]


def _peer(engine: str, events: Path, columns: Path, folder: Path) -> tuple[Floats, dict[str, Any]]:
    output = folder / f"{engine}.npy"
    command = [str(PYTHON), "-m", "bench.peer_history", "--engine", engine]
    command += ["--events", str(events), "--columns", str(columns), "--output", str(output)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=installed_environment(), capture_output=True, text=True,
            timeout=_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as exc:
        raise BenchError(f"took longer than {_TIMEOUT_S} s") from exc
    if done.returncode:
        raise BenchError((done.stderr.strip() or "it left no error").splitlines()[-1][:500])
    features: Floats = np.load(output)
    output.unlink()
    about: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return features, about


def results_of(events: int, seconds: dict[str, float], rates: dict[str, float]) -> list[Result]:
    """The headline figures: ours, with the quickest peer as baseline, and each of the peers'.

    Args:
        events: Events of the history.
        seconds: Of our steps: ``read_s`` and ``seconds``.
        rates: The peers' events per second.
    """
    ours = events / seconds["seconds"]
    best = max(rates, key=lambda name: rates[name]) if rates else None
    note = f"baseline: {best}, the quickest" if best else "no peer was measured"
    results = [compared("backfill", ours, "events/s", rates[best] if best else None, note)]
    whole = events / (seconds["seconds"] + seconds["read_s"])
    note = "ours from a table, which is read as the live job reads its records"
    results.append(compared("backfill_from_table", whole, "events/s", rates.get(best or ""), note))
    for name, rate in rates.items():
        results.append(Result(f"backfill_{name}", rate, "events/s"))
        results.append(Result(f"ratio_backfill_{name}", ours / rate, "x", 1.0, ours / rate))
    return results
