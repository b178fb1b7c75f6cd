"""Hurt the fraud job by every kind of fault, 100 times and more, and account for every record.

It is `streamscore chaos` with a seed, a rate and a number of faults: 0 lost, 0 wrong, and how long
each kind takes to recover from. A model is trained first if there is none. Writes
build/bench/chaos.json and, beside it, chaos.html with a timeline; exit code 1 if a record is lost
or wrong, a fault was not recovered from, or there were fewer faults or records than asked for.

Examples:
  python -m bench.chaos --quick
  python -m bench.chaos --faults 100 --records 2000000 --seed 1
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.common import (
    BENCH,
    BenchError,
    Result,
    add_job_options,
    command_line,
    finish,
    guarded,
    machine,
    say,
    versions,
)
from bench.lab import ensure_model
from jobs import settings
from jobs.chaos import report
from jobs.chaos.faults import KINDS, chosen
from jobs.chaos.run import Options, Outcome, run
from jobs.chaos.writer import WriterError
from jobs.environment import QUICK_JVM
from jobs.features.topics import TopicError
from jobs.flink_rest import JobError

_CHANGED: dict[str, Any] = {"flink.parallelism": 2, "flink.checkpoint_interval": "5s"}
_S_A_FAULT = 15.0
_SLACK = 3.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("chaos", __doc__)
    add = found.add_argument
    add("--quick", action="store_true", help="a smoke test: 5 faults at 300 events a second")
    add("--faults", type=int, help="how many (default: 100)")
    add("--records", type=int, help="at least so many (default: 2,000,000)")
    add("--kinds", default="all", help="with commas between (default: all)")
    add("--seed", type=int, default=1, help="of the faults and the events")
    add("--brokers", type=int, default=3, help="each has a replica of everything (default: 3)")
    add_job_options(add)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(argv)
    options.faults = options.faults or (5 if options.quick else 100)
    options.records = options.records or (10_000 if options.quick else 2_000_000)
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = machine()
    os.environ.setdefault("JVM_ARGS", QUICK_JVM)  # JVMs that start again and again
    overrides = _CHANGED | dict(options.overrides)
    ensure_model(settings.load(options.config, overrides), options.config, "small")
    seconds = options.faults * _S_A_FAULT
    asked = Options(
        conf=options.config,
        overrides=overrides,
        kinds=chosen(options.kinds),
        minutes=_SLACK * seconds / 60,
        count=options.faults,
        seed=options.seed,
        rate=max(300.0, options.records / seconds),
        brokers=options.brokers,
        records=options.records,
        folder=BENCH / "chaos",
    )
    try:
        outcome = run(asked, say)
    except (JobError, TopicError, WriterError) as exc:
        raise BenchError(f"{exc}; the logs are in {asked.folder}") from exc
    page = BENCH / "chaos.html"
    page.write_text(report.html(outcome), encoding="utf-8")
    say(f"timeline: {page}")
    document = {
        "machine": about,
        "versions": versions(),
        "settings": {"config": options.config.name, "changed": overrides},
        **report.document(outcome),
        "failures": _failures(options, outcome),
    }
    title = "A job that is hurt"
    return finish("chaos", title, document, _results(outcome), quick=options.quick)


def _failures(options: argparse.Namespace, outcome: Outcome) -> list[str]:
    ledger = outcome.ledger
    found = [
        (ledger.lost, f"{ledger.lost:,} records lost: {ledger.first_lost()}"),
        (outcome.wrong, f"{outcome.wrong:,} outputs or values wrong: {outcome.first}"),
        (outcome.unrecovered, f"{outcome.unrecovered} faults not recovered from"),
        (len(outcome.faults) < options.faults, f"only {len(outcome.faults)} faults"),
        (ledger.records < options.records, f"only {ledger.records:,} records"),
    ]
    return [text for is_so, text in found if is_so]


def _results(outcome: Outcome) -> list[Result]:
    ledger = outcome.ledger
    results = [
        Result("faults", len(outcome.faults), "faults"),
        Result("records", ledger.records, "records"),
        Result("lost", ledger.lost, "records"),
        Result("wrong", outcome.wrong, "outputs or values"),
        Result("values_compared", outcome.compared, "values"),
        Result("repeated_predictions", ledger.repeats, "predictions"),
        Result("late_predictions", outcome.late, "predictions"),
    ]
    for kind in KINDS:
        times = [d.recovery_s for d in outcome.faults if d.kind == kind and d.recovery_s]
        if times:
            name = f"recovery_{kind.replace('-', '_')}"
            note = f"median of {len(times)}, longest {max(times):.1f}"
            results.append(Result(name, median(times), "s", note=note))
    return results


if __name__ == "__main__":
    sys.exit(main())
