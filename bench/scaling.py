"""Measure what an event costs on a cluster, and what more TaskManagers and slots bring.

On standalone clusters of this machine, with the model embedded. Results:

  python_us_<keys>, jvm_us_<keys>   an event's CPU time by 1,000 to 1,000,000 cards, from two steady
                                    rates. In thread mode Python runs in its task's thread, so the
                                    threads' CPU times tell it from the JVM's; unlike a throughput
                                    they hardly depend on what else the machine does
  python_cores_<rate>               Python's cores at rates that the costs were not fitted to,
                                    beside those by the model of `streamscore plan`
  checkpoint_s_<keys>, _mib_<keys>  a full checkpoint's duration and size
  tps_<n>tm_<m>slots                predictions/s of a backlog, beside those of one TaskManager with
                                    one slot; the broker and all TaskManagers share this machine
  saturated_us                      Python's CPU time for an event of that backlog, beside the model

Written to build/bench/scaling.json; --write writes conf/costs.yaml, the unit costs of `streamscore
plan`. A job that does not keep up with a steady rate gives exit code 1: the machine is too busy.

Examples:
  python -m bench.scaling --quick
  python -m bench.scaling --write              # 12 minutes on a quiet machine
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import yaml

from bench.common import (
    BenchError,
    Result,
    add_common_options,
    command_line,
    compared,
    fill_in,
    finish,
    guarded,
    machine,
    say,
    versions,
)
from bench.lab import Place, ensure_model, place
from bench.scaling_clusters import Throughput, backlog, clusters_of, throughput
from bench.scaling_costs import Measured, costs_of, measure, modelled_cores
from jobs import settings as job_settings
from jobs.cluster.plan import COSTS, Costs, plan

PARTS = ("costs", "clusters")
_PLANNED_PER_S = 100_000
_MIB = 1024**2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("scaling", __doc__)
    add = result.add_argument
    add_common_options(add)
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: both")
    add("--keys", type=int, nargs="+", help="cards (default: 1,000 to 1,000,000)")
    add("--seconds", type=float, help="measured at each steady rate (default: 15)")
    add("--records", type=int, help="of the backlog (default: 1,000,000)")
    add("--write", action="store_true", help="write conf/costs.yaml")
    return result


def _complete(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults, which --quick changes."""
    defaults = {
        "keys": ([1_000], [1_000, 10_000, 100_000, 1_000_000]),
        "seconds": (5.0, 15.0),
        "records": (150_000, 1_000_000),
        "data": ("small", "full"),
    }
    if options.write and "costs" not in options.parts:
        raise BenchError("--write takes the part costs")
    return fill_in(options, defaults)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = parser().parse_args(argv)
    return guarded(lambda: _bench(_complete(options)))


def _bench(options: argparse.Namespace) -> int:
    about = machine()
    overrides = {"model.embedded": True, **dict(options.overrides)}
    ensure_model(job_settings.load(options.config, overrides), options.config, options.data)
    found: list[Measured] = []
    rates: list[Throughput] = []
    costs = None
    with place("scaling", options.config, overrides, keep=options.keep) as at:
        if "costs" in options.parts:
            found = [_measured(at, keys, options.seconds, n) for n, keys in enumerate(options.keys)]
            costs = costs_of(found, {**about, "command": "python -m bench.scaling --write"})
        if "clusters" in options.parts:
            given = backlog(at, options.records)
            rates = [throughput(at, n, m, given) for n, m in clusters_of(quick=options.quick)]
        document = {
            "machine": about,
            "versions": versions(),
            "settings": {"config": options.config.name, "changed": overrides},
            "costs": costs.__dict__ if costs else None,
            "failures": at.failures,
        }
    if costs:
        _show_plan(options, overrides, costs)
        if options.write:
            text = yaml.safe_dump(costs.__dict__, sort_keys=False)
            COSTS.write_text(f"# Written by: python -m bench.scaling --write\n{text}")
    results = [*_of_costs(found, costs), *_of_clusters(rates, costs)]
    title = "Costs and scaling" + " (smoke test)" * options.quick
    return finish("scaling", title, document, results, quick=options.quick, baseline="beside")


def _measured(at: Place, keys: int, seconds: float, number: int) -> Measured:
    say(f"[bold]{keys:,} cards[/]")
    return measure(at, keys, seconds, is_checked=number == 0)


def _of_costs(found: Sequence[Measured], costs: Costs | None) -> list[Result]:
    if costs is None:
        return []
    results = []
    fewest = found[0]
    for one in found:
        note = f"beside that of {fewest.keys:,} cards"
        results += [
            compared(f"python_us_{one.keys}", one.python_us, "us", fewest.python_us, note),
            compared(f"jvm_us_{one.keys}", one.jvm_us, "us", fewest.jvm_us, note),
            Result(f"checkpoint_s_{one.keys}", one.checkpoint_s, "s"),
            Result(f"checkpoint_mib_{one.keys}", one.checkpoint_bytes / _MIB, "MiB"),
        ]
    for rate, point in fewest.checked.items():
        modelled = modelled_cores(costs, fewest, point)
        note = "beside the model, which was not fitted to it"
        results.append(compared(f"python_cores_{rate}", point["python"], "cores", modelled, note))
    return results


def _of_clusters(rates: Sequence[Throughput], costs: Costs | None) -> list[Result]:
    if not rates:
        return []
    one = rates[0]
    results = [
        compared(f"tps_{r.task_managers}tm_{r.slots}slots", r.per_s, "1/s", one.per_s)
        for r in rates
    ]
    modelled = costs.python_us_at(one.keys) if costs else None
    results.append(compared("saturated_us", one.python_us, "us", modelled))
    return results


def _show_plan(options: argparse.Namespace, overrides: dict[str, object], costs: Costs) -> None:
    settings = job_settings.load(options.config, overrides)
    for line in plan(settings, _PLANNED_PER_S, 1_000_000, 50, costs):
        say(f"{_PLANNED_PER_S:,}/s, 10^6 cards: {line.what}: {line.value} ({line.reason})")


if __name__ == "__main__":
    sys.exit(main())
