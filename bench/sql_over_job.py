"""The features of ``bench/features.py`` in Flink SQL alone: no Python sees a record.

``OVER (PARTITION BY key ORDER BY time RANGE BETWEEN INTERVAL ... PRECEDING AND CURRENT ROW)``. In
a streaming query all windows of one SELECT must be the same, so each window is a SELECT around the
last one. An OVER window holds both of its ends: a millisecond less makes it ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pyflink.common import Configuration
from pyflink.table import EnvironmentSettings, TableEnvironment

from bench.peer_windows import Group, read_groups
from jobs.environment import BUILD, thread_mode_env
from jobs.jars import flink_jars
from jobs.sources import with_options

_SOURCE = """
CREATE TEMPORARY TABLE events (
  transaction_id STRING, event_time_ms BIGINT, card_id STRING, terminal_id STRING, amount DOUBLE,
  event_time AS TO_TIMESTAMP_LTZ(event_time_ms, 3), WATERMARK FOR event_time AS event_time
) WITH ({options})
"""

_WINDOW = """
SELECT *, {features} FROM ({inner})
WINDOW w AS (PARTITION BY {key} ORDER BY event_time
  RANGE BETWEEN INTERVAL '{interval}' DAY TO SECOND(3) PRECEDING AND CURRENT ROW)
"""

AGGREGATES = {
    "count": "COUNT(amount) OVER w",
    "sum": "SUM(amount) OVER w",
    "mean": "AVG(amount) OVER w",
    "ratio_to_mean": "amount / AVG(amount) OVER w",
    "min": "MIN(amount) OVER w",
    "max": "MAX(amount) OVER w",
    "std": "STDDEV_POP(amount) OVER w",
}


def interval_of(length_ms: int) -> str:
    """A length as the text of an ``INTERVAL ... DAY TO SECOND(3)``."""
    seconds, ms = divmod(length_ms, 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} {hours:02}:{minutes:02}:{seconds:02}.{ms:03}"


def query(groups: dict[str, list[Group]]) -> str:
    """The SELECT of all features, one inside the other."""
    result, names = "SELECT * FROM events", []
    for key, windows in groups.items():
        for length_ms, aggregates, columns in windows:
            pairs = zip(aggregates, columns, strict=True)
            features = ", ".join(f"{AGGREGATES[a]} AS `{column}`" for a, column in pairs)
            interval = interval_of(length_ms - 1)
            result = _WINDOW.format(features=features, inner=result, key=key, interval=interval)
            names += columns
    return f"SELECT transaction_id, {', '.join(f'`{name}`' for name in names)} FROM ({result})"


def _sink(groups: dict[str, list[Group]], options: dict[str, str]) -> str:
    columns = [
        f"`{name}` {'BIGINT' if aggregate == 'count' else 'DOUBLE'}"
        for windows in groups.values()
        for _, aggregates, names in windows
        for aggregate, name in zip(aggregates, names, strict=True)
    ]
    body = ", ".join(["transaction_id STRING", *columns])
    return f"CREATE TEMPORARY TABLE sink ({body}) WITH ({with_options(options)})"


def configuration(options: argparse.Namespace) -> Configuration:
    """Flink's options, as our job's where they matter to it."""
    result = Configuration()
    for name, value in {
        "pipeline.jars": ";".join(jar.absolute().as_uri() for jar in flink_jars()),
        "parallelism.default": str(options.parallelism),
        "pipeline.object-reuse": "true",
        "execution.checkpointing.interval": "60000 ms",
        "execution.checkpointing.dir": options.checkpoint_dir.absolute().as_uri(),
        "restart-strategy.type": "none",
    }.items():
        result.set_string(name, value)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run until it is ended."""
    arguments = argparse.ArgumentParser(prog="python -m bench.sql_over_job", description=__doc__)
    for name in ("bootstrap", "events", "output", "columns"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--parallelism", type=int, default=1)
    arguments.add_argument("--checkpoint-dir", type=Path, required=True)
    options = arguments.parse_args(argv)
    os.environ.update(thread_mode_env())  # before PyFlink starts its JVM
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FLINK_LOG_DIR", str(BUILD / "logs"))
    groups = read_groups(options.columns)
    kafka = {"connector": "kafka", "properties.bootstrap.servers": options.bootstrap}
    source = kafka | {
        "topic": options.events, "properties.group.id": "sql-over", "format": "json",
        "scan.startup.mode": "earliest-offset",
    }  # fmt: skip
    sink = kafka | {
        "topic": options.output, "format": "json", "properties.compression.type": "lz4",
        "properties.linger.ms": "1", "properties.batch.size": "262144",
    }  # fmt: skip
    settings = EnvironmentSettings.new_instance().with_configuration(configuration(options))
    tables = TableEnvironment.create(settings.in_streaming_mode().build())
    tables.execute_sql(_SOURCE.format(options=with_options(source)))
    tables.execute_sql(_sink(groups, sink))
    result = tables.execute_sql(f"INSERT INTO sink {query(groups)}")
    print(f"started job={result.get_job_client().get_job_id()}", flush=True)
    result.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
