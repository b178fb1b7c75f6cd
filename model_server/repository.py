"""Model folders on disk, in TensorFlow Serving's layout.

::

    <models_dir>/<name>/<version>/model.ubj       (or model.json)
                                  features.json

``version`` is a positive whole number; the newest is the largest. ``features.json``::

    {"format": 1,
     "features": [{"name": "amount", "type": "float", "impute": 0.0}, ...],
     "config_hash": "..."}

Features stand in the order of the model's columns. ``impute`` is what a missing value becomes, or
null for NaN. ``"score": {"output": NAME}`` says which of several outputs of a model is the score.
Format 2 differs for the job alone: its ``inputs`` say how the job's features become these columns,
see ``udfs.preparation.preparation``. Other keys are kept for other readers and ignored here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_server.errors import RepositoryError

__all__ = [
    "FEATURES_FILE",
    "MODEL_FILES",
    "Feature",
    "FeatureList",
    "ModelVersion",
    "check_name",
    "file_in",
    "find_version",
    "is_name",
    "is_version",
    "list_versions",
    "load_document",
    "load_features",
    "model_file",
]

MODEL_FILES = ("model.ubj", "model.json")
FEATURES_FILE = "features.json"
_FORMATS = (1, 2)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # within the int64 of the wire


@dataclass(frozen=True)
class ModelVersion:
    """One model folder.

    Attributes:
        name: The model's name.
        version: Its number, at least 1.
        path: The folder, absolute, links resolved.
    """

    name: str
    version: int
    path: Path


@dataclass(frozen=True)
class Feature:
    """One column of the model's input.

    Attributes:
        name: The feature's name.
        impute: Value for a missing one; None for NaN.
    """

    name: str
    impute: float | None


@dataclass(frozen=True)
class FeatureList:
    """The columns of the model's input, in order.

    Attributes:
        features: One entry per column.
        config_hash: Hash of the feature configuration the model was trained with; "" if unknown.
        score: Which of the model's outputs is the score; "" if it is clear.
    """

    features: tuple[Feature, ...]
    config_hash: str
    score: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names in column order."""
        return tuple(feature.name for feature in self.features)


def is_version(text: str) -> bool:
    """Whether a folder's name is a version's."""
    return bool(_VERSION.fullmatch(text))


def is_name(text: str) -> bool:
    """Whether a model may be called so: its name is also that of a folder."""
    return bool(_NAME.fullmatch(text))


def list_versions(models_dir: Path, name: str) -> list[int]:
    """Return the versions of a model, ascending.

    Args:
        models_dir: The repository's root.
        name: The model's name.

    Raises:
        RepositoryError: The name is not allowed or there is no such folder.
    """
    model_dir = _model_dir(models_dir, name)
    try:
        entries = list(model_dir.iterdir())
    except OSError as exc:
        raise RepositoryError(
            f"cannot read the model folder {model_dir} ({exc.strerror}): "
            f"put a version there, as {model_dir / '1' / MODEL_FILES[0]}"
        ) from exc
    return sorted(
        int(entry.name) for entry in entries if _VERSION.fullmatch(entry.name) and entry.is_dir()
    )


def find_version(models_dir: Path, name: str, version: int | None = None) -> ModelVersion:
    """Find the newest version of a model, or a given one.

    Args:
        models_dir: The repository's root.
        name: The model's name.
        version: Version to take; the newest when None.

    Raises:
        RepositoryError: No such version, or it lies outside ``models_dir``.
    """
    versions = list_versions(models_dir, name)
    model_dir = _model_dir(models_dir, name)
    if not versions:
        raise RepositoryError(f"{model_dir} has no version folder: name one by a number, as 1")
    if version is not None and version not in versions:
        raise RepositoryError(f"{model_dir} has no version {version}: it has {versions}")
    chosen = versions[-1] if version is None else version
    path = _inside(models_dir, model_dir / str(chosen))
    return ModelVersion(name=name, version=chosen, path=path)


def check_name(name: str) -> None:
    """Refuse a name that a model may not have.

    Raises:
        RepositoryError: It is one.
    """
    if not is_name(name):
        raise RepositoryError(
            f"model name {name!r} is not allowed: use letters, digits, '_', '-' and '.', "
            "and do not start with '.' or '-'"
        )


def _model_dir(models_dir: Path, name: str) -> Path:
    check_name(name)
    return _inside(models_dir, models_dir / name)


def _inside(root: Path, path: Path) -> Path:
    """Resolve a path and refuse it when a link leads out of the root."""
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise RepositoryError(
            f"{path} leads to {resolved}, outside {root}: copy the model instead of linking it"
        )
    return resolved


def model_file(version_dir: Path) -> Path:
    """Return the model file of a version folder; ``model.ubj`` is preferred.

    Raises:
        RepositoryError: There is none, or it lies outside the folder's model.
    """
    for name in MODEL_FILES:
        if (version_dir / name).is_file():
            return file_in(version_dir, name)
    raise RepositoryError(
        f"{version_dir} has neither {' nor '.join(MODEL_FILES)}: "
        "save the booster there with save_model()"
    )


def file_in(version_dir: Path, name: str) -> Path:
    """Return a file of a version folder.

    Raises:
        RepositoryError: It is not there, or lies outside the model's folder.
    """
    path = version_dir / name
    if not path.is_file():
        raise RepositoryError(f"{version_dir} has no {name}: save the model there")
    return _inside(version_dir.parent, path)


def load_document(version_dir: Path) -> Mapping[str, Any]:
    """Read ``features.json`` of a version folder; of its content only the format is checked.

    Raises:
        RepositoryError: Missing, not JSON, or of another format.
    """
    path = version_dir / FEATURES_FILE
    document = _read_json(path)
    if document.get("format") not in _FORMATS:
        known = " or ".join(map(str, _FORMATS))
        raise RepositoryError(f'{path}: "format" is {document.get("format")!r}, must be {known}')
    return document


def load_features(version_dir: Path) -> FeatureList:
    """Read and check ``features.json`` of a version folder.

    Raises:
        RepositoryError: Missing, not JSON, of another format, or with a wrong feature.
    """
    path, document = version_dir / FEATURES_FILE, load_document(version_dir)
    entries = document.get("features")
    if not isinstance(entries, list) or not entries:
        raise RepositoryError(f'{path}: "features" must be a list of at least one feature')
    features = tuple(_feature(path, index, entry) for index, entry in enumerate(entries))
    _check_unique(path, features)
    score = document.get("score") or {}
    if not isinstance(score, dict) or not isinstance(score.get("output", ""), str):
        raise RepositoryError(f'{path}: "score" must be an object with the name of an "output"')
    return FeatureList(features, str(document.get("config_hash", "")), score.get("output", ""))


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(_inside(path.parent.parent, path).read_bytes())
    except OSError as exc:
        raise RepositoryError(
            f"cannot read {path} ({exc.strerror}): write it with the model, it names the columns"
        ) from exc
    except ValueError as exc:
        raise RepositoryError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise RepositoryError(f"{path} must hold a JSON object")
    return document


def _feature(path: Path, index: int, entry: object) -> Feature:
    where = f"{path}: features[{index}]"
    if not isinstance(entry, dict):
        raise RepositoryError(f"{where} must be an object")
    name, impute = entry.get("name"), entry.get("impute")
    if not isinstance(name, str) or not name:
        raise RepositoryError(f'{where}: "name" must be a text that is not empty')
    if entry.get("type") != "float":
        raise RepositoryError(f'{where} ({name}): "type" is {entry.get("type")!r}, must be "float"')
    if isinstance(impute, bool) or not isinstance(impute, int | float | None):
        raise RepositoryError(f'{where} ({name}): "impute" must be a number or null')
    return Feature(name=name, impute=None if impute is None else float(impute))


def _check_unique(path: Path, features: tuple[Feature, ...]) -> None:
    names = [feature.name for feature in features]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RepositoryError(f"{path}: features named twice: {', '.join(twice)}")
