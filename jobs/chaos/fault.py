"""What a fault is.

``inject`` breaks, ``heal`` puts right what is still broken. ``heal`` may be called at any time,
also when ``inject`` has failed or was never called too.
"""

from __future__ import annotations

from typing import Protocol


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
