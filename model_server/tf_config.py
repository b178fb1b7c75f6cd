"""TensorFlow Serving's model configuration, as a text file or in HandleReloadConfigRequest.

Taken over: names, base paths, version policies and version labels. ``model_platform`` is ignored,
for a folder's files say what it holds; custom loaders and logging are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped, unused-ignore]

from model_server.errors import InvalidRequest, RepositoryError
from model_server.lifecycle import ModelConfig, VersionPolicy
from model_server.protos import ModelServerConfig

__all__ = ["model_configs", "read"]


def read(path: Path) -> tuple[ModelConfig, ...]:
    """Read a file of ``--model_config_file``'s format, a text ModelServerConfig.

    Raises:
        RepositoryError: It cannot be read or is none.
    """
    message = ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), message)
        return model_configs(message)
    except OSError as exc:
        raise RepositoryError(f"cannot read {path}: {exc.strerror}") from exc
    except (text_format.ParseError, UnicodeDecodeError, InvalidRequest) as exc:
        raise RepositoryError(f"{path} is no ModelServerConfig: {exc}") from exc


def model_configs(message: Any) -> tuple[ModelConfig, ...]:
    """Return the models of a ModelServerConfig.

    Raises:
        InvalidRequest: It names none, names one twice, or asks for what is not supported.
    """
    if message.WhichOneof("config") != "model_config_list" or not message.model_config_list.config:
        raise InvalidRequest("ModelServerConfig must have a model_config_list with a model")
    configs = tuple(_config(entry) for entry in message.model_config_list.config)
    names = [config.name for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"Duplicate models in the configuration: {', '.join(twice)}")
    return configs


def _config(entry: Any) -> ModelConfig:
    base = Path(entry.base_path)
    if not entry.name or not base.is_absolute():
        raise InvalidRequest(
            f"model {entry.name!r} must have a name and an absolute base_path, "
            f"has {entry.base_path!r}"
        )
    labels = {label: int(version) for label, version in entry.version_labels.items()}
    return ModelConfig(
        entry.name, base.parent, base.name, _policy(entry.model_version_policy), labels
    )


def _policy(policy: Any) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    try:
        if choice == "all":
            return VersionPolicy("all")
        if choice == "specific":
            return VersionPolicy("specific", versions=tuple(policy.specific.versions))
        return VersionPolicy("latest", policy.latest.num_versions or 1)
    except ValueError as exc:
        raise InvalidRequest(f"version policy: {exc}") from exc
