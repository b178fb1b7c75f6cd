"""What look-ups ask of a store, whichever it is."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Answer: TypeAlias = Mapping[str, Any] | Exception | None
"""A key's values by name; None if the store has none; why they cannot be read."""


class MissingClient(RuntimeError):
    """The package that speaks to the store is not installed.

    Attributes:
        problem: What is missing.
        fix: How to get it.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}: {fix}")
        self.problem = problem
        self.fix = fix


class Store(Protocol):
    """Asked for many keys at once; several times at once."""

    async def fetch(self, keys: Sequence[str]) -> Sequence[Answer]:
        """The values of each key, in the keys' order. Raises whatever its client does."""

    async def connect(self) -> None:
        """Open a connection and see that it works. Raises whatever its client does."""

    async def close(self) -> None:
        """Close the connections."""


_INT64 = range(-(2**63), 2**63)


def canonical(key: str, kind: str) -> str | None:
    """A key as a store of such keys writes it; None if the type has no such value."""
    try:
        match kind:
            case "int":
                return str(int(key)) if int(key) in _INT64 else None
            case "uuid":
                return str(uuid.UUID(key))
    except ValueError:
        return None
    return None if "\0" in key else key
