"""What the feedback join reads and writes, as JSON of the topics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

__all__ = ["Impression", "Interaction", "Other", "Record", "Shown", "example", "late", "record_of"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Impression:
    """What was ranked for a request.

    Attributes:
        request_id: Names it.
        user: Who asked.
        time_ms: Event time of the request, epoch.
        items: What was ranked, the first one first.
        body: The record itself, JSON.
    """

    request_id: str
    user: str
    time_ms: int
    items: tuple[str, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Shown:
    """A ranking reached its caller."""

    request_id: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class Interaction:
    """What a user did with an item.

    Attributes:
        request_id: The request whose answer had the item; empty if the user came another way.
        item: The item.
        kind: ``click``, ``like`` or ``purchase``.
        time_ms: Event time, epoch.
    """

    request_id: str
    item: str
    kind: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class Other:
    """A record that is joined to nothing, but says how late it is."""

    time_ms: int


Record: TypeAlias = Impression | Shown | Interaction | Other


def record_of(raw: bytes, kinds: frozenset[str]) -> Record | None:
    """A record of the events or the impressions topic; none if it is malformed.

    Malformed events have become dead letters in the ranking stage, which reads them, too.

    Args:
        raw: JSON.
        kinds: Which interactions are labels.
    """
    try:
        document: Any = orjson.loads(raw)
        kind, time_ms = document["kind"], document["event_time_ms"]
        if type(time_ms) is not int:
            return None
        if kind == "impression":
            items = tuple(one["item"] for one in document["items"])
            return Impression(document["request_id"], document["user"], time_ms, items, raw)
        if kind == "shown":
            return Shown(document["request_id"], time_ms)
        if kind in kinds:
            request_id = document.get("request_id") or ""
            return Interaction(str(request_id), str(document["item"]), kind, time_ms)
    except (ValueError, KeyError, TypeError):
        return None
    return Other(time_ms)


def example(body: bytes, kinds_by_item: dict[str, list[str]], first_ms: dict[str, int]) -> bytes:
    """A request's labelled example: its impression, with what became of each item.

    Args:
        body: The impression.
        kinds_by_item: What was done with an item, in the order of event time.
        first_ms: Event time of the first of it.
    """
    document = orjson.loads(body)
    for one in document["items"]:
        kinds = kinds_by_item.get(one["item"], [])
        one["label"] = int(bool(kinds))
        one["kinds"] = kinds
        one["answered_ms"] = first_ms.get(one["item"])
    document["kind"] = "example"
    document["example_id"] = document["request_id"]
    document["schema_version"] = SCHEMA_VERSION
    return orjson.dumps(document)


def late(user: str, interaction: Interaction) -> bytes:
    """An interaction that came after its request's example was written: a correction of it."""
    return orjson.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "late",
            "request_id": interaction.request_id,
            "user": user,
            "item": interaction.item,
            "interaction": interaction.kind,
            "event_time_ms": interaction.time_ms,
        }
    )
