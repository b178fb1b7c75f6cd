"""A model server's settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import server_settings
from jobs.settings_file import SettingsError
from model_server.batching import BatchingOptions
from model_server.lifecycle import ModelConfig, VersionPolicy

ROOT = Path(__file__).parents[3]
MODEL = {"name": "fraud"}


def write(folder: Path, **settings: Any) -> Path:
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump({"models": [MODEL]} | settings))
    return path


def test_the_example_is_right() -> None:
    path = ROOT / "conf" / "server.yaml"
    assert server_settings.is_server_file(path)
    options = server_settings.options(server_settings.load(path))
    assert options.models == (ModelConfig("fraud", Path("build/models")),)
    assert (options.port, options.http_port, options.admin_port) == (8500, 8501, None)
    assert not server_settings.is_server_file(ROOT / "conf" / "fraud.yaml")


def test_everything_reaches_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_TOKEN", "geheim")
    model = {
        "name": "fraud",
        "models_dir": "/models",
        "folder": "fraud_xgb",
        "versions": [3, 4],
        "labels": {"stable": 3},
        "batching": {"max_rows": 64, "max_delay_us": 500},
    }
    path = write(
        tmp_path,
        models=[model],
        token="${MODEL_TOKEN}",
        poll="5s",
        tls={"certificate": "a.crt", "key": "a.key", "client_ca": "ca.crt"},
        limits={"message_bytes": 1000, "concurrent_calls": 7, "threads": 3},
    )
    options = server_settings.options(server_settings.load(path, {"port": 0}))
    assert options.models == (
        ModelConfig(
            "fraud",
            Path("/models"),
            "fraud_xgb",
            VersionPolicy("specific", versions=(3, 4)),
            {"stable": 3},
            BatchingOptions(64, 500),
        ),
    )
    assert (options.port, options.token, options.poll_s) == (0, "geheim", 5.0)
    assert options.tls is not None and options.tls.client_ca == Path("ca.crt")
    limits = options.max_message_bytes, options.max_concurrent_rpcs, options.threads
    assert limits == (1000, 7, 3)
    assert "geheim" not in repr(options)
    assert "geheim" not in server_settings.as_yaml(server_settings.load(path))


@pytest.mark.parametrize(
    ("versions", "policy"),
    [
        ("latest", VersionPolicy()),
        ("latest:2", VersionPolicy("latest", 2)),
        ("all", VersionPolicy("all")),
    ],
)
def test_versions(tmp_path: Path, versions: str, policy: VersionPolicy) -> None:
    path = write(tmp_path, models=[MODEL | {"versions": versions}])
    (config,) = server_settings.options(server_settings.load(path)).models
    assert config.policy == policy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"models": []}, "give models"),
        ({"model_config_file": "x"}, "give models"),
        ({"models": [MODEL, MODEL]}, r"models\[1\].name: 'fraud' is there twice"),
        ({"models": [MODEL | {"version": 1}]}, "did you mean 'versions'"),
        ({"models": [MODEL | {"versions": "newest"}]}, "none of all, latest"),
        ({"prot": 1}, "did you mean 'port'"),
        ({"port": 70_000}, "port"),
        ({"port": 8500, "http_port": 8500}, "http_port: 8500 is port too"),
        ({"models": [MODEL | {"name": "a b"}]}, r"models\[0\].name: 'a b' must be letters"),
        ({"poll": 2}, "poll: 2 has no unit; write 2s or 2ms"),
        ({"token": "geheim"}, "a secret in the file"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, settings: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        server_settings.load(write(tmp_path, **settings))


def test_class_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, models=[MODEL | {"python_class": "no.such:Class"}])
    with pytest.raises(SettingsError, match=r"cannot import no\.such:Class"):
        server_settings.options(server_settings.load(path))


def test_model_config_file_takes_the_place_of_models(tmp_path: Path) -> None:
    config = tmp_path / "models.config"
    config.write_text('model_config_list { config { name: "a" base_path: "/m/a" } }')
    path = write(tmp_path, models=[], model_config_file=str(config))
    assert server_settings.is_server_file(path)
    options = server_settings.options(server_settings.load(path))
    assert options.models == (ModelConfig("a", Path("/m"), "a"),)


def test_reference_has_every_setting() -> None:
    text = server_settings.reference()
    for name in ("port", "models[].versions", "models[].batching.max_rows", "limits.threads"):
        assert f"| `{name}` |" in text
