"""Sensitive fields: hashed with a key, or left out; what cannot be read is not shown."""

from __future__ import annotations

import copy
import hmac
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from udfs.batches.privacy import Privacy
from udfs.definition.schema import Schema

KEY = "0123456789abcdef"
DOCUMENT: dict[str, Any] = {
    "key": "card",
    "event": {
        "id": "id",
        "time": {"field": "t"},
        "fields": [
            {"name": "id", "type": "string", "sensitive": "hash"},
            {"name": "t", "type": "int"},
            {"name": "card", "type": "string", "sensitive": "hash"},
            {"name": "mail", "type": "string", "required": False, "sensitive": "drop"},
            {"name": "pin", "type": "int", "required": False, "sensitive": "hash"},
            {"name": "kind", "type": "string", "required": False},
            {"name": "amount", "type": "float"},
        ],
    },
    "features": {"expressions": [{"name": "amount", "type": "value", "fields": ["amount"]}]},
    "privacy": {"key": KEY},
}


def schema(**changes: Any) -> Schema:
    return Schema.model_validate(copy.deepcopy(DOCUMENT) | changes)


def privacy() -> Privacy:
    found = Privacy.of_events(schema())
    assert found is not None
    return found


def hashed(text: str) -> str:
    return hmac.new(KEY.encode(), text.encode(), "sha256").hexdigest()[:32]


def test_without_sensitive_fields_there_is_none() -> None:
    document = copy.deepcopy(DOCUMENT)
    for field in document["event"]["fields"]:
        field.pop("sensitive", None)
    assert Privacy.of_events(Schema.model_validate(document)) is None


def test_ids_and_keys_are_hashes() -> None:
    assert privacy().ids(["a", ""]) == [hashed("a"), hashed("")]
    assert privacy().keys(["ü"]) == [hashed("ü")]


def test_a_record_keeps_what_is_not_sensitive() -> None:
    event = {"id": "e", "card": "c", "mail": "m@x", "pin": 17, "extra": [1], "amount": 2.5}
    shown = privacy().record(orjson.dumps(event))
    assert shown is not None
    assert orjson.loads(shown) == {
        "id": hashed("e"),
        "card": hashed("c"),
        "pin": hashed("17"),
        "extra": [1],
        "amount": 2.5,
    }


@pytest.mark.parametrize("raw", [b"", b"{", b'["c"]', b'"c"', b"\xff", b"[" * 2_000])
def test_what_is_no_record_is_not_shown(raw: bytes) -> None:
    assert privacy().record(raw) is None


def test_absent_and_null_stay_so() -> None:
    assert privacy().record(b'{"mail":null,"card":null}') == b'{"mail":null,"card":null}'


def test_a_message_does_not_tell_the_value() -> None:
    told = privacy().message("field pin is 17, at most 9")
    assert "17" not in told and "field pin" in told
    assert privacy().message("field amount is 17, at most 9") == "field amount is 17, at most 9"


def mark(name: str, how: str) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    next(f for f in document["event"]["fields"] if f["name"] == name)["sensitive"] = how
    return document


@pytest.mark.parametrize(
    ("name", "how", "words"),
    [
        ("card", "drop", "names records: it can be hashed"),
        ("id", "drop", "names records: it can be hashed"),
        ("t", "hash", "the event time cannot be hidden"),
        ("amount", "hash", "features are computed from it"),
    ],
)
def test_what_cannot_be_hidden(name: str, how: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Schema.model_validate(mark(name, how))


@pytest.mark.parametrize(
    "expression",
    [
        {"name": "k", "type": "category", "fields": ["kind"], "encoding": "one_hot"},
        {"name": "k", "type": "one_hot", "fields": ["kind"], "categories": ["a"]},
    ],
)
def test_a_category_would_be_shown(expression: dict[str, Any]) -> None:
    document = mark("kind", "hash")
    document["features"] = {"expressions": [expression]}
    with pytest.raises(ValidationError, match="predictions would show it as feature 'k'"):
        Schema.model_validate(document)


def test_a_hash_needs_a_secret() -> None:
    with pytest.raises(ValidationError, match=r"set privacy.key to \$\{PII_KEY\}"):
        schema(privacy=None)
    with pytest.raises(ValidationError, match="at least 16 characters"):
        schema(privacy={"key": "short"})
