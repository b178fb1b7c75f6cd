"""TensorFlow Serving's configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_server.errors import RepositoryError
from model_server.lifecycle import ModelConfig, VersionPolicy
from model_server.tf_config import read

FILE = """
model_config_list {
  config {
    name: "fraud"
    base_path: "/models/fraud_xgb"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 3 versions: 4 } }
    version_labels { key: "stable" value: 3 }
    version_labels { key: "canary" value: 4 }
  }
  config { name: "other" base_path: "/models/other" }
  config { name: "last" base_path: "/m/last" model_version_policy { latest { num_versions: 2 } } }
  config { name: "all" base_path: "/m/all" model_version_policy { all {} } }
}
"""


def test_names_paths_policies_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text(FILE)
    assert read(path) == (
        ModelConfig(
            "fraud",
            Path("/models"),
            "fraud_xgb",
            VersionPolicy("specific", versions=(3, 4)),
            {"stable": 3, "canary": 4},
        ),
        ModelConfig("other", Path("/models"), "other"),
        ModelConfig("last", Path("/m"), "last", VersionPolicy("latest", 2)),
        ModelConfig("all", Path("/m"), "all", VersionPolicy("all")),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "no ModelServerConfig"),
        ("", "must have a model_config_list"),
        ('model_config_list { config { name: "a" base_path: "b" } }', "absolute base_path"),
        ('model_config_list { config { base_path: "/b" } }', "must have a name"),
        (
            'model_config_list { config { name: "a" base_path: "/b" '
            "model_version_policy { specific {} } } }",
            "version policy",
        ),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(RepositoryError, match=words):
        read(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="cannot read"):
        read(tmp_path / "none")
