"""What a user declares about fields that outputs must not show as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import Field

from udfs.definition.event import EventSpec
from udfs.definition.expression import ExpressionFeature
from udfs.definition.types import Mistake, Strict

_READABLE = ("category", "one_hot")


class PrivacySpec(Strict):
    """How sensitive fields are hidden."""

    key: str = Field(
        min_length=16,
        description="secret of the hashes (HMAC-SHA256), 16 characters at least, as `${PII_KEY}`",
    )


def privacy_mistakes(
    event: EventSpec,
    privacy: PrivacySpec | None,
    named: Collection[str],
    expressions: tuple[ExpressionFeature, ...],
    read: Collection[str],
) -> Iterator[Mistake]:
    """What is wrong with the fields marked as sensitive.

    Args:
        event: The event.
        privacy: How they are hidden, or none.
        named: Fields that name a record in outputs: its id and its key.
        expressions: Features of one event.
        read: Fields whose values features are computed from.
    """
    shown = {f: e.name for e in expressions if e.type in _READABLE for f in e.fields}
    for n, field in enumerate(event.fields):
        if field.sensitive is None:
            continue
        at = ("event", "fields", n, "sensitive")
        if privacy is None:
            yield Mistake(at, "needs a secret: set privacy.key to ${PII_KEY}")
        if field.name == event.time.field:
            yield Mistake(at, "the event time cannot be hidden")
        elif field.name in named and field.sensitive == "drop":
            yield Mistake(at, f"{field.name!r} names records: it can be hashed, not dropped")
        elif field.name in shown:
            message = f"predictions would show it as feature {shown[field.name]!r}"
            yield Mistake(at, f"{message}: leave that out, or the mark")
        elif field.is_numeric and field.name in read:
            yield Mistake(at, "features are computed from it and shown: drop them, or the mark")
