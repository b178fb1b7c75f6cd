"""What a target needs to know of an alert, of either kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from jobs.outlets.target import Message


@dataclass(frozen=True)
class Alert:
    """An alert as it lies in Kafka.

    Attributes:
        message: Its record.
    """

    message: Message

    @cached_property
    def document(self) -> dict[str, Any]:
        """Its JSON; raises ValueError if it is none, or not an alert."""
        document = orjson.loads(self.message.value)
        known = {"alert_id", "prediction", "event_id"}
        if not isinstance(document, dict) or not known & document.keys():
            raise ValueError("no alert: neither alert_id nor prediction nor event_id")
        return document

    @property
    def id(self) -> str:
        """What makes it one of its kind: the same after a failure and a replay."""
        document = self.document
        if "prediction" in document:
            return str(document["prediction"]["prediction_id"])
        return str(document.get("alert_id") or document["event_id"])  # of a roll-up's silence

    @property
    def kind(self) -> str:
        """Scores or silent of an episode; score of a single prediction."""
        return str(self.document.get("kind", "score"))

    @property
    def state(self) -> str:
        """open, closed or withdrawn; a single prediction's alert is open."""
        return str(self.document.get("state", "open"))
