"""From which state and which positions a job starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Position:
    """Where the reading of a topic begins; one of the two.

    Attributes:
        offsets: By partition; one that is absent is read from its beginning.
        time_ms: At the first record of this Kafka time or later, epoch ms.
    """

    offsets: dict[int, int] | None = None
    time_ms: int | None = None

    @property
    def options(self) -> dict[str, str]:
        """Of the Kafka connector."""
        if self.offsets is None:
            return {
                "scan.startup.mode": "timestamp",
                "scan.startup.timestamp-millis": str(self.time_ms),
            }
        places = (f"partition:{n},offset:{offset}" for n, offset in sorted(self.offsets.items()))
        return {
            "scan.startup.mode": "specific-offsets",
            "scan.startup.specific-offsets": ";".join(places),
        }


@dataclass(frozen=True, slots=True)
class Start:
    """How a job starts.

    Attributes:
        savepoint: Folder or URL of a savepoint or a retained checkpoint; none begins empty.
        drops: Whether state that the job has no use for is left out; otherwise Flink refuses it.
        positions: By topic; the others begin as ``kafka.start`` says, or where the savepoint is.
        since_ms: Of a job that begins empty: what lies before this time is not read, epoch ms;
            none: nothing does.
    """

    savepoint: str | None = None
    drops: bool = False
    positions: Mapping[str, Position] = field(default_factory=dict)
    since_ms: int | None = None

    @property
    def options(self) -> dict[str, str]:
        """Of Flink."""
        if self.savepoint is None:
            return {}
        return {
            "execution.state-recovery.path": self.savepoint,
            "execution.state-recovery.ignore-unclaimed-state": str(self.drops).lower(),
        }


EMPTY = Start()
"""Without state, where ``kafka.start`` says."""
