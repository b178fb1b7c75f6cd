"""What callers send, checked: a request for a ranking, or interactions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_server.errors import InvalidRequest

__all__ = ["INTERACTIONS", "Event", "parse_events", "parse_rank"]

INTERACTIONS = ("view", "click", "like", "purchase")

_TEXT = {"min_length": 1, "max_length": 256, "pattern": r"^[^\x00-\x1f\x7f]+$"}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class RankBody(_Body):
    """Who asks, and for how many items."""

    user: str = Field(**_TEXT)  # type: ignore[call-overload]
    items: int = Field(20, ge=1, le=200)
    event_time_ms: int | None = Field(None, ge=0)


class EventBody(_Body):
    """What a user did with an item."""

    kind: str
    user: str = Field(**_TEXT)  # type: ignore[call-overload]
    item: str = Field(**_TEXT)  # type: ignore[call-overload]
    request_id: str | None = Field(None, max_length=256)
    event_id: str | None = Field(None, min_length=1, max_length=256)
    position: int | None = Field(None, ge=0)
    price: float | None = Field(None, ge=0, allow_inf_nan=False)
    event_time_ms: int | None = Field(None, ge=0)


@dataclass(frozen=True, slots=True)
class Event:
    """A record of the events topic.

    Attributes:
        user: Its key.
        document: Its value; ``event_id`` names it.
    """

    user: str
    document: dict[str, Any]


def parse_rank(document: Any, gateway: str, deadline_ms: int) -> tuple[Event, int]:
    """A request for a ranking as an event, and how many items are wanted.

    Args:
        document: The body.
        gateway: Who gets the reply.
        deadline_ms: How long it is waited for; after that the job leaves the request alone.

    Raises:
        InvalidRequest: it is not as it must be.
    """
    body = _checked(RankBody, document)
    now_ms = _now_ms()
    event = {
        "event_id": uuid.uuid4().hex,
        "event_time_ms": now_ms if body.event_time_ms is None else body.event_time_ms,
        "kind": "request",
        "user": body.user,
        "items": body.items,
        "gateway": gateway,
        "deadline_ms": now_ms + deadline_ms,
    }
    return Event(body.user, event), body.items


def parse_events(document: Any, most: int) -> list[Event]:
    """Interactions as events: one, or a list of at most ``most``.

    Raises:
        InvalidRequest: one of them is not as it must be; then none is taken.
    """
    given = document if isinstance(document, list) else [document]
    if not given or len(given) > most:
        raise InvalidRequest(f"send 1 to {most} events, not {len(given)}")
    return list(_events(given))


def _events(given: list[Any]) -> Iterator[Event]:
    for one in given:
        body = _checked(EventBody, one)
        if body.kind not in INTERACTIONS:
            raise InvalidRequest(f"kind {body.kind!r} is none of {', '.join(INTERACTIONS)}")
        document = body.model_dump(exclude_none=True)
        document.setdefault("event_id", uuid.uuid4().hex)
        document.setdefault("event_time_ms", _now_ms())
        yield Event(body.user, document)


def shown(request: Event) -> Event:
    """What tells the feedback join that a ranking reached its caller."""
    request_id = request.document["event_id"]
    document = {
        "event_id": f"{request_id}-shown",
        "event_time_ms": request.document["event_time_ms"],
        "kind": "shown",
        "user": request.user,
        "request_id": request_id,
    }
    return Event(request.user, document)


def _checked(model: type[Any], document: Any) -> Any:
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidRequest(f"{where}: {first['msg']}") from exc


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
