"""What is wrong in a ranking job's settings, said before it starts."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.environment import ROOT
from jobs.settings import load, masked
from jobs.settings_file import MASK, SettingsError

CONFIG = ROOT / "conf" / "feed.yaml"


def test_the_file_is_right() -> None:
    settings = load(CONFIG)
    assert settings.ranking is not None and settings.gateway.deadline > settings.model.deadline


def test_the_gateways_token_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="refused"):
        load(CONFIG, {"gateway.token": "s3cret"})
    monkeypatch.setenv("FEED_TOKEN", "s3cret")
    settings = load(CONFIG, {"gateway.token": "${FEED_TOKEN}"})
    assert settings.gateway.token == "s3cret"
    assert masked(settings)["gateway"]["token"] == MASK
    assert masked(load(CONFIG))["gateway"]["token"] == ""


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("topics.examples", None, "name the topic"),
        ("topics.popularity", None, "name the topic"),
        ("topics.examples", "feed-events", "would feed itself"),
        ("ranking.candidates", 10, "more than the 10 candidates"),
        ("ranking.weights", {"purchase": 0.0}, "a weight above 0"),
        ("batch.max_rows", 100, "the candidates of a request"),
        ("event.fields.2.sensitive", "hash", "it hides none"),
    ],
)
def test_what_cannot_work_is_refused(name: str, value: Any, message: str) -> None:
    if name.startswith("event.fields"):
        fields = load(CONFIG).model_dump(mode="json")["event"]["fields"]
        fields[2]["sensitive"] = value
        name, value = "event.fields", fields
    with pytest.raises(SettingsError, match=message):
        load(CONFIG, {name: value})
