"""Change a running job in every way while events come without a pause, and measure the gaps.

One standalone cluster with a real Kafka broker, the fraud job with the model embedded, 5,000
events a second from the first change to the last. Then, one after the other:

  rescale_2, rescale_4, rescale_down   parallelism 1 -> 2 -> 4 -> 2
  feature    one more window of a card, and a model that was trained with it
  model      a newer version of that model, put beside it while the job runs
  python     other code: new TaskManagers, as thread mode keeps what it has imported
  broken     other code that fails at its first batch: it must never take over
  rollback   a model that scores otherwise: verified, refused, the old job goes on
  plain_restart, plain_python   the baselines: what `rescale` and `python` do by hand, which is
             `flink stop` and `flink run` (and other TaskManagers)

The gap is the longest time between two append times in the predictions topic around a change;
normal is when the last prediction came that was later than a second, or twice the 99th percentile
of the seconds before. At the end every event must have its prediction, every feature must be what
the topics give, and every score what the named version of the model gives for those features.
Written to build/bench/changes.json. Exit code 1 if an event is lost, a value is wrong, or a change
did not end as it must; a gap above the aim of 5 s is only printed.

Examples:
  python -m bench.changes
  python -m bench.changes --quick
  python -m bench.changes --changes rescale_2 python plain_python --rate 2000
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bench.changes_judge import Seen, Timeline, judge, latency_s, read
from bench.cluster_lab import Writer, changed_code, events, with_a_feature
from bench.common import (
    BenchError,
    Result,
    add_job_options,
    command_line,
    compared,
    finish,
    guarded,
    machine,
    say,
    versions,
)
from bench.lab import Place, place
from bench.plain_change import plain_change
from jobs import settings as job_settings
from jobs import training
from jobs.cluster import savepoints, submission, upgrade
from jobs.cluster.standalone import StandaloneCluster
from jobs.cluster.submission import JobRecord
from jobs.cluster.verification import Limits
from jobs.demo import data as demo_data
from jobs.environment import ROOT
from jobs.flink_rest import JobError
from jobs.running_job import RunningJob

PLAIN = {"plain_restart": False, "plain_python": True}
CHANGES = (
    *("rescale_2", "rescale_4", "rescale_down", "plain_restart", "feature", "model"),
    *("python", "broken", "plain_python", "rollback"),
)
_PARALLELISM = {"rescale_2": 2, "rescale_4": 4, "rescale_down": 2}
_BASELINE = {"python": "plain_python"} | dict.fromkeys(
    (*_PARALLELISM, "feature", "model", "rollback"), "plain_restart"
)
_AIM_S = 5.0
_NORMAL_S = 1.0
_CALM_S = 120.0
_ROWS = 20_000


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("changes", __doc__)
    add = result.add_argument
    add("--quick", action="store_true", help="a smoke test: 500 events/s, two changes")
    add("--rate", type=float, help="events per second (default: 5,000)")
    add("--changes", nargs="+", choices=CHANGES, help="in this order (default: all)")
    add("--cards", type=int, default=20_000, help="keys of the first stage (default: %(default)s)")
    add("--between-s", type=float, default=8.0, help="of load between two (default: %(default)s)")
    add_job_options(add)
    add("--keep", action="store_true", help="keep the logs below build/bench in any case")
    return result


@dataclass
class Change:
    """One that was made.

    Attributes:
        name: Of ``CHANGES``.
        start_ms: When it was asked for, epoch milliseconds.
        seconds: How long each step took.
        ended: What became of it: ``done``, ``refused`` or ``rolled back``; and why.
    """

    name: str
    start_ms: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    ended: str = "done"
    why: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it ended as it must."""
        wanted = {"broken": ("refused", "rolled back"), "rollback": ("rolled back",)}
        return self.ended in wanted.get(self.name, ("done",))


class Live:
    """The job, and how it is changed.

    Args:
        at: Where it runs.
        options: The command line's.
        overrides: Of the job.
        cluster: Of two TaskManagers of two slots.
    """

    def __init__(
        self,
        at: Place,
        options: argparse.Namespace,
        overrides: dict[str, Any],
        cluster: StandaloneCluster,
    ) -> None:
        self._at, self._cluster = at, cluster
        self._limits = Limits(max_psi=10.0)  # the models differ on purpose
        self._code, self._models = ROOT, at.folder / "models"
        self._changes = options.changes
        self.conf, self.overrides = options.config, overrides
        self.name = job_settings.load(options.config, overrides).name

    def prepare(self) -> None:
        """Train the models and write the code that the changes need; before the load begins."""
        frame = demo_data.load("small").head(_ROWS)
        turned = frame.assign(is_fraud=1 - frame["is_fraud"])
        self._new_conf = conf = with_a_feature(self.conf, self._at.folder / "new.yaml")
        changes = list(self._changes)
        # Other numbers of versions, so that a prediction tells its model.
        self._train(1, "old", self.conf, frame)
        if "feature" in changes:
            self._train(2, "new", conf, frame)
        for number, name, data in ((3, "model", frame.head(_ROWS // 2)), (4, "rollback", turned)):
            if name in changes:
                has_it = "feature" in changes[: changes.index(name)]
                self._train(number, name, conf if has_it else self.conf, data)
        version = ("SCHEMA_VERSION = 1", "SCHEMA_VERSION = 2")
        self._python = changed_code(self._at.folder / "python", "udfs/batches/records.py", *version)
        calls = ("split_batch(value)", "split_batch(value, value)")
        self._broken = changed_code(self._at.folder / "broken", "udfs/stages/first.py", *calls)
        self.overrides["model.path"] = str(self._models / "old")

    def _train(self, number: int, folder: str, conf: Path, frame: pd.DataFrame) -> None:
        where = {"training.trees": 20, "model.path": str(self._at.folder / "trained")}
        path = training.train(job_settings.load(conf, where), frame).version.path
        shutil.move(path, self._models / folder / path.parent.name / str(number))

    @property
    def models(self) -> dict[int, Path]:
        """Each version's folder."""
        return {int(path.name): path for path in self._models.glob("*/*/*")}

    @property
    def job(self) -> RunningJob:
        """The one that runs now."""
        return RunningJob(JobRecord.read(self._cluster, self.name).job_id, self._cluster.rest)

    def submit(self) -> None:
        """Start the job."""
        package = submission.make_package(self._cluster, self.conf, self.overrides)
        settings = job_settings.load(self.conf, self.overrides)
        submission.submit_session(settings, package, self._cluster, progress=say)

    def change(self, name: str) -> Change:
        """Make a change, and tell how it went."""
        made = Change(name, time.time_ns() // 1_000_000)
        acts: dict[str, Callable[[], upgrade.Outcome | Mapping[str, float]]] = {
            "feature": self._feature,
            "model": self._newer_model,
            "python": partial(self._upgrade, self._python),
            "broken": partial(self._upgrade, self._broken),
            "rollback": self._other_model,
            **{plain: partial(self._plain, plain) for plain in PLAIN},
            **{to: partial(self._rescale, n) for to, n in _PARALLELISM.items()},
        }
        try:
            found = acts[name]()
        except JobError as exc:
            made.ended, made.why = "refused", str(exc)
            return made
        if isinstance(found, upgrade.Outcome):
            made.seconds = found.seconds
            say(f"without a prediction, as the command says: {found.gap_s} s")
            if found.rolled_back:
                made.ended, made.why = "rolled back", found.rolled_back
        else:
            made.seconds = found
        return made

    def _upgrade(self, code: Path) -> upgrade.Outcome:
        found = upgrade.upgrade(self.conf, self.overrides, self._cluster, say, self._limits, code)
        self._code = self._code if found.rolled_back else code
        return found

    def _rescale(self, parallelism: int) -> upgrade.Outcome:
        self.overrides["flink.parallelism"] = parallelism
        return upgrade.rescale(self.name, parallelism, self._cluster, say, self._limits)

    def _feature(self) -> upgrade.Outcome:
        self.conf = self._new_conf
        self.overrides["model.path"] = str(self._models / "new")
        return self._upgrade(self._code)

    def _newer_model(self) -> Mapping[str, float]:
        """The job looks for newer versions by itself."""
        (later,) = (self._models / "model").glob("*/3")
        to = Path(self.overrides["model.path"]) / later.parent.name
        to.mkdir(parents=True, exist_ok=True)
        shutil.copytree(later, to / "draft")
        (to / "draft").rename(to / "3")
        return {}

    def _other_model(self) -> upgrade.Outcome:
        changed = self.overrides | {"model.path": str(self._models / "rollback")}
        return upgrade.upgrade(self.conf, changed, self._cluster, say, root=self._code)

    def _plain(self, name: str) -> Mapping[str, float]:
        return plain_change(
            self._cluster, self.conf, self.overrides, self._code, new_processes=PLAIN[name]
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = parser().parse_args(argv)
    options.rate = options.rate or (500.0 if options.quick else 5_000.0)
    options.changes = options.changes or (("rescale_2", "feature") if options.quick else CHANGES)
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = machine()
    changed = {
        "model.embedded": True,
        "batch.buckets": 4,
        "batch.window": "50ms",
        "flink.checkpoint_interval": "10s",
        **dict(options.overrides),
    }
    with place("changes", options.config, changed, keep=options.keep) as at, ExitStack() as exits:
        names = {n: at.create(n)[0] for n in ("events", "labels")}
        overrides = changed | at.job_overrides("changes", names | at.create_outputs("changes"))
        cluster = StandaloneCluster(at.folder / "cluster")
        exits.callback(cluster.down)
        say("training models, starting Flink")
        live = Live(at, options, overrides, cluster)
        live.prepare()
        cluster.up(2, 2)
        live.submit()
        made, end_ms = _run(at, live, options)
        cluster.down()  # the recomputation wants its memory
        say("reading the predictions")
        settings = job_settings.load(live.conf, live.overrides)
        seen = read(at, settings)
        results, rows = _timed(made, seen, end_ms)
        for row in rows:
            say(f"{row['name']}: gap {row['gap_s']:.2f} s, normal after {row['normal_s']:.2f} s")
        say("recomputing features and scores")
        counts = judge(seen, settings, options.config, live.models)
        results += [Result(name, value, unit) for name, (value, unit) in counts.items()]
        failures = _failures(made, counts)
        at.failures.extend(failures)
    document = {
        "machine": about,
        "versions": versions(),
        "settings": {
            "config": options.config.name,
            "changed": changed,
            "rate": options.rate,
            "cards": options.cards,
        },
        "runs": rows,
        "accounts": {name: value for name, (value, _) in counts.items()},
        "failures": failures,
    }
    title = "Changes under load" + " (smoke test)" * options.quick
    return finish("changes", title, document, results, quick=options.quick, baseline="plain")


def _run(at: Place, live: Live, options: argparse.Namespace) -> tuple[list[Change], int]:
    """All changes; they, and when the load ended."""
    settings = job_settings.load(live.conf, live.overrides)
    topic, made = settings.topics.predictions, []
    writer = Writer(settings, events(options.cards, seed=1))
    with writer.at(options.rate):
        for name in options.changes:
            _calm(at, topic, live, options.between_s)
            say(f"{name}: begins")
            made.append(live.change(name))
            say(f"{name}: {made[-1].ended} {made[-1].why} {made[-1].seconds}")
        _calm(at, topic, live, options.between_s)
        end_ms = time.time_ns() // 1_000_000
    _calm(at, topic, live, 0.0)
    savepoints.stop(live.job, savepoints.folder_of(settings))
    return made, end_ms


def _calm(at: Place, topic: str, live: Live, seconds: float) -> None:
    """Wait until predictions are in time, and then some seconds of load."""
    deadline_s = time.monotonic() + _CALM_S
    while latency_s(at, topic) > _NORMAL_S:
        if time.monotonic() > deadline_s:
            raise BenchError(f"the job lags after {_CALM_S:.0f} s: it is {live.job.state()}")
        time.sleep(0.2)
    time.sleep(seconds)


def _timed(
    made: Sequence[Change], seen: Seen, end_ms: int
) -> tuple[list[Result], list[dict[str, Any]]]:
    """The times of each change as results, and a row a change."""
    ends = [*(change.start_ms for change in made[1:]), end_ms]
    told: dict[str, Timeline] = {
        change.name: seen.between(change.start_ms, to_ms)
        for change, to_ms in zip(made, ends, strict=True)
    }
    results, rows = [], []
    for change in made:
        own = told[change.name]
        base = told.get(_BASELINE.get(change.name, ""))
        plain = (base.gap_s, base.normal_s) if base else (None, None)
        note = change.ended + ("" if own.gap_s <= _AIM_S else f", above the aim of {_AIM_S:g} s")
        results += [
            compared(f"gap_{change.name}", own.gap_s, "s", plain[0], note),
            compared(f"normal_{change.name}", own.normal_s, "s", plain[1]),
        ]
        rows.append({**vars(change), "gap_s": own.gap_s, "normal_s": own.normal_s})
    return results, rows


def _failures(made: Sequence[Change], counts: Mapping[str, tuple[float, str]]) -> list[str]:
    bad = {name: counts[name][0] for name in ("lost", "wrong", "wrong_scores")}
    failures = [f"{count:,.0f} {name}" for name, count in bad.items() if count]
    return failures + [f"{c.name} was {c.ended}: {c.why}" for c in made if not c.is_right]


if __name__ == "__main__":
    sys.exit(main())
