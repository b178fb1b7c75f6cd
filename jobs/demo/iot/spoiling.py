"""Records that are no readings, made of readings."""

from __future__ import annotations

from typing import Any

import orjson


def _without(name: str, value: bytes) -> bytes:
    return orjson.dumps({k: v for k, v in orjson.loads(value).items() if k != name})


def _with_nan(value: bytes) -> bytes:
    head, _, tail = value.partition(b'"Temperature":')
    return head + b'"Temperature":NaN' + tail[min(tail.find(b","), tail.find(b"}")) :]


SPOIL: dict[str, Any] = {
    "NaN": _with_nan,
    "not JSON": lambda _: b"ping",
    "cut off": lambda value: value[: len(value) // 2],
    "no time": lambda value: _without("at_ms", value),
    "a text for a number": lambda value: orjson.dumps(orjson.loads(value) | {"Current": "high"}),
}


def spoilt(value: bytes, kind: int) -> bytes:
    """A reading as one of the kinds of ``SPOIL``, by its number."""
    spoilt: bytes = list(SPOIL.values())[kind](value)
    return spoilt
