"""A run: faults one after the other while events flow, and the account at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.chaos.fault import Fault
from jobs.chaos.faults import KINDS
from jobs.chaos.ledger import Ledger
from jobs.chaos.plan import Planned, schedule
from jobs.chaos.stack import CHAOS, Size, Stack, running
from jobs.chaos.watch import Watch
from jobs.chaos.writer import Writer
from jobs.environment import NotReadyError
from jobs.features import parity, topics
from jobs.flink_rest import JobError
from jobs.jars import silent
from jobs.settings import Settings

_POLL_S = 0.05
_MEND_EVERY_S = 2.0
_RECOVERY_S = 180.0
"""A fault that is not over by then has not been recovered from."""
_FIRST_S = 180.0
_DRAIN_S = 300.0
_QUIET_S = 6.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a run is.

    Attributes:
        conf: The job's settings file.
        overrides: Over it, by dotted name.
        kinds: Names of ``KINDS``.
        minutes: No fault begins later.
        count: No more faults than these; 0 is no limit.
        seed: Of the faults and the events.
        rate: Events a second.
        task_managers: How many, of two slots each.
        brokers: How many; each has a replica of everything.
        records: Write until there are so many, also when the faults are over.
        folder: Of all files.
    """

    conf: Path
    overrides: dict[str, Any]
    kinds: Sequence[str]
    minutes: float
    count: int = 0
    seed: int = 1
    rate: float = 500.0
    task_managers: int = 2
    brokers: int = 1
    records: int = 0
    folder: Path = CHAOS


@dataclass(frozen=True)
class Done:
    """A fault that was made.

    Attributes:
        number: From 1.
        kind: Its kind's name.
        detail: What exactly was done.
        at_s: When, in seconds since the first event.
        held_s: Until it was healed.
        recovery_s: From then until the job worked again; none if it did not.
        trouble: What went wrong with the making or the healing itself.
    """

    number: int
    kind: str
    detail: str
    at_s: float
    held_s: float
    recovery_s: float | None
    trouble: str = ""

    def line(self) -> str:
        """What is shown of it."""
        after = "not recovered" if self.recovery_s is None else f"recovered {self.recovery_s:.1f} s"
        text = f"{self.number:3} {self.kind:17} held {self.held_s:4.1f} s, {after} after"
        return f"{text} ({self.detail})" + (f"; {self.trouble}" if self.trouble else "")


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        started: When, ISO 8601, UTC.
        options: What was asked for.
        faults: Those that were made.
        seconds: From the first event to the last output.
        ledger: The account of ids.
        compared: Values of features that were recomputed.
        differences: Of these, those that were not the same.
        first: The first few of them.
        late: Predictions that say late: their features are not compared.
        restarts: Of the job, as far as its last JobManager knows.
        per_second: Predictions read in each second.
        skipped: Kinds that this job's stack does not have.
    """

    started: str
    options: Options
    faults: list[Done] = field(default_factory=list)
    seconds: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    compared: int = 0
    differences: int = 0
    first: Sequence[parity.Difference] = ()
    late: int = 0
    restarts: int = 0
    per_second: dict[int, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Outputs that should not be, and values that are not those recomputed."""
        return self.ledger.wrong + self.differences

    @property
    def unrecovered(self) -> int:
        """Faults after which the job did not work in time, or that could not be made."""
        return sum(done.recovery_s is None or bool(done.trouble) for done in self.faults)

    @property
    def is_good(self) -> bool:
        """Whether nothing is lost or wrong and every fault was recovered from."""
        return not (self.ledger.lost or self.wrong or self.unrecovered)


def run(options: Options, say: Say = silent) -> Outcome:
    """Bring a stack up, hurt it, judge what it wrote; all that was started is ended.

    Args:
        options: What to do.
        say: Called with one line per step and per fault.

    Raises:
        NotReadyError: the job cannot be tried here, or a part did not start.
        JobError: Flink refused the job, or it wrote nothing before the first fault.
        WriterError: the broker refused an event.
        TopicError: the broker did not answer at the end.
    """
    outcome = Outcome(datetime.now(UTC).isoformat(timespec="seconds"), options)
    size = Size(options.task_managers, options.brokers, "clock-jump" in options.kinds)
    with running(options.conf, options.overrides, options.folder, size, say) as stack:
        with Watch(stack.settings, outcome.ledger) as watch:
            writer = Writer(stack.settings, outcome.ledger, options.rate, options.seed)
            with writer:
                say(f"events flow, {options.rate:,.0f} a second; {stack.job.rest.url}")
                first = dict.fromkeys(range(writer.partitions), 0)
                _wait(lambda: watch.has_passed(first), _FIRST_S, "the first predictions")
                _Injurer(stack, writer, watch, say).go(outcome)
                _wait_written(outcome.ledger, options.records, writer)
            say("waiting for the last outputs")
            _drain(stack, watch, outcome.ledger)
            outcome.restarts = stack.restarts()
            with suppress(JobError):  # one that is broken for good is judged, too
                stack.job.cancel()
            _read_rest(watch)
            outcome.seconds = watch.now_s()
            outcome.per_second = dict(watch.per_second)
        stack.cluster.down()  # the recomputation wants its memory
        say("recomputing every feature")
        _compare(stack.settings, outcome)
    return outcome


class _Injurer:
    """Makes the faults of a run."""

    def __init__(self, stack: Stack, writer: Writer, watch: Watch, say: Say) -> None:
        self._stack, self._writer, self._watch, self._say = stack, writer, watch, say
        self._unhealed = ""

    def go(self, outcome: Outcome) -> None:
        """Make faults until the time is up or there were enough."""
        options = outcome.options
        faults: dict[str, Fault] = {}
        for kind in options.kinds:
            fault = KINDS[kind].make(self._stack, self._writer)
            if fault is None:
                outcome.skipped.append(kind)
            else:
                faults[kind] = fault
        if outcome.skipped:
            self._say(f"left out, as this stack does not have it: {', '.join(outcome.skipped)}")
        if not faults:
            raise NotReadyError("this job's stack has none of these faults", "choose others")
        ranges = {kind: KINDS[kind].holds_s for kind in faults}
        end_s = time.monotonic() + 60 * options.minutes
        for planned in schedule(ranges, options.seed):
            time.sleep(planned.pause_s)
            if time.monotonic() > end_s or (options.count and planned.number > options.count):
                return
            done = self._make(planned, faults[planned.kind])
            outcome.faults.append(done)
            self._say(done.line())

    def _make(self, planned: Planned, fault: Fault) -> Done:
        at_s, detail, trouble = self._watch.now_s(), "", ""
        try:
            detail = fault.inject(planned.strength)
            time.sleep(planned.holds_s)
        except Exception as exc:
            trouble = f"not made: {exc!r}"
        finally:
            held_s = self._watch.now_s() - at_s
            healed_s = time.monotonic()
            self._unhealed = _healed(fault)
        recovered = self._recovered(fault, healed_s + _RECOVERY_S)
        recovery_s = time.monotonic() - healed_s if recovered else None
        trouble = trouble or self._unhealed
        return Done(planned.number, planned.kind, detail, at_s, held_s, recovery_s, trouble)

    def _recovered(self, fault: Fault, deadline_s: float) -> bool:
        """Wait until all tasks run, and the model scores what was written after that.

        Tasks may go on for a while without a JobManager, until they hear of another one.
        """
        mend_s, ends = 0.0, None
        while ends is None or not self._watch.has_passed(ends):
            if time.monotonic() > deadline_s or self._watch.failure or self._writer.failure:
                return False
            if time.monotonic() > mend_s:
                self._unhealed = _healed(fault)
                _mended(self._stack)
                mend_s = time.monotonic() + _MEND_EVERY_S
            if ends is None and self._stack.runs():
                ends = self._writer.ends()
            time.sleep(_POLL_S)
        return True


def _healed(fault: Fault) -> str:
    """Heal; what went wrong, if something did."""
    try:
        fault.heal()
    except Exception as exc:
        return f"not healed: {exc!r}"
    return ""


def _mended(stack: Stack) -> None:
    """Start again what has ended as a consequence; what cannot be is tried again later."""
    try:
        stack.mend()
    except Exception:
        return


def _wait(done: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline_s:
            raise JobError(f"after {timeout_s:.0f} s there are not {what}")
        time.sleep(_POLL_S)


def _wait_written(ledger: Ledger, records: int, writer: Writer) -> None:
    while ledger.records < records and not writer.failure:
        time.sleep(_POLL_S)


def _drain(stack: Stack, watch: Watch, ledger: Ledger) -> None:
    """Wait until every record has its output, or until nothing more is to be hoped for."""
    deadline_s = time.monotonic() + _DRAIN_S
    while ledger.lost and time.monotonic() < deadline_s and not watch.failure:
        _mended(stack)
        time.sleep(_POLL_S)


def _read_rest(watch: Watch) -> None:
    """Read what a job that has ended has left: repeats come after the last record."""
    deadline_s = time.monotonic() + _QUIET_S
    while not watch.is_at_end() and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def _compare(settings: Settings, outcome: Outcome) -> None:
    source = topics.read(settings, {}, lambda *_: None)
    found = parity.compare(settings, source, None, lambda *_: None, with_late=False)
    outcome.compared, outcome.differences = found.values, found.differences
    outcome.first, outcome.late = found.first[:5], int(source.predictions.late.sum())
