"""The kinds of faults: each breaks one thing and puts it right again.

``inject`` breaks, ``heal`` puts right what is still broken. ``heal`` may be called at any time,
also when ``inject`` has failed or was never called too.
"""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

from jobs.chaos.plan import Range
from jobs.chaos.proxy import Link
from jobs.chaos.stack import Component, Stack, signal_process
from jobs.chaos.writer import Writer
from jobs.environment import NotReadyError
from jobs.kafka_topics import create_topics, probe

_SLOW_MS: Range = (20.0, 400.0)
_POISON: tuple[int, int] = (50, 500)
_FILE_BYTES = 2_048
_ANSWER_S = 30.0


class Fault(Protocol):
    """Breaks one thing."""

    def inject(self, strength: float) -> str:
        """Break it; returns what exactly was done.

        Args:
            strength: 0 to 1, of kinds that can be weaker or stronger.

        Raises:
            NotReadyError: what it would break does not run.
        """

    def heal(self) -> None:
        """Put it right; does nothing if it is."""


@dataclass
class Kill(Fault):
    """SIGKILL, then a start as a supervisor would do it."""

    part: Component

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        pid = self.part.pid()
        signal_process(pid, signal.SIGKILL)
        return f"kill -9 {pid}"

    def heal(self) -> None:
        """See ``Fault``."""
        self.part.revive()


@dataclass
class Hang(Fault):
    """SIGSTOP: its ports stay open and nobody answers."""

    part: Component
    _pid: int | None = None

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        self._pid = self.part.pid()
        signal_process(self._pid, signal.SIGSTOP)
        return f"kill -STOP {self._pid}"

    def heal(self) -> None:
        """See ``Fault``."""
        pid, self._pid = self._pid, None
        if pid is not None:
            signal_process(pid, signal.SIGCONT)
        self.part.revive()


@dataclass
class Injured(Fault):
    """A link that is cut, silent or slow."""

    link: Link
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
class MorePartitions(Fault):
    """One more partition of the events topic, used at once; it stays."""

    bootstrap: str
    topic: str
    writer: Writer

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        count = self.writer.partitions + 1
        client = probe(self.bootstrap)
        changed = client.create_partitions([NewPartitions(self.topic, count)])
        changed[self.topic].result(_ANSWER_S)
        while self.writer.sees_partitions() < count:
            continue  # each look waits for the broker's answer
        self.writer.partitions = count
        return f"{count} partitions"

    def heal(self) -> None:
        """See ``Fault``."""


@dataclass
class LostTopic(Fault):
    """An output topic is deleted, and made again: of alerts, which nobody counts."""

    bootstrap: str
    topic: str
    partitions: int

    def inject(self, strength: float) -> str:
        """See ``Fault``."""
        deleted = probe(self.bootstrap).delete_topics([self.topic], request_timeout=_ANSWER_S)
        deleted[self.topic].result(_ANSWER_S)
        return f"{self.topic} deleted"

    def heal(self) -> None:
        """See ``Fault``."""
        create_topics(self.bootstrap, {self.topic: self.partitions})


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
    "kill-broker": Kind("SIGKILL the broker", _SHORT, _kill("broker")),
    "hang-broker": Kind("SIGSTOP the broker", _SHORT, _hang("broker")),
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
