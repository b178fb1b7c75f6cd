"""What the benchmarks share, without Flink and Kafka: statistics, pacing, the result document."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from jobs.environment import BUILD, ROOT, NotReadyError, find_java, first_output
from jobs.exit_codes import ExitCode
from jobs.jars import expected
from jobs.settings_file import SettingsError

BENCH = BUILD / "bench"
"""Folder of the figures, and of what a run writes while it goes on."""

FRAUD = ROOT / "conf" / "fraud.yaml"
"""The settings file of most measurements."""

_EXIT_SIGTERM = 128 + signal.SIGTERM

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}

console = Console(width=None if sys.stdout.isatty() else 116)


class BenchError(RuntimeError):
    """A measurement failed or is invalid; the text says why."""


# -- statistics ---------------------------------------------------------------------------------


def percentiles(values: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    """The ``PERCENTILES`` by nearest rank: each is a value that was measured.

    Raises:
        BenchError: there are no values.
    """
    if not len(values):
        raise BenchError("nothing was measured")
    array = np.asarray(values, dtype=np.float64)
    found = np.percentile(array, list(PERCENTILES.values()), method="inverted_cdf")
    return dict(zip(PERCENTILES, found.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Sample:
    """How many records a topic held at a moment.

    Attributes:
        at_s: Monotonic seconds.
        records: Sum of its partitions' high watermarks.
    """

    at_s: float
    records: int


@dataclass(frozen=True, slots=True)
class Rate:
    """A topic's growth between two samples.

    Attributes:
        per_s: Records per second.
        records: Records between them.
        seconds: Time between them.
        ignored_records: Records before the first one: warm-up.
        from_s: Monotonic seconds of the first one.
    """

    per_s: float
    records: int
    seconds: float
    ignored_records: int
    from_s: float


def growth_rate(
    samples: Sequence[Sample], ignore_fraction: float = 0.4, ignore_s: float = 0.0
) -> Rate:
    """The rate at which a topic grew after the warm-up, to the last sample that shows growth.

    Args:
        samples: In time order.
        ignore_fraction: Part of the records that is warm-up, 0 to below 1.
        ignore_s: Seconds since the last empty sample that are warm-up at least.

    Raises:
        BenchError: fewer than two samples are left.
    """
    growing = _while_growing(samples)
    total = growing[-1].records if growing else 0
    warm = [
        sample
        for sample in growing
        if sample.records >= ignore_fraction * total
        and sample.records > 0
        and sample.at_s - growing[0].at_s >= ignore_s
    ]
    if len(warm) < 2:
        raise BenchError(f"{total:,} records are too few, or came too fast, to measure a rate")
    first, last = warm[0], warm[-1]
    records, seconds = last.records - first.records, last.at_s - first.at_s
    return Rate(records / seconds, records, seconds, first.records, first.at_s)


def _while_growing(samples: Sequence[Sample]) -> list[Sample]:
    """From the last empty sample to the first that shows all of the records."""
    if not samples:
        return []
    first, total = samples[0].records, samples[-1].records
    start = max(n for n, sample in enumerate(samples) if sample.records == first)
    end = min(n for n, sample in enumerate(samples) if sample.records == total)
    return list(samples[start : end + 1])


# -- load ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Pacer:
    """Says when to send how many records so that a constant rate results.

    The schedule is fixed at the start: record n is due after n / rate seconds. After a pause all
    that is overdue is due at once, so that the mean rate holds.

    Attributes:
        per_s: Records per second.
        tick_s: Least time between two batches.
        clock: Monotonic seconds.
        sleep: Waits for some seconds.
        late_max_s: The longest a record was overdue, one tick not counted.
    """

    per_s: float
    tick_s: float = 0.002
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    late_max_s: float = 0.0

    def batches(self, total: int) -> Iterator[tuple[int, int]]:
        """First and one-past-last record of each batch, when it is due."""
        start_s, sent, ticks = self.clock(), 0, 0
        while sent < total:
            elapsed_s = self.clock() - start_s
            due = min(total, int(elapsed_s * self.per_s) + 1)
            if due > sent:
                overdue_s = elapsed_s - sent / self.per_s - self.tick_s
                self.late_max_s = max(self.late_max_s, overdue_s)
                yield sent, due
                sent = due
            ticks = max(ticks + 1, int((self.clock() - start_s) / self.tick_s))
            self.sleep(max(0.0, start_s + ticks * self.tick_s - self.clock()))


# -- the document -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """One headline figure.

    Attributes:
        name: What was measured.
        value: The figure; none if the measurement is not valid.
        unit: Its unit.
        baseline: Stock PyFlink's figure of the same kind, measured in the same run.
        ratio: ``value / baseline``: above 1 is better for a rate, below 1 for a latency.
        note: What the baseline is, or why there is no value.
    """

    name: str
    value: float | None
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    note: str = ""


def compared(
    name: str, value: float | None, unit: str, baseline: float | None, note: str = ""
) -> Result:
    """A result with its ratio to the baseline, if both are known."""
    ratio = value / baseline if value is not None and baseline else None
    return Result(name, value, unit, baseline, ratio, note)


_NUMBER = {"type": ["number", "null"]}
_RESULT = {
    "type": "object",
    "required": ["name", "value", "unit", "baseline", "ratio"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9_]+$"},
        "unit": {"type": "string", "minLength": 1},
        "note": {"type": "string"},
        **dict.fromkeys(("value", "baseline", "ratio"), _NUMBER),
    },
    "additionalProperties": False,
}
_MACHINE = ["cpu", "cores", "memory_bytes", "load_before", "kernel"]
_VERSIONS = ["python", "java", "flink", "kafka", "xgboost", "numpy", "grpcio"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["benchmark", "quick", "machine", "versions", "settings", "results", "failures"],
    "properties": {
        "machine": {"type": "object", "required": _MACHINE},
        "versions": {
            "type": "object",
            "required": _VERSIONS,
            "additionalProperties": {"type": "string"},
        },
        "settings": {"type": "object"},
        "results": {"type": "array", "items": _RESULT},
        "runs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "failures": {"type": "array", "items": {"type": "string"}},
    },
}
"""JSON Schema of ``throughput.json`` and ``latency.json``."""


def machine() -> dict[str, Any]:
    """The machine the figures hold for; call it before the load begins."""
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "kernel": f"{platform.system()} {platform.release()}",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return names[0] if names else platform.processor()


def versions() -> dict[str, str]:
    """What ran, by name."""
    packages = {
        name: metadata.version(package)
        for name, package in {
            "flink": "apache-flink",
            "xgboost": "xgboost-cpu",
            "numpy": "numpy",
            "numba": "numba",
            "grpcio": "grpcio",
            "confluent_kafka": "confluent-kafka",
            "streamscore": "streamscore",
        }.items()
    }
    commit = first_output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
    return {
        "python": platform.python_version(),
        "java": _java_version(),
        "kafka": _kafka_version(),
        "commit": commit.strip(),
        **packages,
    }


def _java_version() -> str:
    found = re.search(r'version "([^"]+)"', first_output([str(find_java()), "-version"]))
    return found[1] if found else "unknown"


def _kafka_version() -> str:
    found = re.search(r"kafka/kafka_[\d.]+-([\d.]+)\.jar", "\n".join(expected()))
    return found[1] if found else "unknown"


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Store a document; a reader finds the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def as_dicts(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Results for the document, rounded to what a measurement like this can tell."""
    return [{k: _rounded(v) for k, v in asdict(result).items()} for result in results]


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def results_table(title: str, results: Iterable[Result], baseline: str = "stock PyFlink") -> Table:
    """What is printed at the end; ``baseline`` heads the baselines' column, if there are any."""
    rows = list(results)
    beside = [baseline, "ratio"] if any(r.baseline is not None for r in rows) else []
    table = Table(title=title)
    table.add_column("result", no_wrap=True)
    for name in ("value", "unit", *beside):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for r in rows:
        others = (_shown(r.baseline), _times(r.ratio)) if beside else ()
        table.add_row(r.name, _shown(r.value), r.unit, *others, r.note)
    return table


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}x"


def finish(
    name: str,
    title: str,
    document: dict[str, Any],
    results: Sequence[Result],
    *,
    quick: bool,
    baseline: str = "stock PyFlink",
) -> int:
    """Store and print a benchmark's figures.

    Args:
        name: The benchmark's, and the file's.
        title: Of the table.
        document: Its ``machine``, ``versions``, ``settings``, ``runs`` and ``failures``.
        results: The figures.
        quick: Whether it was only a smoke test, which goes to a file of its own.
        baseline: Heads the printed column of the baselines.

    Returns:
        The exit code: failed if something did.
    """
    document = {"benchmark": name, "quick": quick, **document, "results": as_dicts(results)}
    path = BENCH / f"{name}{'-quick' if quick else ''}.json"
    write_document(path, document)
    console.print(results_table(title, results, baseline))
    changed = ", ".join(f"{k} {v}" for k, v in document["settings"]["changed"].items())
    console.print(f"our settings that are not the file's: {changed or 'none'}", soft_wrap=True)
    for failure in document["failures"]:
        console.print(f"[bold red]failed[/] {failure}", soft_wrap=True)
    console.print(f"written to {path}", soft_wrap=True)
    return ExitCode.FAILED if document["failures"] else ExitCode.OK


def guarded(measure: Callable[[], int]) -> int:
    """Run a benchmark so that whatever ends it, all that it started is stopped.

    Returns:
        Its exit code; after an error, one of ``jobs.exit_codes``, and the error is printed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_EXIT_SIGTERM))
    try:
        return measure()
    except SettingsError as exc:
        console.print(str(exc), markup=False)
        return ExitCode.CONFIG_REFUSED
    except NotReadyError as exc:
        console.print(f"{exc.problem}\nfix: {exc.fix}", markup=False)
        return ExitCode.NOT_READY
    except BenchError as exc:
        console.print(str(exc), markup=False)
        return ExitCode.FAILED


def say(text: str) -> None:
    """One line of progress with the time of day."""
    console.print(f"[dim]{datetime.now():%H:%M:%S}[/] {text}", soft_wrap=True, highlight=False)


# -- the command line ---------------------------------------------------------------------------


def command_line(name: str, description: str | None) -> argparse.ArgumentParser:
    """A bench's parser without options; its help begins with the module's docstring.

    Args:
        name: Of the module in bench/.
        description: The docstring, shown as it is written.
    """
    return argparse.ArgumentParser(
        prog=f"python -m bench.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_common_options(add: Callable[..., Any]) -> None:
    """The options both benchmarks have, so that ``make bench BENCH_ARGS=...`` fits both."""
    add("--quick", action="store_true",
        help="a smoke test of about 1.5 minutes: short runs of fewer kinds; its figures mean"
        " nothing and go to a file of their own")  # fmt: skip
    add_job_options(add)
    add("--data", choices=("small", "full"), help="demo data (default: full, with --quick small)")
    add(
        "--keep",
        action="store_true",
        help="keep the run's logs below build/bench even if nothing failed",
    )


def add_job_options(add: Callable[..., Any], config: Path = FRAUD) -> None:
    """The settings file of the job that is measured, and what is changed of it."""
    add("--config", type=Path, default=config, help="the job's settings file")
    add("--set", dest="overrides", metavar="KEY=VALUE", action="append", type=override,
        default=[], help="override one of our job's settings, e.g. --set batch.max_rows=1024;"
        " may be repeated")  # fmt: skip


def fill_in(
    options: argparse.Namespace, defaults: Mapping[str, Sequence[Any]], form: int | None = None
) -> argparse.Namespace:
    """Give options that were not said the defaults of a form of the run.

    Args:
        options: The command line's.
        defaults: By option, a value for each form.
        form: Which one; none is 0 with --quick, else 1.
    """
    chosen = form if form is not None else int(not options.quick)
    for name, values in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, values[chosen])
    return options


def override(text: str) -> tuple[str, Any]:
    """``a.b=value`` as path and value; the value is YAML.

    Raises:
        argparse.ArgumentTypeError: it is not of that form.
    """
    path, equals, value = text.partition("=")
    if not (path and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from exc
