"""A Flink function under the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.flink import Stored, Subtask
from tests.support.outputs import plain


@dataclass
class Case:
    """A function under the contract: how to make one, and a stream for it by seed.

    What a model server has answered comes in no certain order, and in no certain batches.
    """

    make: Callable[..., Any]
    stream: Callable[[int], list[Any]]
    in_order: bool = True
    opened: list[Subtask] = field(default_factory=list)

    def open(self, stored: Stored | None = None, function: Any = None) -> Subtask:
        subtask = Subtask(self.make() if function is None else function, stored)
        self.opened.append(subtask)
        return subtask

    def plain(self, outputs: list[Any]) -> list[Any]:
        found: list[Any] = plain(outputs)
        if self.in_order:
            return found
        return [sorted((r for row in found for r in row[sink]), key=repr) for sink in range(4)]

    def run_whole(self, subtask: Subtask, seed: int = 1) -> list[Any]:
        return self.plain(subtask.run_all(self.stream(seed)) + subtask.end())

    def expected(self, seed: int = 1) -> list[Any]:
        """What an uninterrupted run gives."""
        return self.run_whole(self.open(), seed)
