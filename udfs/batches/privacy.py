"""Hides sensitive fields in what leaves the job: keyed hashes, or nothing at all.

State keeps the values as they came: keys must be told apart, and duplicates found.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from udfs.definition.event import EventSpec, LabelSpec
from udfs.definition.schema import Schema

How = Literal["hash", "drop"]
_HASH_BYTES = 16


@dataclass(frozen=True)
class Privacy:
    """What outputs show of sensitive fields.

    Attributes:
        key: Secret of the hashes.
        fields: How each is hidden.
        id_hidden: Whether the event's id is one of them.
        key_hidden: Whether the record's key is.
    """

    key: bytes
    fields: Mapping[str, How]
    id_hidden: bool
    key_hidden: bool

    @classmethod
    def of_events(cls, schema: Schema) -> Privacy | None:
        """What a job's settings declare of its events; none if no field is sensitive."""
        return cls._of(schema, schema.event)

    @classmethod
    def of_arriving(cls, schema: Schema) -> Privacy | None:
        """The same of the records that arrive, which with a roll-up are readings."""
        return cls._of(schema, schema.arriving)

    @classmethod
    def _of(cls, schema: Schema, event: EventSpec) -> Privacy | None:
        fields = {f.name: f.sensitive for f in event.fields if f.sensitive is not None}
        if not fields or schema.privacy is None:
            return None
        secret = schema.privacy.key.encode()
        return cls(secret, fields, event.id in fields, schema.key in fields)

    def of_labels(self, labels: LabelSpec, event_id: str) -> Privacy:
        """The same for labels, whose id is the event's under another name."""
        fields = dict(self.fields)
        if event_id in fields:
            fields[labels.id] = "hash"
        return Privacy(self.key, fields, self.id_hidden, self.key_hidden)

    def hashed(self, value: str) -> str:
        """A text's HMAC-SHA256, the first 128 bits in hexadecimal."""
        return hmac.digest(self.key, value.encode(), "sha256")[:_HASH_BYTES].hex()

    def ids(self, ids: list[str]) -> list[str]:
        """Event ids as they are shown."""
        return [self.hashed(i) for i in ids] if self.id_hidden else ids

    def keys(self, keys: list[str]) -> list[str]:
        """Record keys as they are shown."""
        return [self.hashed(k) for k in keys] if self.key_hidden else keys

    def record(self, raw: bytes) -> bytes | None:
        """A record without what is sensitive; none if it is no JSON object, so nobody can tell."""
        try:
            document = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(document, dict):
            return None
        for name, how in self.fields.items():
            if document.get(name) is None:
                continue
            if how == "drop":
                del document[name]
            else:
                document[name] = self.hashed(_text(document[name]))
        return orjson.dumps(document)

    def message(self, text: str) -> str:
        """Why a record was refused, without a sensitive value."""
        for name in self.fields:
            if re.search(rf"\bfield {re.escape(name)}\b", text):
                return f"field {name} is not accepted; it is sensitive, so the value is not told"
        return text


def _text(value: Any) -> str:
    """A value as it is hashed: a text itself, anything else as JSON has it."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
