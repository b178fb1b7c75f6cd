"""Measure how well the job's windows, features and forest find SKAB's anomalies.

The settings file's own windows, features and training: an Isolation Forest of the run without an
anomaly, one model for all 34 labelled runs. Written to build/bench/skab.json.

  auc_mean            mean over the runs of the AUC over rows after the warm-up of 400
  f1, far, mar        over the same rows, a row called by its own window's score, threshold:
                      alerts.threshold; beside the table that SKAB's authors publish
  known_f1, ...       by what the running job would have said at the row's time: hysteresis, and
                      windows that must close first
  delay_*_s           from an anomaly's start to the end of the window that opens its episode, and
                      to the alert: the allowed lateness is part of it
  split_f1, ...       threshold chosen for the best F1 on every second run, measured on the others,
                      and the other way round; the mean of both

Needs SKAB's archive, see jobs/demo/iot/runs.py.

Example:
  python -m bench.skab --set features.preparation.default=0
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from bench import common
from bench.common import BENCH, Result, add_job_options, command_line, guarded, say
from jobs import settings, training
from jobs.demo.iot import evaluation, runs
from jobs.demo.iot.evaluation import Rates, Scored
from jobs.environment import ROOT
from jobs.settings import Settings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("skab", __doc__)
    add = result.add_argument
    add_job_options(add, ROOT / "conf" / "iot.yaml")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = parser().parse_args(argv)
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = common.machine()
    changes = {"model.path": str(BENCH / "skab-models")} | dict(options.overrides)
    chosen = settings.load(options.config, changes)
    found = runs.skab_runs(runs.archive())
    say("training on the run without an anomaly")
    trained = training.train(chosen, evaluation.training_frame(found))
    scored = evaluation.score(chosen, trained.version.path, found.labelled)
    results, details = measure(chosen, scored)
    document = {
        "machine": about,
        "versions": common.versions(),
        "settings": {"config": options.config.name, "changed": dict(options.overrides)},
        "runs": details,
        "published": {name: list(row) for name, row in evaluation.PUBLISHED.items()},
        "failures": [],
    }
    return common.finish(
        "skab", "SKAB's anomalies", document, results, quick=False, baseline="published"
    )


def measure(
    chosen: Settings, scored: Sequence[Scored]
) -> tuple[list[Result], list[dict[str, Any]]]:
    """All figures, and those of each run."""
    found = evaluation.measure(chosen, scored)
    aucs, lateness_s = found.aucs, chosen.event.time.allowed_lateness / 1_000
    details = [
        {"name": one.run.name, "auc": round(auc, 4), "delay_s": delay, "opened": opened}
        for one, auc, delay, opened in zip(scored, aucs, found.delays_s, found.opened, strict=True)
    ]
    results = [
        Result("auc_mean", statistics.fmean(aucs), "AUC", note=f"{len(aucs)} runs"),
        Result("auc_lowest", min(aucs), "AUC", note=scored[aucs.index(min(aucs))].run.name),
        *_as_results("", found.at_threshold),
        *_as_results("known_", found.known),
        *_as_results("split_", found.split),
    ]
    seen = [delay for delay in found.delays_s if delay is not None]
    return [
        *results,
        Result("found", float(len(seen)), "runs", note=f"of {len(scored)}"),
        Result("delay_median_s", statistics.median(seen), "s", note="to the window's end"),
        Result("alert_median_s", statistics.median(seen) + lateness_s, "s", note="to the alert"),
        Result("alert_max_s", max(seen) + lateness_s, "s"),
    ], details


def _as_results(prefix: str, found: Rates) -> list[Result]:
    note = f"published: {evaluation.BEST}"
    f1, far, mar = evaluation.PUBLISHED[evaluation.BEST]
    return [
        Result(f"{prefix}f1", found.f1, "F1", f1, found.f1 / f1, note),
        Result(f"{prefix}far", 100 * found.far, "%", far, 100 * found.far / far, note),
        Result(f"{prefix}mar", 100 * found.mar, "%", mar, 100 * found.mar / mar, note),
    ]


if __name__ == "__main__":
    sys.exit(main())
