"""Our job in a process of its own, as the benchmarks start it.

Prints ``started job=<id> url=<Flink's web page> time_ms=<epoch ms>`` when every task runs, and ends
when its standard input is closed, on SIGTERM, or with the job; exit code 1 if the job failed.
"""

from __future__ import annotations

import argparse
import select
import signal
import sys
import time
from collections.abc import Sequence

from bench.common import add_job_options
from jobs import runner, settings
from jobs.running_job import TERMINAL_STATES, RunningJob

_LOOK_EVERY_S = 2.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m bench.ours_job", description=__doc__)
    add = result.add_argument
    add_job_options(add)
    add("--features-alone", action="store_true", help="write the features, ask no model")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job until it is told to end; returns the exit code."""
    options = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    overrides = dict(options.overrides)
    runner.prepare()
    if options.features_alone:
        overrides["model.embedded"] = True
        _leave_out_the_model()
    job = runner.start(settings.load(options.config, overrides))
    try:
        job.wait_running()
        now_ms = time.time_ns() // 1_000_000
        print(f"started job={job.job_id} url={job.rest.url} time_ms={now_ms}", flush=True)
        return _watch(job)
    finally:
        job.cancel()


def _leave_out_the_model() -> None:
    from bench import features_alone
    from jobs import pipeline

    pipeline._model = lambda _settings: None
    pipeline._scoring = features_alone.scoring


def _watch(job: RunningJob) -> int:
    while not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        state = job.state()
        if state in TERMINAL_STATES:
            print(f"ended as {state}: {job.failure()[:4000]}", file=sys.stderr, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
