"""Where secrets can be in a job's settings, and how they are hidden."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jobs.settings_file import MASK, SECRET

WITH_SECRETS = (
    "kafka",
    "kinesis",
    "flink",
    "model",
    "lookups",
    "privacy",
    "delivery",
    "store",
    "gateway",
)
"""Sections in which secrets can be, among free properties or as a token."""


def mask(document: dict[str, Any]) -> None:
    """Hide the secrets' values in settings as plain types."""
    kafka = document["kafka"]
    kinesis, delivery, store = (document[name] or {} for name in ("kinesis", "delivery", "store"))
    free = [kafka["properties"], kafka["client_properties"], document["flink"]["options"]]
    for properties in (*free, kinesis.get("options")):
        _mask(properties, [name for name in properties or () if SECRET.search(name)])
    _mask(kafka["sasl"], ("password", "client_secret"))
    _mask(document["privacy"], ("key",))
    _mask(document["model"], ("token",))
    _mask(document["gateway"], ("token",))
    _mask(delivery.get("webhook"), ("url", "token"))  # its URL is often its only secret
    _mask(store.get("postgres"), ("password",))
    for lookup in document["lookups"]:
        _mask(lookup["redis"] or lookup["postgres"], ("password",))


def _mask(section: dict[str, Any] | None, names: Iterable[str]) -> None:
    for name in names:
        if section and section[name]:
            section[name] = MASK
