"""Tables and look-ups in a settings file: what is refused, masked and part of the hash."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from jobs import preflight, settings
from jobs.enrichment import tables_of
from jobs.environment import NotReadyError
from jobs.settings_file import SettingsError
from tests.unit.jobs.test_preflight import chosen

FRAUD = Path(settings.__file__).parents[1] / "conf" / "fraud.yaml"
DOCUMENT: dict[str, Any] = {
    "tables": [
        {
            "name": "terminal",
            "key": "terminal_id",
            "topic": "terminals",
            "fields": [
                {"name": "risk", "type": "float"},
                {"name": "size", "type": "int", "default": 1},
                {"name": "owner", "type": "string"},
            ],
        }
    ],
    "lookups": [
        {
            "name": "profile",
            "key": "terminal_owner",
            "redis": {"url": "redis://host:6379/0", "key": "profile:{}"},
            "fields": [{"name": "age", "type": "int"}],
        }
    ],
}
POSTGRES = {"dsn": "host=h dbname=d", "table": "t", "key_column": "k"}


def overrides(path: str = "", value: Any = None) -> dict[str, Any]:
    """DOCUMENT with one value changed."""
    document: Any = copy.deepcopy(DOCUMENT)
    node = document
    *parents, last = path.split(".") if path else [""]
    for part in parents:
        node = node[int(part)] if part.isdecimal() else node[part]
    if path:
        node[last] = value
    return document  # type: ignore[no-any-return]


EXPRESSIONS = [
    {"name": "risk", "type": "value", "fields": ["terminal_risk"]},
    {"name": "who", "type": "one_hot", "fields": ["terminal_owner"], "categories": ["bank"]},
]


def test_expressions_read_a_table_s_fields_and_look_ups_come_last() -> None:
    loaded = settings.load(FRAUD, overrides() | {"features.expressions": EXPRESSIONS})
    columns = loaded.schema_.columns
    assert (columns[0], columns[1], columns[-1]) == ("risk", "who_bank", "profile_age")


def test_windows_and_formulas_read_a_table_s_fields() -> None:
    windows = [w.model_dump(mode="json") for w in settings.load(FRAUD).features.windows]
    windows[0] |= {"value": "terminal_risk * amount", "where": "terminal_owner == 'bank'"}
    features = {
        "features.windows": windows,
        "features.formulas": [{"name": "risky", "formula": "amount * terminal_size"}],
    }
    loaded = settings.load(FRAUD, overrides() | features)
    assert loaded.schema_.columns[-2:] == ("risky", "profile_age")
    windows[0]["value"] = "terminal_nothing"
    with pytest.raises(SettingsError, match="terminal_nothing"):
        settings.load(FRAUD, overrides() | features)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("tables.0.topic", None, "tables[0].topic: table 'terminal' needs either a topic or a"),
        ("tables.0.file", "a.csv", "tables[0].topic: table 'terminal' needs either"),
        ("tables.0.key", "shop", "tables[0].key: no field 'shop' in event.fields"),
        ("tables.0.key", "amount", "tables[0].key: field 'amount' must be a string field"),
        ("tables.0.key", "terminal_owner", "tables[0].key: no field 'terminal_owner'"),
        ("tables.0.name", "a-b", "tables[0].name: table name 'a-b'"),
        ("tables.0.time", "since", "tables[0].time: is for files"),
        ("tables.0.fields", [], "tables[0].fields: "),
        (
            "tables.0.fields",
            [{"name": "id", "type": "int"}],
            "tables: two event fields would be named: terminal_id",
        ),
        (
            "tables.0.fields",
            [{"name": "a", "type": "int", "default": "x"}],
            "tables[0].fields[0].default: field 'a': default 'x' is not a int",
        ),
        ("tables.0.load_timeout", "3m", "tables[0].load_timeout: must be at most 2m"),
        ("lookups.0.key", "amount", "lookups[0].key: field 'amount' must be a string, of the"),
        ("lookups.0.key", "terminal_risk", "lookups[0].key: field 'terminal_risk' must be"),
        ("lookups.0.redis", None, "lookups[0]: look-up 'profile' needs one of redis, postgres"),
        ("lookups.0.postgres", POSTGRES, "lookups[0]: look-up 'profile' needs one of"),
        ("lookups.0.redis.key", "profile", "lookups[0].redis.key: must have {} once"),
        ("lookups.0.redis.url", "host:6379", "lookups[0].redis.url: must begin with redis://"),
        ("lookups.0.deadline", "200ms", "lookups[0].deadline: must be below model.deadline, 200ms"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path(path: str, value: Any, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load(FRAUD, overrides(path, value))
    assert f"\n  {expected}" in str(caught.value)


def test_a_look_up_that_makes_another_feature_s_name_is_refused() -> None:
    changed = overrides("lookups.0.name", "card")
    settings.load(FRAUD, changed)
    changed["lookups"][0]["fields"][0]["name"] = "count_5m"
    with pytest.raises(SettingsError, match=r"lookups: two features .* card_count_5m"):
        settings.load(FRAUD, changed)


@pytest.mark.parametrize("kind", ["tables", "lookups"])
def test_two_of_a_name_are_refused(kind: str) -> None:
    changed = overrides()
    (first,) = changed[kind]
    changed[kind].append(first | {"fields": [{"name": "other", "type": "int"}]})
    with pytest.raises(SettingsError, match=f"{kind}: two have the name {first['name']}"):
        settings.load(FRAUD, changed)


def test_a_file_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changed = overrides("tables.0.topic", None)
    changed["tables"][0]["file"] = "terminals.csv"
    (spec,) = tables_of(settings.load(FRAUD, changed)).specs
    assert spec.file == tmp_path / "terminals.csv"


def test_an_embedded_model_leaves_the_deadline_to_the_store() -> None:
    changed = overrides("lookups.0.deadline", "500ms") | {"model.embedded": True}
    assert settings.load(FRAUD, changed).lookups[0].deadline == 500


@pytest.mark.parametrize(
    ("store", "path"),
    [
        ({"redis": {"url": "redis://:hunter2@host"}}, "redis.url"),
        ({"redis": {"url": "redis://host?password=hunter2"}}, "redis.url"),
        ({"postgres": POSTGRES | {"dsn": "host=h password=hunter2"}}, "postgres.dsn"),
        ({"postgres": POSTGRES | {"dsn": "postgresql://u:hunter2@h/d"}}, "postgres.dsn"),
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(
    store: dict[str, Any], path: str
) -> None:
    changed = overrides()
    changed["lookups"][0] |= {"redis": None} | store
    with pytest.raises(SettingsError) as caught:
        settings.load(FRAUD, changed)
    assert f"lookups[0].{path}: holds a password" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_password_comes_from_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"lookups\[0\].redis.password: a secret in the file"):
        settings.load(FRAUD, overrides("lookups.0.redis.password", "hunter2"))
    monkeypatch.setenv("SECRET_OF_TEST", "hunter2")
    loaded = settings.load(FRAUD, overrides("lookups.0.redis.password", "${SECRET_OF_TEST}"))
    assert loaded.lookups[0].redis is not None
    assert loaded.lookups[0].redis.password == "hunter2"
    assert "hunter2" not in settings.as_yaml(loaded)


def test_the_hash_covers_what_decides_a_value_and_not_where_it_is() -> None:
    def hashed(path: str = "", value: Any = None) -> str:
        return settings.load(FRAUD, overrides(path, value)).features_hash

    same = [
        ("tables.0.topic", "others"),
        ("tables.0.min_rows", 7),
        ("lookups.0.redis.url", "redis://other"),
        ("lookups.0.deadline", "20ms"),
    ]
    other = [
        ("tables.0.as_of", "latest"),
        ("tables.0.fields.0.default", 0.5),
        ("lookups.0.fields.0.default", 3),
        ("lookups.0.key", "card_id"),
    ]
    changed = overrides("tables.0.fields.0.default", 0.5)
    assert changed["tables"][0]["fields"][0]["default"] == 0.5
    assert {hashed(*change) for change in same} == {hashed()}
    assert hashed() not in {hashed(*change) for change in other}


def test_without_enrichment_the_hash_is_what_it_was() -> None:
    plain = settings.load(FRAUD)
    empty = settings.load(FRAUD, {"tables": [], "lookups": []})
    assert plain.features_hash == empty.features_hash


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "fraud" / "1").mkdir(parents=True)
    return tmp_path


def test_a_missing_table_topic_is_a_warning(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = chosen(models, model__embedded=True, tables=DOCUMENT["tables"])
    topics = dict.fromkeys(given.topics.model_dump().values(), 4)
    monkeypatch.setattr(preflight, "topic_partitions", lambda *_, **__: topics)
    (warning,) = preflight.check(given, FRAUD)
    assert warning.startswith("table 'terminal' has no topic terminals yet")
    topics["terminals"] = 1
    assert preflight.check(given, FRAUD) == []


def test_a_missing_client_is_said_before_the_job_is_submitted(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis.asyncio", None)
    given = chosen(models, model__embedded=True, **DOCUMENT)
    with pytest.raises(NotReadyError) as caught:
        preflight.check(given, FRAUD)
    assert caught.value.fix == "run: make setup EXTRA=redis"
