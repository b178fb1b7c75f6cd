"""The kinds of faults: each breaks one thing and puts it right again."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from jobs.chaos.clock import Clock
from jobs.chaos.components import Component, Way, signal_processes
from jobs.chaos.fault import Fault
from jobs.chaos.kafka_faults import LostTopic, MorePartitions, MovedLeader
from jobs.chaos.plan import Range
from jobs.chaos.stack import Stack
from jobs.chaos.writer import Writer
from jobs.environment import NotReadyError

_SLOW_MS: Range = (20.0, 400.0)
_POISON: tuple[int, int] = (50, 500)
_FILE_BYTES = 2_048
_JUMP_S = 30.0


@dataclass
class Kill(Fault):
    """SIGKILL, then a start as a supervisor would do it."""

    part: Component

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        pid = self.part.pid()
        signal_processes([pid], signal.SIGKILL)
        return f"kill -9 {pid}"

    def heal(self) -> None:
        """See ``Fault``."""
        self.part.revive()


@dataclass
class Hang(Fault):
    """SIGSTOP: its ports stay open and nobody answers."""

    part: Component
    _pids: list[int] = field(default_factory=list)

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        pid = self.part.pid()
        self._pids = signal_processes([pid], signal.SIGSTOP)
        return f"kill -STOP {pid}"

    def heal(self) -> None:
        """See ``Fault``."""
        pids, self._pids = self._pids, []
        signal_processes(pids, signal.SIGCONT)
        self.part.revive()


@dataclass
class Injured(Fault):
    """A link that is cut, silent or slow."""

    link: Way
    how: str

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        low, high = _SLOW_MS
        line = f"slow {low + strength * (high - low):.0f}" if self.how == "slow" else self.how
        self.link.be(line)
        return f"{line} ms each way" if self.how == "slow" else line

    def heal(self) -> None:
        """See ``Fault``."""
        self.link.be("pass")


@dataclass
class Poisoned(Fault):
    """Records that must be refused, among the others."""

    writer: Writer

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        low, high = _POISON
        count = low + round(strength * (high - low))
        self.writer.poison(count)
        return f"{count} records"

    def heal(self) -> None:
        """See ``Fault``."""


@dataclass
class NoCheckpoints(Fault):
    """A file stands where the checkpoints' folder was: none can be written or read."""

    folder: Path

    @property
    def _away(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.away")

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        self.folder.rename(self._away)
        self.folder.touch(exist_ok=False)
        return f"{self.folder.name} is a file"

    def heal(self) -> None:
        """See ``Fault``."""
        if not self._away.is_dir():
            return
        if self.folder.is_dir():  # made between the two steps of ``inject``
            shutil.copytree(self.folder, self._away, dirs_exist_ok=True)
            shutil.rmtree(self.folder)
        self.folder.unlink(missing_ok=True)
        self._away.rename(self.folder)


@dataclass
class DiskFull(Fault):
    """No file of Flink's processes can grow: what a full disk does to checkpoints."""

    pids: Callable[[], list[int]]
    _before: dict[int, tuple[int, int]] = field(default_factory=dict)

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        for pid in self.pids():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                self._before[pid] = process.rlimit(resource.RLIMIT_FSIZE)
                hard = self._before[pid][1]
                process.rlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, hard))
        if not self._before:
            raise NotReadyError("Flink does not run", "see its logs")
        return f"RLIMIT_FSIZE {_FILE_BYTES} of {len(self._before)} processes"

    def heal(self) -> None:
        """See ``Fault``."""
        while self._before:
            pid, limits = self._before.popitem()
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, limits)


@dataclass
class ClockJump(Fault):
    """The TaskManagers' clock goes up to 30 s ahead or back, and is set right again."""

    clock: Clock

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        offset_s = round((2 * strength - 1) * _JUMP_S)
        self.clock.set(offset_s)
        return f"{offset_s:+d} s"

    def heal(self) -> None:
        """See ``Fault``."""
        self.clock.set(0)


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        about: What it does, one line.
        holds_s: How long it lasts, in seconds.
        make: Makes one for a stack and its writer; None where the stack has no such thing.
    """

    about: str
    holds_s: Range
    make: Callable[[Stack, Writer], Fault | None]


def _kill(name: str) -> Callable[[Stack, Writer], Fault | None]:
    return lambda stack, _: Kill(c) if (c := stack.components.get(name)) else None


def _hang(name: str) -> Callable[[Stack, Writer], Fault | None]:
    return lambda stack, _: Hang(c) if (c := stack.components.get(name)) else None


def _injured(name: str, how: str) -> Callable[[Stack, Writer], Fault | None]:
    return lambda stack, _: Injured(link, how) if (link := stack.links.get(name)) else None


def _clock_jump(stack: Stack, _: Writer) -> Fault | None:
    return None if stack.clock is None else ClockJump(stack.clock)


def _move_leader(stack: Stack, _: Writer) -> Fault | None:
    several = len(stack.brokers.all) > 1
    return MovedLeader(stack.brokers, stack.settings.topics.events) if several else None


def _more_partitions(stack: Stack, writer: Writer) -> Fault:
    settings = stack.settings
    return MorePartitions(settings.kafka.bootstrap_servers, settings.topics.events, writer)


def _lost_topic(stack: Stack, _: Writer) -> Fault | None:
    kafka, topics = stack.settings.kafka, stack.settings.topics
    if not topics.alerts:
        return None
    return LostTopic(kafka.bootstrap_servers, topics.alerts, topics.partitions)


_AT_ONCE: Range = (0.0, 0.0)
_SHORT: Range = (0.5, 3.0)
_LONG: Range = (2.0, 12.0)

KINDS: Mapping[str, Kind] = {
    "kill-taskmanager": Kind("SIGKILL one that runs the job", _AT_ONCE, _kill("taskmanager")),
    "hang-taskmanager": Kind("SIGSTOP one that runs the job", _LONG, _hang("taskmanager")),
    "kill-jobmanager": Kind("SIGKILL it; ZooKeeper knows the job", _AT_ONCE, _kill("jobmanager")),
    "hang-jobmanager": Kind("SIGSTOP it", _LONG, _hang("jobmanager")),
    "kill-server": Kind("SIGKILL the model server", _SHORT, _kill("server")),
    "hang-server": Kind("SIGSTOP the model server", _SHORT, _hang("server")),
    "kill-worker": Kind("SIGKILL one of the server's workers", _AT_ONCE, _kill("worker")),
    "kill-broker": Kind("SIGKILL it, of several the leader", _SHORT, _kill("broker")),
    "hang-broker": Kind("SIGSTOP it, of several the leader", _SHORT, _hang("broker")),
    "cut-server": Kind("the job's connections to it are reset", _SHORT, _injured("server", "cut")),
    "silent-server": Kind("they stand, no byte passes", _SHORT, _injured("server", "silent")),
    "slow-server": Kind("each 64 KiB takes 20 to 400 ms", _SHORT, _injured("server", "slow")),
    "cut-broker": Kind("the job's connections to it are reset", _SHORT, _injured("broker", "cut")),
    "silent-broker": Kind("they stand, no byte passes", _LONG, _injured("broker", "silent")),
    "slow-broker": Kind("each 64 KiB takes 20 to 400 ms", _SHORT, _injured("broker", "slow")),
    "poison": Kind("50 to 500 records that must be refused", _AT_ONCE, lambda _, w: Poisoned(w)),
    "no-checkpoints": Kind(
        "a file is where the folder was", _LONG, lambda stack, _: NoCheckpoints(stack.checkpoints)
    ),
    "disk-full": Kind(
        "no file of Flink's can grow", _LONG, lambda stack, _: DiskFull(stack.flink_pids)
    ),
    "more-partitions": Kind("one more of the events topic", _AT_ONCE, _more_partitions),
    "lost-topic": Kind("the alerts topic is deleted for a while", _SHORT, _lost_topic),
    "move-leader": Kind("the leader of several brokers stops in order", _SHORT, _move_leader),
    "clock-jump": Kind("the TaskManagers' clock is up to 30 s off", _LONG, _clock_jump),
}


def chosen(text: str) -> list[str]:
    """The kinds named in a text with commas; ``all`` are all.

    Raises:
        ValueError: one is not known; the text says which are.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(KINDS)
    if unknown := [name for name in names if name not in KINDS]:
        raise ValueError(f"no fault {unknown[0]!r}; known are: all, {', '.join(KINDS)}")
    if not names:
        raise ValueError(f"no fault is named; known are: all, {', '.join(KINDS)}")
    return list(dict.fromkeys(names))
