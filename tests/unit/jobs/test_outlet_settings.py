"""Episodes, delivery and store in a settings file: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import settings
from jobs.environment import ROOT
from jobs.outlets import delivery, storing
from jobs.settings_file import SettingsError

FRAUD = ROOT / "conf" / "fraud.yaml"
WEBHOOK = {"url": "https://example.org/in/secret-path"}
ARN = "arn:aws:sns:eu-west-1:123456789012:alerts"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("alerts.episodes", {"entity": "shop"}, "alerts.episodes.entity: no field 'shop'"),
        ("alerts.episodes", {"entity": "amount"}, "must be a required string"),
        ("alerts.episodes", {"entity": "card_id", "open_at": 6}, "6 of 5 scores can never be"),
        (
            "alerts.episodes",
            {"entity": "card_id", "open_at": 2, "close_below": 3},
            "must be at most open_at, 2",
        ),
        ("alerts.episodes", {"entity": "card_id", "features": ["z"]}, "no feature 'z'"),
        (
            "alerts.episodes",
            {"entity": "card_id", "thresholds": {"field": "type", "values": {"CP": 2}}},
            "2.0 is not between 0 and 1",
        ),
        ("delivery", {"batch": 3}, "names no target: sns, webhook or both"),
        ("delivery", {"webhook": {"url": "example.org"}}, "is no http:// or https:// URL"),
        ("delivery", {"sns": {"topic_arn": "alerts"}}, "is no topic's ARN"),
        ("store", {}, "names no store: postgres, parquet or both"),
        ("store", {"postgres": {"dsn": "x", "table": "a b"}}, "is no table or schema.table"),
        ("store", {"postgres": {"dsn": "password=x"}}, "holds a password"),
    ],
)
def test_a_mistake_is_named(name: str, value: Any, words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings.load(FRAUD, {name: value})
    assert words in str(refused.value)


def test_a_token_in_the_file_is_refused(tmp_path: Path) -> None:
    text = FRAUD.read_text(encoding="utf-8")
    conf = tmp_path / "conf.yaml"
    conf.write_text(text + "\ndelivery: {webhook: {url: 'http://x', token: abc}}\n")
    with pytest.raises(SettingsError, match="a secret in the file"):
        settings.load(conf)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    token = {"token": "${SECRET}"}
    chosen = settings.load(
        FRAUD,
        {
            "delivery": {"webhook": WEBHOOK | token},
            "store": {"postgres": {"dsn": "host=h", "password": "${SECRET}"}},
        },
    )
    shown = settings.as_yaml(chosen)
    assert "hush" not in shown
    assert "secret-path" not in shown
    assert "dsn: host=h" in shown


def test_a_feature_named_as_a_column_has_no_place_in_a_store() -> None:
    expression = {"name": "score", "type": "value", "fields": ["amount"]}
    changes: dict[str, Any] = {
        "features": {"expressions": [expression]},
        "store": {"postgres": {"dsn": "host=h"}},
    }
    with pytest.raises(SettingsError, match=r"features named as columns .*: score; rename them"):
        settings.load(FRAUD, changes)
    settings.load(FRAUD, {"features": changes["features"]})


def test_each_target_has_a_group_of_its_own() -> None:
    chosen = settings.load(
        FRAUD,
        {
            "kafka.group_id": "g",
            "delivery": {"webhook": WEBHOOK, "sns": {"topic_arn": ARN}, "give_up_after": "2m"},
            "store": {"group_id": "s", "parquet": {"folder": "x"}, "postgres": {"dsn": "host=h"}},
        },
    )
    delivered, stored = delivery.outlets(chosen), storing.outlets(chosen)
    assert [o.options.group for o in delivered] == ["g-deliver-sns", "g-deliver-webhook"]
    assert [o.options.group for o in stored] == ["s-postgres", "s-parquet"]
    assert {o.options.topic for o in delivered} == {chosen.topics.alerts}
    assert {o.options.topic for o in stored} == {chosen.topics.predictions}
    assert {o.options.give_up_ms for o in delivered} == {120_000}
    assert {o.options.give_up_ms for o in stored} == {None}, "a prediction is never given up"


def test_episodes_inherit_the_events_lateness() -> None:
    chosen = settings.load(FRAUD, {"alerts.episodes": {"entity": "card_id"}})
    episodes = chosen.alerts.episodes
    assert episodes is not None
    assert episodes.with_lateness(chosen.event).lateness == chosen.event.time.allowed_lateness


@pytest.mark.parametrize("outlets", [delivery.outlets, storing.outlets, storing.postgres_of])
def test_a_command_without_its_section_says_so(outlets: Any) -> None:
    with pytest.raises(SettingsError, match="there is no section"):
        outlets(settings.load(FRAUD))
