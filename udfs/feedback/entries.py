"""What is kept of one request while its answers are waited for."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import orjson

from udfs.feedback.records import Interaction

__all__ = ["Entry", "FeedbackStateError"]

_VERSION = 2
_PLAIN_VERSION = 1  # had the impression as it came
_LEVEL = 1  # a third of the size for some 70 us; the best level takes ten times as long for little


class FeedbackStateError(ValueError):
    """Stored state of another layout."""


@dataclass(slots=True)
class Entry:
    """One request.

    Attributes:
        time_ms: Event time of the impression; before it has come, of the oldest record.
        body: The impression's JSON, compressed; empty before it has come, and once closed.
        items: Its items.
        user: Who asked; empty before the impression.
        shown: Whether the caller got it.
        closed: Whether its example was written, or is none.
        interactions: What has come so far.
    """

    time_ms: int
    body: bytes = b""
    items: tuple[str, ...] = ()
    user: str = ""
    shown: bool = False
    closed: bool = False
    interactions: list[Interaction] = field(default_factory=list)

    @property
    def impression(self) -> bytes:
        """The impression's JSON, which must have come."""
        return zlib.decompress(self.body)

    def keep(self, impression: bytes) -> None:
        """Take the impression's JSON: thousands of them wait for their windows to end."""
        self.body = zlib.compress(impression, _LEVEL)

    def packed(self) -> bytes:
        """As it lies in the state: a version, a line of JSON, the impression."""
        came = [(one.item, one.kind, one.time_ms) for one in self.interactions]
        head = [self.time_ms, self.shown, self.closed, self.user, self.items, came]
        return bytes([_VERSION]) + orjson.dumps(head) + b"\n" + self.body

    @classmethod
    def unpacked(cls, request_id: str, data: bytes) -> Entry:
        """What ``packed`` gave.

        Raises:
            FeedbackStateError: it is of another layout.
        """
        if not data or data[0] not in (_VERSION, _PLAIN_VERSION):
            raise FeedbackStateError(
                "the stored feedback has another layout: start the job without its state"
            )
        head, _, body = data[1:].partition(b"\n")
        time_ms, shown, closed, user, items, came = orjson.loads(head)
        interactions = [Interaction(request_id, *one) for one in came]
        entry = cls(time_ms, body, tuple(items), user, shown, closed, interactions)
        if body and data[0] == _PLAIN_VERSION:
            entry.keep(body)
        return entry
