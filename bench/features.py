"""Measure how fast the keyed feature engine is, beside its peers, on one machine.

The events are JSON card transactions of about 150 bytes over 20,000 cards and 2,000 terminals; the
features are those of bench/features.yaml: 20 exact sliding windows over both keys. Each job reads
the same Kafka topic from its start and writes one record per event with all its features.

Results, by part (with suffix _p2: parallelism 2):

  job       features_20_over_2_keys   ours in Flink, events/s
  quix      quix, ratio_quix          Quix Streams, a key's history as state
            quix_window               its own sliding_window().agg(), which has one window of one
            ratio_quix_window         key: ours is measured with only those features too
  bytewax   bytewax, ratio_bytewax    Bytewax, a key's windows in stateful_batch
  sql       sql_over, ratio_sql_over  Flink SQL, OVER windows: no Python
  keys      cost_1e3_to_1e6_keys      our cost per event, the dearest number of keys over the
                                      cheapest, without Flink; and bytes of state per key
  backfill  backfill                  our features of a whole history, events/s; beside pandas,
                                      Polars and DuckDB

The peers live in environments of their own, from `make bench-peers`. They drop no duplicates,
refuse no bad records and store no state that survives them (SQL does); ours does all of it. A rate
is the growth of the output topic without the first 40 % of the records; cpu_<name> is the CPU time
of the job's processes per event, without the broker's, which other work on the machine hardly
changes. A figure counts only if sampled features are equal to an oracle's to 1e-9: at parallelism
1 all of them; above, where partitions overtake each other, those of the record key. Written to
build/bench/features.json.

Examples:
  python -m bench.features --quick
  python -m bench.features --parts job sql --parallelism 1 2 --set batch.window=50ms
  python -m bench.features --parts backfill --history 100000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench import common, feature_backfill, feature_data, feature_keys, feature_runs
from bench.common import (
    BENCH,
    Result,
    add_job_options,
    command_line,
    fill_in,
    guarded,
    say,
)
from bench.feature_runs import PEER_PYTHONS, Outcome, Streams
from bench.lab import place
from jobs import settings
from jobs.environment import ROOT, NotReadyError
from jobs.settings import Settings

STREAM_PARTS = ("job", "quix", "bytewax", "sql")
PARTS = (*STREAM_PARTS, "keys", "backfill")
CONFIG = ROOT / "bench" / "features.yaml"
_PEER_PACKAGES = {"quix": "quixstreams", "bytewax": "bytewax"}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("features", __doc__)
    add = result.add_argument
    add("--quick", action="store_true",
        help="a smoke test with small sizes; its figures mean nothing and go to a file of their"
        " own")  # fmt: skip
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    add_job_options(add, CONFIG)
    add("--parallelism", nargs="+", type=int, default=[1],
        help="subtasks per operator, for peers in Python processes (default: 1)")  # fmt: skip
    add("--records", type=int, help="backlog in records (default: 2,000,000)")
    add("--max-s", type=float, help="most seconds of output per measurement (default: 45)")
    add("--keys", nargs="+", type=int, help="numbers of keys (default: 10^3 10^4 10^5 10^6)")
    add("--key-events", type=int, help="timed events per number of keys (default: 500,000)")
    add("--history", type=int, help="events of the backfill (default: 1,000,000)")
    add("--keep", action="store_true", help="keep the logs below build/bench in any case")
    return result


def complete(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults, which --quick changes."""
    defaults = {
        "records": (60_000, 2_000_000),
        "max_s": (10.0, 45.0),
        "keys": ([100, 1_000], [1_000, 10_000, 100_000, 1_000_000]),
        "key_events": (20_000, 500_000),
        "history": (20_000, 1_000_000),
    }
    return fill_in(options, defaults)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = complete(parser().parse_args(argv))
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = common.machine()
    chosen = settings.load(options.config, dict(options.overrides))
    _refuse_if_missing(options.parts)
    results: list[Result] = []
    runs: list[dict[str, Any]] = []
    failures: list[str] = []
    versions = common.versions() | _peer_versions(options.parts)
    if any(part in STREAM_PARTS for part in options.parts):
        outcomes = _streams(options, chosen, failures)
        results += feature_runs.results_of(outcomes)
        runs += [outcome.details for outcome in outcomes]
    if "keys" in options.parts:
        costs = [_keys(options, chosen, keys) for keys in options.keys]
        results += feature_keys.results_of(costs)
    if "backfill" in options.parts:
        found, more, engines = _backfill(options, chosen, failures)
        results, runs, versions = results + found, runs + more, versions | engines
    document = {
        "machine": about,
        "versions": versions,
        "settings": _settings(options),
        "runs": runs,
        "failures": failures,
    }
    title = "The keyed feature engine" + " (smoke test)" * options.quick
    return common.finish(
        "features", title, document, results, quick=options.quick, baseline="baseline"
    )


def _refuse_if_missing(parts: Sequence[str]) -> None:
    for part in parts:
        if part in PEER_PYTHONS and not PEER_PYTHONS[part].exists():
            raise NotReadyError(f"{part} is not installed", "make bench-peers")


def _peer_versions(parts: Sequence[str]) -> dict[str, str]:
    found = {}
    for part in parts:
        if part in PEER_PYTHONS:
            package = _PEER_PACKAGES[part]
            code = f"from importlib import metadata; print(metadata.version({package!r}))"
            command = [PEER_PYTHONS[part], "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[package] = done.stdout.strip()
    return found


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("parts", "parallelism", "records", "max_s", "keys", "key_events", "history")
    return {
        "config": options.config.name,
        "changed": {**feature_runs.SETTINGS, **dict(options.overrides)},
        "cards": feature_data.CARDS,
        "terminals": feature_data.TERMINALS,
        **{name: getattr(options, name) for name in names},
    }


def _streams(options: argparse.Namespace, chosen: Settings, failures: list[str]) -> list[Outcome]:
    outcomes = []
    overrides = dict(options.overrides)
    say(f"making {options.records:,} transactions")
    frame = feature_data.transactions(options.records)
    with place("features", options.config, overrides, keep=options.keep) as at:
        for parallelism in options.parallelism:
            streams = Streams(at, chosen, frame, parallelism, options.max_s)
            outcomes += streams.measure(options.parts)
        failures += at.failures
    return outcomes


def _keys(options: argparse.Namespace, chosen: Settings, keys: int) -> feature_keys.KeyCost:
    say(f"[bold]{keys:,} keys[/]: starting")
    cost = feature_keys.measure(chosen.schema_, keys, options.key_events)
    say(f"{keys:,} keys: {cost.ns_per_event:,.0f} ns/event")
    return cost


def _backfill(
    options: argparse.Namespace, chosen: Settings, failures: list[str]
) -> tuple[list[Result], list[dict[str, Any]], dict[str, str]]:
    frame: pd.DataFrame = feature_data.transactions(options.history)
    folder = BENCH / "features-history"
    folder.mkdir(parents=True, exist_ok=True)
    schema = chosen.schema_
    columns = feature_data.columns_of(schema)
    columns_file = feature_data.write_columns(folder / "columns.json", columns)
    return feature_backfill.measure(schema, columns, frame, folder, columns_file, failures)


if __name__ == "__main__":
    sys.exit(main())
