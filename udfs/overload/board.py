"""What the end of a job tells its beginning: between them events wait where no clock is read.

In thread mode all operators of a TaskManager run in one interpreter, and with Flink's slot sharing
each TaskManager has a part of every operator. So a dictionary is enough, and nothing of it is
state: after a second it is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_FRESH_MS = 1_000


@dataclass(slots=True)
class Board:
    """What the last operators of one job have told, by teller."""

    _told: dict[int, tuple[int, int, float]] = field(default_factory=dict)

    def tell(self, teller: int, now_ms: int, lag_ms: int, queue: float) -> None:
        """Note how long a batch had waited when it came to be scored, and how full the calls are.

        Args:
            teller: Stands for one subtask.
            now_ms: A clock that never goes back.
            lag_ms: How long.
            queue: How full, 0 to 1.
        """
        self._told[teller] = now_ms, lag_ms, queue

    def worst(self, now_ms: int) -> tuple[int, float]:
        """The largest lag in ms and queue of the last second."""
        fresh = [told for told in [*self._told.values()] if now_ms - told[0] <= _FRESH_MS]
        return max((t[1] for t in fresh), default=0), max((t[2] for t in fresh), default=0.0)


_boards: dict[str, Board] = {}


def board_of(job: str) -> Board:
    """The board of the job of that name."""
    return _boards.setdefault(job, Board())
