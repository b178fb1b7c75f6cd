"""``streamscore upgrade`` and ``rescale``: another job in place of a running one, from its state.

All that takes time is done while the old job runs: the package, the new TaskManagers if the code is
another one, a client that has built the new job and one that has built the old one, and a rehearsal
of the new job. Then: stop with savepoint, submit, verify. If the new job does not do what it
should, the old one is started again from the same savepoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs import settings as job_settings
from jobs.cluster import compatibility, savepoints, submission
from jobs.cluster.client import FlinkRunClient
from jobs.cluster.package import Package
from jobs.cluster.rehearsal import rehearse
from jobs.cluster.standalone import StandaloneCluster, free_slots
from jobs.cluster.submission import JobRecord
from jobs.cluster.verification import Limits, verify, wait_flowing
from jobs.cluster.watching import PredictionWatch, gap_of, now_ms
from jobs.environment import ROOT, NotReadyError
from jobs.flink_rest import FlinkRest, JobError
from jobs.jars import silent
from jobs.running_job import RunningJob
from jobs.settings import Settings

Progress = Callable[[str], None]


@dataclass
class Outcome:
    """How a change went.

    Attributes:
        job_id: The job that runs now.
        savepoint: What it was started from.
        seconds: How long each step took, by its name.
        gap_s: The longest time without a prediction; none if there were too few to tell.
        rolled_back: Why the old job runs again; empty if the new one does.
    """

    job_id: str = ""
    savepoint: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    gap_s: float | None = None
    rolled_back: str = ""

    @contextmanager
    def step(self, name: str, progress: Progress) -> Iterator[None]:
        """Measure a step."""
        progress(name)
        start_s = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start_s, 2)


def upgrade(
    conf: Path,
    overrides: Mapping[str, Any],
    cluster: StandaloneCluster,
    progress: Progress = silent,
    limits: Limits | None = None,
    root: Path = ROOT,
) -> Outcome:
    """Replace a running job of a session cluster by the one that a settings file and the code are.

    Args:
        conf: The settings file; the job of that name is replaced.
        overrides: Over it.
        cluster: Where it runs.
        progress: Called with one line per step.
        limits: What the new job must keep to; none takes the defaults.
        root: The folder of the project whose code is to run.

    Raises:
        Incompatible: the state does not fit; nothing was changed.
        NotReadyError: no such job runs here; nothing was changed.
        JobError: before the stop: nothing was changed. After it: neither job could be started; the
            text names the savepoint.
    """
    new = job_settings.load(conf, overrides)
    old = JobRecord.read(cluster, new.name)
    package = submission.make_package(cluster, conf, overrides, root)
    return _Change(cluster, old, new, package, progress, limits or Limits()).run()


def rescale(
    name: str,
    parallelism: int,
    cluster: StandaloneCluster,
    progress: Progress = silent,
    limits: Limits | None = None,
) -> Outcome:
    """Give a running job another parallelism, with its own code and settings; see ``upgrade``.

    TaskManagers are started if there are too few slots.
    """
    old = JobRecord.read(cluster, name)
    changed = old.package.overrides | {"flink.parallelism": parallelism}
    new = job_settings.load(old.package.conf, changed)
    package = submission.make_package(cluster, old.package.conf, changed, old.package.code)
    limits = limits or Limits()
    return _Change(cluster, old, new, package, progress, limits, only_rescales=True).run()


@dataclass
class _Change:
    cluster: StandaloneCluster
    old: JobRecord
    new: Settings
    package: Package
    progress: Progress
    limits: Limits
    only_rescales: bool = False

    def run(self) -> Outcome:
        """See ``upgrade``."""
        compatibility.check(self.old.settings(), self.new)
        running = self._running()
        outcome = Outcome()
        with (
            PredictionWatch(self.new) as watch,
            FlinkRunClient(self.package, self.cluster) as client,
            FlinkRunClient(self.old.package, self.cluster) as way_back,
        ):
            with self._new_task_managers(running) as (replaced, added):
                with outcome.step("preparing the new job", self.progress):
                    self.cluster.wait_complete(self.cluster.running())
                    client.wait_ready()
                    self._check_way_back(way_back)
                self._rehearse(client, running, added, outcome)
                stop_ms = now_ms()
                with outcome.step("stopping the old job with a savepoint", self.progress):
                    outcome.savepoint = savepoints.stop(running, self._folder, native=self._native)
            try:
                self._go(client, replaced, outcome)
                with outcome.step("verifying", self.progress):
                    job = RunningJob(outcome.job_id, self.cluster.rest)
                    verify(job, watch, stop_ms, self.limits)
            except (JobError, NotReadyError) as exc:
                self._roll_back(way_back, str(exc), outcome)
                wait_flowing(watch, self.limits.wait_s)
            gap = gap_of(watch.seen(), stop_ms)
            outcome.gap_s = gap.seconds if gap else None
        return outcome

    def _check_way_back(self, way_back: FlinkRunClient) -> None:
        try:
            way_back.wait_ready()
        except JobError as exc:
            raise JobError(
                f"the old job could not be started again: {exc}; put right what it misses, or "
                "take a savepoint, cancel the job, and submit the new one with it"
            ) from exc

    @property
    def _folder(self) -> str:
        return savepoints.folder_of(self.new)

    @property
    def _native(self) -> bool:
        """Whether the new job reads the format of the old one's state backend."""
        return self.new.flink.state_backend == self.old.settings().flink.state_backend

    @property
    def _same_code(self) -> bool:
        return self.package.code_sha256 == self.old.package.code_sha256

    def _rehearse(
        self, client: FlinkRunClient, running: RunningJob, added: list[str], outcome: Outcome
    ) -> None:
        """Let the new job run without outputs, a subtask on each TaskManager that is cold.

        In processes of its own it has the old job's state; in those of the old job it would be held
        twice, so there it begins without.
        """
        if self._disturbs:
            return
        free = free_slots(self.cluster.rest)
        if self._same_code:
            cold = self.cluster.without_python()
            if self.only_rescales and not cold:
                return
            hosts, count = set(free), min(max(1, len(cold)), sum(free.values()))
        else:
            hosts, count = set(added), len(added)
        # Of several TaskManagers Flink takes the emptiest, so the cold ones.
        if parallelism := min(self.new.flink.parallelism, count):
            folder = None if self._same_code else self._folder
            with outcome.step("rehearsing the new job", self.progress):
                rehearse(client, running, folder, parallelism, hosts, self.progress)

    @property
    def _disturbs(self) -> bool:
        """Whether a rehearsal would take a stream's consumer, or tell the shedding its lag."""
        return self.new.kinesis is not None or (self.new.overload is not None and self._same_code)

    def _running(self) -> RunningJob:
        job = RunningJob(self.old.job_id, FlinkRest(self.cluster.session().rest))
        if (state := job.state()) != "RUNNING":
            raise NotReadyError(
                f"the job {self.old.name} is {state}, not RUNNING",
                "see why on the web page; submit it anew from its last checkpoint or savepoint",
            )
        return job

    @contextmanager
    def _new_task_managers(self, running: RunningJob) -> Iterator[tuple[list[str], list[str]]]:
        """TaskManagers to stop later, and those that were started: they are not waited for.

        With other code, those that the old job does not use are stopped at once. If what is done
        then fails, all is as before.
        """
        state = self.cluster.running()
        wanted, idle = -(-self.new.flink.parallelism // state.slots), list[str]()
        if self._same_code:
            count, replaced = max(0, wanted - len(state.task_managers)), list[str]()
        else:
            count = max(wanted, len(state.task_managers))
            replaced = sorted(running.task_managers() & set(state.task_managers))
            idle = [name for name in state.task_managers if name not in replaced]
            self.cluster.stop_task_managers(idle)
        added = self.cluster.add_task_managers(count, self.package.code)
        try:
            yield replaced, added
        except BaseException:
            self.cluster.stop_task_managers(added)
            self.cluster.add_task_managers(len(idle), self.old.package.code)
            raise

    def _go(self, client: FlinkRunClient, replaced: list[str], outcome: Outcome) -> None:
        if replaced:
            with outcome.step("stopping the TaskManagers with the old code", self.progress):
                self.cluster.retire_task_managers(replaced)
        with outcome.step("submitting the new job", self.progress):
            outcome.job_id = client.go(outcome.savepoint)
        record = JobRecord(self.new.name, outcome.job_id, self.package, outcome.savepoint)
        record.write(self.cluster)
        self.cluster.stop_task_managers(replaced)
        with outcome.step("waiting for its tasks to run", self.progress):
            job = RunningJob(outcome.job_id, self.cluster.rest)
            job.wait_running(submission.RUNNING_S)

    def _roll_back(self, way_back: FlinkRunClient, why: str, outcome: Outcome) -> None:
        outcome.rolled_back = why
        with outcome.step("rolling back", self.progress):
            if outcome.job_id:
                RunningJob(outcome.job_id, self.cluster.rest).cancel()
            try:
                self.cluster.use_code(self.old.package.code)
                outcome.job_id = way_back.go(outcome.savepoint)
                job = RunningJob(outcome.job_id, self.cluster.rest)
                record = replace(self.old, job_id=job.job_id, savepoint=outcome.savepoint)
                record.write(self.cluster)
                job.wait_running(submission.RUNNING_S)
            except (JobError, NotReadyError) as exc:
                raise JobError(
                    f"the new job failed ({why}), and the old one could not be started again "
                    f"({exc}); its state is in {outcome.savepoint}"
                ) from exc
