"""What the pipeline decides before Flink is asked: the model it follows, options, state's life."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import pipeline, settings
from jobs.environment import ROOT, as_url
from jobs.inputs import source_options
from jobs.settings import Settings
from jobs.settings_file import SettingsError

CONFIG = ROOT / "conf" / "fraud.yaml"
COLUMNS = settings.load(CONFIG).schema_.columns
DAY_MS = 86_400_000


def job(tmp_path: Path, **changes: Any) -> Settings:
    overrides = {name.replace("__", "."): value for name, value in changes.items()}
    return settings.load(CONFIG, {"model.path": str(tmp_path)} | overrides)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """Write a version folder as the job reads it: its list of features."""

    def write(
        names: tuple[str, ...] = COLUMNS, version: int = 1, impute: float | None = 1.5
    ) -> Path:
        folder = tmp_path / "fraud" / str(version)
        folder.mkdir(parents=True)
        features = [{"name": n, "type": "float", "impute": impute} for n in names]
        document = {"format": 1, "features": features}
        (folder / "features.json").write_text(json.dumps(document), encoding="utf-8")
        return folder

    return write


# -- the model ----------------------------------------------------------------------------------


def test_the_newest_version_is_followed_unless_one_is_set(
    tmp_path: Path, trained: Callable[..., Path]
) -> None:
    first, tenth = trained(version=1), trained(version=10)
    assert pipeline._model(job(tmp_path)).path == tenth
    assert pipeline._model(job(tmp_path, model__version=1)).path == first


def test_a_model_of_other_features_is_refused_by_name(
    tmp_path: Path, trained: Callable[..., Path]
) -> None:
    folder = trained((*COLUMNS[1:], "card_count_2h"))
    with pytest.raises(SettingsError) as refused:
        pipeline._model(job(tmp_path))
    text = str(refused.value)
    assert f"{folder} was trained with other features (amount, card_count_2h)" in text
    assert "streamscore train" in text


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (COLUMNS[::-1], "another order"),
        ((COLUMNS[1], COLUMNS[0], *COLUMNS[2:]), "another order"),
        (COLUMNS[:-1], COLUMNS[-1]),
        ((*COLUMNS, "extra"), "extra"),
    ],
)
def test_features_must_be_the_same_in_the_same_order(
    tmp_path: Path, trained: Callable[..., Path], names: tuple[str, ...], words: str
) -> None:
    trained(names)
    with pytest.raises(SettingsError, match=words):
        pipeline._model(job(tmp_path))


def test_changed_windows_ask_for_another_model(
    tmp_path: Path, trained: Callable[..., Path]
) -> None:
    trained()
    pipeline._model(job(tmp_path))
    changed = tmp_path / "changed.yaml"
    text = CONFIG.read_text(encoding="utf-8")
    changed.write_text(text.replace("[5m, 1h, 24h, 7d]", "[5m, 2h, 24h, 7d]"), encoding="utf-8")
    with pytest.raises(SettingsError, match="card_count_2h"):
        pipeline._model(settings.load(changed, {"model.path": str(tmp_path)}))


def test_no_model_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="train one with: streamscore train"):
        pipeline._model(job(tmp_path))


def test_a_version_that_is_not_there(tmp_path: Path, trained: Callable[..., Path]) -> None:
    trained(version=1)
    with pytest.raises(SettingsError, match=r"no version 2: it has \[1\]"):
        pipeline._model(job(tmp_path, model__version=2))


def test_a_broken_list_of_features(tmp_path: Path, trained: Callable[..., Path]) -> None:
    (trained() / "features.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingsError, match="not JSON"):
        pipeline._model(job(tmp_path))


@pytest.mark.parametrize("impute", [0.0, -7.25, None])
def test_missing_features_become_what_they_were_in_training(
    tmp_path: Path, trained: Callable[..., Path], impute: float | None
) -> None:
    trained(impute=impute)
    chosen = job(tmp_path, model__fallback_score=0.25, alerts__explain=False)
    output = pipeline._output(chosen, pipeline._model(chosen))
    (row,) = output.preparation.transform(np.full((1, len(COLUMNS)), np.nan)).tolist()
    assert len(row) == len(COLUMNS)
    assert all(math.isnan(v) if impute is None else v == impute for v in row)
    assert (output.fallback_score, output.explain) == (0.25, False)


# -- options ------------------------------------------------------------------------------------


def test_idle_keys_outlive_every_window(tmp_path: Path) -> None:
    windows_ms = (7 + 30) * DAY_MS  # the label windows' delay and longest window
    lateness_ms = 3_600_000
    assert pipeline.idle_ms(job(tmp_path)) >= 2 * windows_ms
    assert pipeline.idle_ms(job(tmp_path)) <= 2 * (windows_ms + lateness_ms)
    assert pipeline.idle_ms(job(tmp_path, flink__state_ttl="90d")) == 90 * DAY_MS


@pytest.mark.parametrize(
    ("start", "mode"),
    [
        ("earliest", "earliest-offset"),
        ("latest", "latest-offset"),
        ("committed", "group-offsets"),
    ],
)
def test_where_reading_begins(tmp_path: Path, start: str, mode: str) -> None:
    options = source_options(job(tmp_path, kafka__start=start), "some-topic")
    assert options["scan.startup.mode"] == mode
    assert options["topic"] == "some-topic"
    assert "scan.bounded.mode" not in options


def test_a_job_may_stop_at_the_end(tmp_path: Path) -> None:
    options = source_options(job(tmp_path, kafka__stop_at_end=True), "t")
    assert options["scan.bounded.mode"] == "latest-offset"


def test_client_properties_reach_sources_and_sinks_and_win(tmp_path: Path) -> None:
    properties = {"security.protocol": "SSL", "linger.ms": "50"}
    chosen = job(tmp_path, kafka__properties=properties)
    for options in (
        source_options(chosen, "t"),
        pipeline.sink_options(chosen, "alerts"),
    ):
        assert options["properties.security.protocol"] == "SSL"
        assert options["properties.linger.ms"] == "50"


def test_each_sink_has_its_topic_and_only_exactly_once_has_transactions(tmp_path: Path) -> None:
    columns = pipeline.sinks.COLUMNS
    settings_ = job(tmp_path, topics__shadow="fraud-shadow", topics__shed="fraud-shed")
    assert pipeline.sink_options(settings_, "shed")["topic"] == "fraud-shed"
    at_least = [pipeline.sink_options(settings_, column) for column in columns]
    assert [o["topic"] for o in at_least] == [
        "fraud-predictions",
        "fraud-alerts",
        "fraud-dead-letters",
        "fraud-duplicates",
        "fraud-shadow",
    ]
    assert {o["sink.delivery-guarantee"] for o in at_least} == {"at-least-once"}
    assert not any("sink.transactional-id-prefix" in o for o in at_least)
    exactly = job(tmp_path, flink__delivery="exactly_once")
    prefixes = {
        pipeline.sink_options(exactly, column)["sink.transactional-id-prefix"] for column in columns
    }
    assert len(prefixes) == len(columns)


def test_the_client_gets_the_models_settings(tmp_path: Path) -> None:
    chosen = job(tmp_path, model__deadline="50ms", model__version=3, model__max_attempts=2)
    options = pipeline.client_options(chosen)
    assert (options.deadline_ms, options.model_version, options.max_attempts) == (50, 3, 2)
    assert (options.target, options.model_name) == (chosen.model.server, "fraud")
    assert options.breaker.open_ms == chosen.model.breaker.open_for


def test_a_folder_is_a_url_and_a_url_stays_one(tmp_path: Path) -> None:
    assert as_url(str(tmp_path)) == tmp_path.as_uri()
    assert as_url("s3://bucket/checkpoints") == "s3://bucket/checkpoints"
    assert as_url("build/checkpoints") == (Path.cwd() / "build/checkpoints").as_uri()
