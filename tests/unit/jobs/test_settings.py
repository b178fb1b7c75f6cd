"""Settings files: what is refused, where it says the mistake is, and what the hash covers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import settings
from jobs.environment import ROOT
from jobs.settings_file import SettingsError
from udfs.definition.types import format_duration, parse_duration_ms

FRAUD = ROOT / "conf" / "fraud.yaml"
FILES = (FRAUD, ROOT / "conf" / "examples" / "payments.yaml")
Write = Callable[[dict[str, Any]], Path]


@pytest.fixture
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FRAUD.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(document: dict[str, Any]) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    return to_file


def put(document: dict[str, Any], dotted: str, value: Any) -> None:
    node: Any = document
    *parents, last = [int(p) if p.isdecimal() else p for p in dotted.split(".")]
    for part in parents:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    if value is REMOVED:
        del node[last]
    elif isinstance(last, int) and last == len(node):
        node.append(value)
    else:
        node[last] = value


REMOVED = object()


def refusal(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        settings.load(path)
    return str(caught.value)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_shipped_files_load(path: Path) -> None:
    loaded = settings.load(path)
    assert loaded.schema_.stages[0] == loaded.key
    assert len(set(loaded.schema_.columns)) == len(loaded.schema_.columns)


def test_the_example_shares_nothing_with_the_demo_but_the_shape() -> None:
    fraud, payments = (settings.load(path) for path in FILES)
    assert len(payments.schema_.stages) == 3
    assert payments.event.time.format == "iso8601"
    assert not {f.name for f in fraud.event.fields} & {f.name for f in payments.event.fields}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_complete_settings_are_a_settings_file(path: Path, tmp_path: Path) -> None:
    loaded = settings.load(path)
    shown = tmp_path / "shown.yaml"
    shown.write_text(settings.as_yaml(loaded), encoding="utf-8")
    assert settings.load(shown) == loaded


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("kafak", "kafka"),
        ("kafka.group", "group_id"),
        ("event.time.fromat", "format"),
        ("event.fields.0.typ", "type"),
        ("labels.vlaue", "value"),
        ("features.windows.1.aggregate", "aggregates"),
        ("features.expressions.2.category", "categories"),
        ("model.breaker.open_ms", "open_for"),
    ],
)
def test_an_unknown_setting_is_refused_with_a_suggestion(
    path: str, meant: str, document: dict[str, Any], write: Write
) -> None:
    put(document, path, "1")
    assert f"unknown setting; did you mean '{meant}'?" in refusal(write(document))


def test_a_mistake_names_its_line(document: dict[str, Any], write: Write) -> None:
    put(document, "features.windows.1.where", "amont > 3")
    del document["event"]["time"]["field"]
    path = write(document)
    lines = path.read_text().splitlines()
    text = refusal(path)
    time_at = next(n for n, line in enumerate(lines, 1) if line.strip().startswith("time:"))
    assert f"event.time.field: required (line {time_at})" in text
    put(document, "event.time.field", "event_time_ms")
    assert "no column 'amont'" in (text := refusal(write(document)))
    at = next(n for n, line in enumerate(path.read_text().splitlines(), 1) if "amont" in line)
    assert text.endswith(f"(line {at})")


def test_an_unknown_setting_far_from_all_known_ones_lists_them(
    document: dict[str, Any], write: Write
) -> None:
    put(document, "alerts.zzz", 1)
    assert "alerts.zzz: unknown setting; known here: threshold, explain" in refusal(write(document))


def test_all_mistakes_are_listed_at_once(
    document: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    put(document, "kafka.start", "never")
    put(document, "kafka.properties", {"sasl.password": "hunter2"})
    put(document, "model.deadline", "20s")
    put(document, "model.server", "${NOT_SET}")
    put(document, "key", "no_field")
    put(document, "topics.labels", None)
    put(document, "training.depht", 3)
    text = refusal(write(document))
    assert "7 settings refused" in text
    for path in (
        "kafka.start: ",
        "kafka.properties.sasl.password: ",
        "model.deadline: must be at most 10s",
        "model.server: set the environment variable NOT_SET",
        "key: no field 'no_field'",
        "topics.labels: ",
        "training.depht: ",
    ):
        assert f"\n  {path}" in text
    assert "hunter2" not in text


def test_a_variable_can_be_a_file(
    document: dict[str, Any], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text("hunter2\n")
    put(document, "model.token", "${A_TOKEN}")
    monkeypatch.delenv("A_TOKEN", raising=False)
    monkeypatch.setenv("A_TOKEN_FILE", str(secret))
    loaded = settings.load(write(document))
    assert loaded.model.token == "hunter2"
    assert "hunter2" not in settings.as_yaml(loaded)
    monkeypatch.setenv("A_TOKEN", "own")
    assert settings.load(write(document)).model.token == "own"
    monkeypatch.delenv("A_TOKEN")
    secret.unlink()
    assert "which A_TOKEN_FILE names, cannot be read" in refusal(write(document))


CROSS_REFERENCES = [
    ("key", "no_field", "key: no field 'no_field' in event.fields; declared are: transaction_id"),
    ("key", "amount", "key: field 'amount' must be a required string"),
    ("event.id", "amount", "event.id: field 'amount' must be"),
    ("event.time.field", "card_id", "event.time.field: field 'card_id' must be a required int"),
    ("event.time.format", "iso8601", "event.time.field: field 'event_time_ms' must be"),
    ("event.fields.1.required", False, "event.time.field: field 'event_time_ms' must be"),
    ("event.fields.1.name", "card_id", "event.fields: fields declared twice: card_id"),
    ("event.fields.4.min", 2e6, "event.fields[4].min: "),
    ("event.fields.5.max", 1, "event.fields[5]: field 'type' is a string"),
    ("event.fields.4.default", 1.0, "event.fields[4].default: "),
    ("labels", None, "features.windows[2].stream: 'terminal_fraud_rate' reads labels"),
    ("topics.labels", None, "topics.labels: features read labels"),
    ("topics.alerts", "transactions", "topics.alerts: 'transactions' is read by the job"),
    ("topics.duplicates", "fraud-labels", "topics.duplicates: 'fraud-labels' is read"),
    ("overload", {}, "overload.low_priority: required"),
    ("overload", {"low_priority": "amount < 20"}, "topics.shed: overload writes there"),
    ("overload", {"low_priority": "amout < 20"}, "overload.low_priority: "),
    ("source.rate", 5, "source.rate: Input should be greater than or equal to 100"),
    ("flink.parallelism", 3, "flink.parallelism: 3 is more than batch.buckets 2"),
    ("batch.buckets", 129, "batch.buckets: Input should be less than or equal to 128"),
    ("features.windows.1.prefix", "card", "features: two features would have the same name"),
    (
        "features.windows.0.windows",
        ["5m", "300s"],
        "features.windows[0].windows: windows of one name",
    ),
    ("features.windows.0.windows", [0], "features.windows[0].windows[0].sliding: a window must"),
    ("features.windows.0.windows", [], "features.windows[0].windows: "),
    ("features.windows.0.value", None, "features.windows[0].value: 'card' aggregates a value"),
    ("features.windows.0.value", "type", "features.windows[0].aggregates[1]: sum needs a number"),
    ("features.windows.0.value", "amont", "features.windows[0].value: no column 'amont'"),
    ("features.windows.0.value", ["amount", "type"], "features.windows[0].value: sum cannot"),
    ("features.windows.0.where", "amount", "features.windows[0].where: 'amount' yields a number"),
    ("features.windows.0.where", "type = 'CP'", "features.windows[0].where: \"type = 'CP'\" is no"),
    ("features.windows.0.where", "type > 'CP'", "features.windows[0].where: 'type' is a text"),
    (
        "features.windows.0.where",
        "open('x')",
        "features.windows[0].where: \"open('x')\" is no function",
    ),
    ("features.windows.0.where", "type.upper() == 'CP'", "features.windows[0].where: "),
    ("features.windows.1.key", "shop_id", "features.windows[1].key: no field 'shop_id'"),
    ("features.windows.2.key", "card_id", "features.windows[2].key: must be the labels' own key"),
    ("features.windows.2.value", "amount", "features.windows[2].value: must be the labels' value"),
    ("features.windows.2.aggregates", ["ratio_to_mean"], "features.windows[2].aggregates[0]: "),
    ("features.windows.2.where", "amount > 1", "features.windows[2].where: a label has no other"),
    (
        "features.windows.0.aggregates",
        ["avg"],
        "features.windows[0].aggregates[0]: no aggregate 'avg'",
    ),
    (
        "features.windows.0.aggregates",
        ["own_share"],
        "features.windows[0].aggregates[0]: own_share needs a string field",
    ),
    (
        "features.windows.0.aggregates",
        ["speed_kmh"],
        "features.windows[0].value: speed_kmh needs value: [latitude",
    ),
    (
        "features.windows.0.windows",
        [{"events": 0}],
        "features.windows[0].windows[0].events: a window must be",
    ),
    (
        "features.windows.0.windows",
        [{"session": "30"}],
        "features.windows[0].windows[0].session: '30' is not a duration",
    ),
    (
        "features.windows.0.windows",
        [{"hopping": "1h"}],
        "features.windows[0].windows[0].every: a hopping window needs",
    ),
    (
        "features.windows.0.windows",
        [{"day": "Mars"}],
        "features.windows[0].windows[0].day: no time zone 'Mars'",
    ),
    (
        "features.windows.0.windows",
        [{"half_life": "1h"}],
        "features.windows[0].aggregates[3]: a half_life window has",
    ),
    (
        "features.windows.0.windows",
        [{"rolling": "1h"}],
        "features.windows[0].windows[0].rolling: unknown",
    ),
    (
        "features.windows.0.windows",
        [{}],
        "features.windows[0].windows[0]: a window is one of sliding",
    ),
    (
        "features.windows.0.windows",
        [{"tumbling": "1h", "within": "1h"}],
        "features.windows[0].windows[0].within: a tumbling",
    ),
    ("features.windows.0.key", [], "features.windows[0].key: name a field"),
    (
        "features.windows.0.key",
        ["card_id", "amount"],
        "features.windows[0].key[1]: field 'amount' must be",
    ),
    ("features.windows.0.key", 7, "features.windows[0].key: "),
    (
        "features.formulas",
        [{"name": "f", "formula": "card_sum_9m"}],
        "features.formulas[0].formula: no column",
    ),
    (
        "features.formulas",
        [{"name": "amount", "formula": "1"}],
        "features: two features would have",
    ),
    (
        "features.expressions.0.formula",
        "amount",
        "features.expressions[0].formula: type value has no",
    ),
    ("features.windows.1.delay", "-1s", "features.windows[1].delay: '-1s' is not a duration"),
    ("features.windows.1.delay", -1, "features.windows[1].delay: -1 has no unit"),
    ("model.deadline", 200, "model.deadline: 200 has no unit; write 200s or 200ms"),
    ("features.expressions.0.fields", ["typo"], "features.expressions[0].fields[0]: no field"),
    ("features.expressions.0.fields", ["type"], "features.expressions[0].fields[0]: field 'type'"),
    ("features.expressions.0.fields", [], "features.expressions[0].fields: "),
    ("features.expressions.3.fields.2", "type", "features.expressions[3].fields[2]: field 'type'"),
    ("features.expressions.2.fields", ["amount"], "features.expressions[2].fields[0]: field"),
    ("features.expressions.2.categories", [], "features.expressions[2].categories: "),
    ("features.expressions.0.categories", ["a"], "features.expressions[0].categories: "),
    ("features.expressions.1.timezone", "Mars/X", "features.expressions[1].timezone: no time zone"),
    ("features.expressions.1.timezone", "Europe", "features.expressions[1].timezone: no time zone"),
    ("features.expressions.1.timezone", "", "features.expressions[1].timezone: no time zone"),
    (
        "features.preparation",
        {"columns": {"amout": {}}},
        "features.preparation.columns.amout: no feature 'amout'; did you mean amount?",
    ),
    (
        "features.preparation",
        {"columns": {"amount": {"impute": "mode"}}},
        "features.preparation.columns.amount.impute",
    ),
    ("model.server", "localhost", "model.server: 'localhost' is not host:port"),
    ("kafka.bootstrap_servers", "a:1,b", "kafka.bootstrap_servers: 'a:1,b' is not host:port"),
    ("name", REMOVED, "name: required"),
    ("alerts", None, "alerts: must hold settings"),
]


@pytest.mark.parametrize(("path", "value", "expected"), CROSS_REFERENCES)
def test_a_wrong_setting_is_refused_with_its_path(
    path: str, value: Any, expected: str, document: dict[str, Any], write: Write
) -> None:
    put(document, path, value)
    assert f"\n  {expected}" in refusal(write(document))


def test_labels_kept_by_the_record_key_are_refused_because_no_stage_would_get_them(
    document: dict[str, Any], write: Write
) -> None:
    put(document, "key", "terminal_id")
    assert "features.windows[2].key: labels enter after the first stage" in refusal(write(document))


def test_no_feature_at_all_is_refused(document: dict[str, Any], write: Write) -> None:
    put(document, "features", {})
    assert "features: declare at least one feature" in refusal(write(document))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "must be a mapping"),
        (b"- a\n", "must be a mapping"),
        (b"a: [", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"name: a\nkey: b\nname: c\n", "'name' is written twice"),
    ],
)
def test_a_file_that_is_no_settings_file(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    assert expected in refusal(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)


class TestEnvironment:
    @pytest.fixture
    def server(
        self, document: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., str]:
        def load(text: str, **variables: str) -> str:
            monkeypatch.delenv("HOST_OF_TEST", raising=False)
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            put(document, "model.server", text)
            return settings.load(write(document)).model.server

        return load

    def test_a_variable_is_replaced_within_its_text(self, server: Callable[..., str]) -> None:
        assert server("${HOST_OF_TEST}:8500", HOST_OF_TEST="a.example") == "a.example:8500"

    def test_the_default_stands_in_for_one_not_set_or_empty(
        self, server: Callable[..., str]
    ) -> None:
        assert server("${HOST_OF_TEST:-b}:1") == "b:1"
        assert server("${HOST_OF_TEST:-b}:1", HOST_OF_TEST="") == "b:1"
        assert server("${HOST_OF_TEST:-b}:1", HOST_OF_TEST="c") == "c:1"

    def test_one_without_default_that_is_not_set_is_named(self, server: Callable[..., str]) -> None:
        with pytest.raises(SettingsError, match="variable HOST_OF_TEST"):
            server("${HOST_OF_TEST}:8500")

    def test_defaults_that_name_a_variable_are_expanded_too(
        self, document: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STREAMSCORE_KAFKA", "k:9")
        put(document, "kafka", REMOVED)
        assert settings.load(write(document)).kafka.bootstrap_servers == "k:9"


class TestSecrets:
    NAMES = ("sasl.password", "sasl.jaas.config", "ssl.keystore.key", "a.token", "client.secret")

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("value", ["hunter2", "${SECRET_OF_TEST:-hunter2}"])
    def test_one_in_the_file_is_refused_and_not_repeated(
        self, name: str, value: str, document: dict[str, Any], write: Write
    ) -> None:
        put(document, "kafka.properties", {name: value})
        text = refusal(write(document))
        assert f"kafka.properties.{name}: a secret in the file" in text
        assert "hunter2" not in text

    @pytest.mark.parametrize("name", NAMES)
    def test_one_of_the_environment_is_used_and_masked(
        self, name: str, document: dict[str, Any], write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_OF_TEST", "hunter2")
        put(document, "kafka.properties", {name: "${SECRET_OF_TEST}", "linger.ms": "5"})
        put(document, "flink.options", {"s3.secret-key": "${SECRET_OF_TEST}"})
        loaded = settings.load(write(document))
        assert loaded.kafka.properties[name] == "hunter2"
        shown = settings.as_yaml(loaded)
        assert "hunter2" not in shown
        assert "linger.ms: '5'" in shown

    def test_a_topic_or_field_may_be_called_like_one(
        self, document: dict[str, Any], write: Write
    ) -> None:
        put(document, "topics.alerts", "token-alerts")
        assert settings.load(write(document)).topics.alerts == "token-alerts"


def test_overrides_win_even_in_an_empty_section(document: dict[str, Any], write: Write) -> None:
    put(document, "alerts", None)
    overrides = {"alerts.threshold": 0.5, "model.embedded": True}
    loaded = settings.load(write(document), overrides)
    assert (loaded.alerts.threshold, loaded.model.embedded) == (0.5, True)


class TestFeaturesHash:
    @pytest.fixture
    def hash_with(self, document: dict[str, Any], write: Write) -> Callable[..., str]:
        def compute(path: str = "name", value: Any = "fraud") -> str:
            changed = copy.deepcopy(document)
            put(changed, path, value)
            return settings.load(write(changed)).features_hash

        return compute

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("event.dedupe_within", "1h"),
            ("event.time.allowed_lateness", "2h"),
            ("event.time.max_future", "2h"),
            ("event.time.earliest", "2001-01-01"),
            ("event.fields.4.max", 5),
            ("event.max_bytes", 1_000),
            ("labels.value", REMOVED),
            ("features.expressions.1.timezone", "Asia/Tokyo"),
            ("features.expressions.2.categories", ["CP", "CNP"]),
            ("features.windows.0.windows", ["5m"]),
            ("features.windows.1.aggregates", ["mean", "count"]),
            ("features.windows.2.delay", "8d"),
            ("features.preparation", {"default": "mean"}),
            ("features.preparation", {"columns": {"amount": {"indicator": True}}}),
        ],
    )
    def test_what_decides_a_feature_changes_it(
        self, path: str, value: Any, hash_with: Callable[..., str], document: dict[str, Any]
    ) -> None:
        before = hash_with()
        if path == "labels.value":
            put(document, "features.windows.2.value", "other")
            value = "other"
        assert hash_with(path, value) != before

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("name", "other"),
            ("kafka.group_id", "other"),
            ("topics.events", "other"),
            ("model.deadline", "100ms"),
            ("alerts.threshold", 0.5),
            ("batch.buckets", 8),
            ("flink.checkpoint_interval", "5s"),
            ("training.trees", 3),
            ("event.time.allowed_lateness", "60m"),
            ("event.time.allowed_lateness", "60m"),
            ("event.time.earliest", "2000-01-01"),
            ("event.time.earliest", "2000-01-01T01:00:00+01:00"),
            ("event.fields.4.min", 0.0),
            ("features.windows.1.delay", "0s"),
            ("features.windows.0.stream", "events"),
        ],
    )
    def test_nothing_else_does(self, path: str, value: Any, hash_with: Callable[..., str]) -> None:
        assert hash_with(path, value) == hash_with()

    def test_the_order_of_the_fields_does_not(
        self, hash_with: Callable[..., str], document: dict[str, Any]
    ) -> None:
        assert hash_with("event.fields", document["event"]["fields"][::-1]) == hash_with()


class TestReference:
    def test_every_setting_has_a_readable_type_and_a_meaning(self) -> None:
        for row in settings.table():
            assert row.meaning, row
            assert row.default, row
            assert not set("[]<>()") & set(row.type), row
            assert "|" not in "".join(row), row

    def test_every_section_has_a_description(self) -> None:
        assert all(field.description for field in settings.Settings.model_fields.values())

    @pytest.mark.parametrize(
        ("path", "type_name", "default"),
        [
            ("name", "text", "required"),
            ("kafka.bootstrap_servers", "text", "${STREAMSCORE_KAFKA:-127.0.0.1:9092}"),
            ("kafka.start", "one of earliest, latest, committed", "earliest"),
            ("kafka.stop_at_end", "true or false", "false"),
            ("kafka.properties", "names and their text", "none"),
            ("features.preparation.default", "one of median, mean, none or number", "median"),
            ("features.preparation.columns", "sections by name", "none"),
            ("features.preparation.columns.*.indicator", "true or false", "false"),
            ("event.time.earliest", "date and time", "2000-01-01T00:00:00Z"),
            ("event.time.allowed_lateness", "duration", "1h"),
            ("event.fields", "list of sections", "required"),
            ("labels", "section", "none"),
            ("features.windows[].windows", "list of durations or sections", "required"),
            ("model.deadline", "duration, at least 1ms, at most 10s", "200ms"),
            ("model.path", "path", "build/models"),
            ("alerts.threshold", "number, at least 0, at most 1", "0.85"),
            ("topics.partitions", "whole number, at least 1", "4"),
            ("flink.state_ttl", "duration", "none"),
        ],
    )
    def test_rows(self, path: str, type_name: str, default: str) -> None:
        row = next(row for row in settings.table() if row.path == path)
        assert (row.type, row.default) == (type_name, default)

    def test_it_is_a_markdown_table(self) -> None:
        lines = settings.reference().splitlines()
        assert {line.count("|") for line in lines} == {5}
        assert len(lines) == len(settings.table()) + 2


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("0ms", 0),
        ("250ms", 250),
        ("1500ms", 1_500),
        ("90s", 90_000),
        ("5m", 300_000),
        ("24h", 86_400_000),
        ("36h", 129_600_000),
        ("7d", 604_800_000),
    ],
)
def test_durations_round_trip(text: str, duration_ms: int) -> None:
    assert parse_duration_ms(text) == duration_ms
    assert parse_duration_ms(duration_ms) == duration_ms
    assert parse_duration_ms(format_duration(duration_ms)) == duration_ms


@pytest.mark.parametrize("value", ["", "5", "5 min", "m", "-5m", "1e3s", -1, True, 5.0, None])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration_ms(value)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
            for old, new in zip("abcdefghi", "bcdefghij", strict=True)
        ),
        "a: &a {k: v}\n"
        + "".join(
            f"{new}: &{new} {{x: *{old}, y: *{old}, z: *{old}}}\n"
            for old, new in zip("abcdefghijklmnop", "bcdefghijklmnopq", strict=True)
        ),
        "a: &a [*a]\n",
        "# " + "x" * 1_000_001,
    ],
    ids=["lists", "mappings", "itself", "size"],
)
def test_a_bomb_is_refused_at_once(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"more than 100,000|larger than"):
        settings.load(path)


@pytest.mark.parametrize("name", ["../../etc", "/etc", "a/b", "", ".", "..", "x\ny", "x" * 129])
def test_a_name_is_no_path(name: str) -> None:
    for setting in ("name", "model.name", "topics.events", "topics.labels"):
        if setting.startswith("topics") and len(name) == 129:
            continue
        with pytest.raises(SettingsError, match=r"is no (name|topic): letters"):
            settings.load(ROOT / "conf" / "fraud.yaml", {setting: name})
