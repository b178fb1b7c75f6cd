"""Finding versions and reading what lies beside a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_server.errors import RepositoryError
from model_server.repository import (
    Feature,
    find_version,
    list_versions,
    load_features,
    model_file,
)


def test_newest_version_is_the_largest_number(models_dir: Path) -> None:
    assert list_versions(models_dir, "fraud") == [2, 10]
    found = find_version(models_dir, "fraud")
    assert (found.name, found.version, found.path.name) == ("fraud", 10, "10")


def test_pinned_version(models_dir: Path) -> None:
    assert find_version(models_dir, "fraud", 2).version == 2
    with pytest.raises(RepositoryError, match=r"no version 3: it has \[2, 10\]"):
        find_version(models_dir, "fraud", 3)


@pytest.mark.parametrize("name", ["0", "01", "v3", ".tmp", "-1", "1.5", "9" * 30])
def test_folders_that_are_no_versions_are_passed_over(models_dir: Path, name: str) -> None:
    (models_dir / "fraud" / name).mkdir()
    assert list_versions(models_dir, "fraud") == [2, 10]


def test_file_named_as_a_version_is_passed_over(models_dir: Path) -> None:
    (models_dir / "fraud" / "11").touch()
    assert list_versions(models_dir, "fraud") == [2, 10]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../fraud", "a/b", "/etc", "a\\b", "a\0b", ".hidden", "-x", "ä"]
)
def test_names_that_could_escape_are_refused(models_dir: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match="not allowed"):
        find_version(models_dir, name)


def test_links_out_of_the_root_are_refused(models_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "1").mkdir(parents=True)
    (models_dir / "linked").symlink_to(outside)
    (models_dir / "fraud" / "12").symlink_to(outside / "1")
    for name in ("linked", "fraud"):
        with pytest.raises(RepositoryError, match="outside"):
            find_version(models_dir, name)


def test_model_file_linked_from_elsewhere_is_refused(
    tmp_path: Path, write_version: Callable[..., Path]
) -> None:
    real = write_version(tmp_path / "elsewhere" / "1")
    folder = write_version(tmp_path / "models" / "fraud" / "1")
    for name in ("model.ubj", "features.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(real / name)
    with pytest.raises(RepositoryError, match="outside"):
        model_file(folder)
    with pytest.raises(RepositoryError, match="outside"):
        load_features(folder)


def test_links_inside_the_root_are_followed(models_dir: Path) -> None:
    (models_dir / "fraud" / "11").symlink_to(models_dir / "fraud" / "2")
    found = find_version(models_dir, "fraud")
    assert (found.version, found.path.name) == (11, "2")


def test_what_is_missing_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"fraud.*put a version there"):
        find_version(tmp_path, "fraud")
    (tmp_path / "fraud" / "1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match=r"model\.ubj nor model\.json.*save_model"):
        model_file(tmp_path / "fraud" / "1")
    with pytest.raises(RepositoryError, match=r"features\.json.*write it"):
        load_features(tmp_path / "fraud" / "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match="no version folder"):
        find_version(tmp_path, "empty")


def test_ubj_is_preferred_to_json(tmp_path: Path, write_version: Callable[..., Path]) -> None:
    folder = write_version(tmp_path / "1", file_name="model.json")
    assert model_file(folder).name == "model.json"
    (folder / "model.ubj").touch()
    assert model_file(folder).name == "model.ubj"


def test_features(models_dir: Path) -> None:
    features = load_features(models_dir / "fraud" / "2")
    assert features.names == ("amount", "count_5m", "sum_5m", "max_5m", "age_s")
    assert features.features[0] == Feature("amount", 0.0)
    assert features.config_hash == "abc"


GOOD: dict[str, Any] = {"name": "a", "type": "float", "impute": None}


def test_null_impute_and_unknown_keys_are_fine(tmp_path: Path) -> None:
    document = {"format": 1, "features": [GOOD | {"unit": "s"}], "trained_at": "today"}
    (tmp_path / "features.json").write_text(json.dumps(document))
    features = load_features(tmp_path)
    assert (features.features, features.config_hash) == ((Feature("a", None),), "")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "JSON object"),
        ({}, '"format" is None'),
        ({"format": 3}, '"format" is 3, must be 1 or 2'),
        ({"format": 1}, "at least one"),
        ({"format": 1, "features": []}, "at least one"),
        ({"format": 1, "features": ["a"]}, "must be an object"),
        ({"format": 1, "features": [GOOD | {"name": ""}]}, '"name"'),
        ({"format": 1, "features": [GOOD | {"name": 3}]}, '"name"'),
        ({"format": 1, "features": [GOOD | {"type": "text"}]}, "\"type\" is 'text'"),
        ({"format": 1, "features": [GOOD | {"impute": "0"}]}, '"impute"'),
        ({"format": 1, "features": [GOOD | {"impute": True}]}, '"impute"'),
        ({"format": 1, "features": [GOOD, GOOD]}, "named twice: a"),
    ],
)
def test_wrong_features_are_refused(tmp_path: Path, document: Any, words: str) -> None:
    path = tmp_path / "features.json"
    path.write_text(json.dumps(document))
    with pytest.raises(RepositoryError, match=words) as caught:
        load_features(tmp_path)
    assert str(path) in str(caught.value)


def test_text_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "features.json").write_bytes(b"\x80")
    with pytest.raises(RepositoryError, match="not JSON"):
        load_features(tmp_path)
