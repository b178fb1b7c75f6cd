"""A model server's settings: one typed file, as ``conf/server.yaml``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from jobs import settings_file
from jobs.settings_file import SettingsError
from jobs.settings_table import Setting, markdown, rows
from model_server.batching import BatchingOptions
from model_server.errors import ModelServerError
from model_server.lifecycle import ModelConfig, VersionPolicy
from model_server.mirror import is_registry, is_url
from model_server.options import ServerOptions
from model_server.repository import is_name
from model_server.security import TlsOptions
from udfs.definition.types import DurationMs, Mistake, Strict

__all__ = [
    "ServerSettings",
    "as_yaml",
    "is_server_file",
    "load",
    "options",
    "reference",
    "worker_count",
]

_EXAMPLE = "conf/server.yaml"
_PORTS = ("port", "http_port", "admin_port", "admin_http_port", "metrics_port")
_VERSIONS = re.compile(r"all|latest(:[1-9][0-9]{0,3})?")


def _policy_of(value: object) -> object:
    whole = isinstance(value, list | tuple) and value and all(type(v) is int for v in value)
    if not (whole or (isinstance(value, str) and _VERSIONS.fullmatch(value))):
        raise ValueError(f"{value!r} is none of all, latest, latest:N or a list of versions")
    return value


class BatchingSettings(Strict):
    """How calls of several clients are put together."""

    max_rows: int = Field(1, ge=1, description="most rows of a batch; 1 for no batching")
    max_delay_us: int = Field(
        0, ge=0, description="longest that a call waits for others, in microseconds"
    )


def _models_dir(value: object) -> object:
    return value if not isinstance(value, str) or is_url(value) else Path(value)


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text!r} must be letters, digits, '.', '_' or '-', not first '.' or '-'")
    return text


class ServedModel(Strict):
    """A model."""

    name: Annotated[str, AfterValidator(_name)] = Field(description="what clients ask for")
    models_dir: Annotated[Path | str, BeforeValidator(_models_dir)] = Field(
        Path("build/models"),
        description="root of its repository: a folder, `s3://bucket/…`, or `models:/name@alias` "
        "or `models:/name/3` of MLflow's registry",
    )
    folder: str = Field("", description="its folder there; the name if empty")
    versions: Annotated[str | tuple[int, ...], BeforeValidator(_policy_of)] = Field(
        "latest", description="`latest`, `latest:N`, `all`, or a list of versions"
    )
    labels: dict[str, int] = Field(
        default_factory=dict, description="version by label, as `{stable: 3, canary: 4}`"
    )
    python_class: str = Field(
        "", description="`package.module:Class` that loads it; by its files if empty"
    )
    batching: BatchingSettings = Field(
        default_factory=lambda: BatchingSettings(), description="batching"
    )


class TlsSettings(Strict):
    """The server's identity."""

    certificate: Path = Field(description="PEM file of the certificate and its signers")
    key: Path = Field(description="PEM file of the private key")
    client_ca: Path | None = Field(
        None, description="PEM file of who signs clients; clients must then show a certificate"
    )


class LimitSettings(Strict):
    """What one server takes on."""

    message_bytes: int = Field(16 * 1024 * 1024, ge=1, description="largest message, in bytes")
    concurrent_calls: int = Field(256, ge=1, description="calls at work; more are refused")
    http_timeout: DurationMs = Field(
        75_000, ge=0, description="time of an HTTP request's head, of its body, and between two"
    )
    threads: int = Field(2, ge=1, description="calls in the pool of threads at once")


class LogSettings(Strict):
    """The log on stderr."""

    format: Literal["text", "json"] = Field(
        "text", description="`text`, or `json` with one object per line"
    )
    calls: bool = Field(False, description="log every call")


class ServerSettings(Strict):
    """Everything a model server needs to know."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8500, ge=0, le=65_535, description="port of gRPC; 0 takes a free one")
    http_port: int | None = Field(
        8501, ge=0, le=65_535, description="port of HTTP; 0 takes a free one, null opens none"
    )
    admin_port: int | None = Field(
        None, ge=0, le=65_535, description="gRPC port that also loads and unloads models"
    )
    admin_http_port: int | None = Field(
        None, ge=0, le=65_535, description="HTTP port that also loads and unloads models"
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="HTTP port of `/metrics` alone, without token or TLS; the HTTP port has it too",
    )
    models: tuple[ServedModel, ...] = Field((), description="what is served")
    model_config_file: Path | None = Field(
        None, description="instead of `models`: a TF Serving model config file (text proto)"
    )
    workers: int | Literal["cores"] = Field(
        1,
        union_mode="left_to_right",
        description="processes that share `port` and `http_port`, or `cores`; limits are of each",
    )
    model_python: str = Field(
        "",
        description="interpreter with TensorFlow or PyTorch, for the processes of their models; "
        "its own if empty",
    )
    mlflow_tracking_uri: str = Field(
        "", description="MLflow's server, for `models:/…`; MLFLOW_TRACKING_URI's if empty"
    )
    poll: DurationMs = Field(2_000, ge=0, description="time between two looks for new versions")
    grace: DurationMs = Field(10_000, ge=0, description="time that calls get when it stops")
    tls: TlsSettings | None = Field(None, description="the server's identity; plain text if none")
    token: str = Field(
        "", description="bearer token that callers must show, as `${MODEL_TOKEN}`; none if empty"
    )
    limits: LimitSettings = Field(default_factory=lambda: LimitSettings(), description="limits")
    tracing_endpoint: str = Field(
        "", description="OTLP address for OpenTelemetry's spans, as `http://collector:4317`"
    )
    log: LogSettings = Field(default_factory=lambda: LogSettings(), description="the log")

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if bool(self.models) == bool(self.model_config_file):
            yield Mistake(("models",), "give models, or a model_config_file instead")
        names = [model.name for model in self.models]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield Mistake(("models", index, "name"), f"{name!r} is there twice")
        for index, model in enumerate(self.models):
            if model.folder and is_registry(model.models_dir):
                yield Mistake(("models", index, "folder"), f"{model.models_dir} has no folders")
        if self.workers != "cores" and self.workers < 1:
            yield Mistake(("workers",), f"{self.workers} must be at least 1, or cores")
        ports = {name: getattr(self, name) for name in _PORTS}
        taken: dict[int, str] = {}
        for name, port in ports.items():
            if port and port in taken:
                yield Mistake((name,), f"{port} is {taken[port]} too")
            elif port:
                taken[port] = name


def is_server_file(path: Path) -> bool:
    """Whether a settings file is a server's and no job's.

    Raises:
        SettingsError: It is missing or no mapping in YAML.
    """
    document = settings_file.read(path, example=_EXAMPLE)
    return not {"event", "features", "key"} & document.keys()


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> ServerSettings:
    """Read, complete and check a settings file.

    Args:
        path: A YAML file.
        overrides: Dotted paths and their values, e.g. ``{"port": 0}``.

    Raises:
        SettingsError: The file is missing, not YAML, or refused; all mistakes are listed.
    """
    return settings_file.load(ServerSettings, path, overrides, example=_EXAMPLE, secrets=("token",))


def options(settings: ServerSettings) -> ServerOptions:
    """Return the settings as the server takes them.

    Raises:
        SettingsError: A class or a model config file that is named cannot be used.
    """
    tls = settings.tls
    try:
        models = _models(settings)
    except ModelServerError as exc:
        raise SettingsError(str(exc)) from exc
    return ServerOptions(
        models,
        poll_s=settings.poll / 1_000,
        host=settings.host,
        port=settings.port,
        http_port=settings.http_port,
        admin_port=settings.admin_port,
        admin_http_port=settings.admin_http_port,
        metrics_port=settings.metrics_port,
        tls=TlsOptions(tls.certificate, tls.key, tls.client_ca) if tls else None,
        token=settings.token,
        max_message_bytes=settings.limits.message_bytes,
        max_concurrent_rpcs=settings.limits.concurrent_calls,
        http_timeout_s=settings.limits.http_timeout / 1_000,
        threads=settings.limits.threads,
        workers=worker_count(settings.workers),
        grace_s=settings.grace / 1_000,
        model_python=settings.model_python,
        tracing_endpoint=settings.tracing_endpoint,
        log_format=settings.log.format,
        log_calls=settings.log.calls,
    )


def worker_count(workers: int | Literal["cores"]) -> int:
    """Return how many processes: as given, or one for each core that this one may run on."""
    return len(os.sched_getaffinity(0)) if workers == "cores" else workers


def _models(settings: ServerSettings) -> tuple[ModelConfig, ...]:
    if settings.model_config_file is not None:
        # Here, for `streamscore config` has no use for TensorFlow's messages.
        from model_server import tf_config

        return tf_config.read(settings.model_config_file)
    return tuple(_model(model, settings.mlflow_tracking_uri) for model in settings.models)


def _model(model: ServedModel, tracking_uri: str) -> ModelConfig:
    from model_server.backends import python_class

    return ModelConfig(
        model.name,
        model.models_dir,
        model.folder,
        _policy(model.versions),
        model.labels,
        BatchingOptions(model.batching.max_rows, model.batching.max_delay_us),
        python_class.loader(model.python_class) if model.python_class else None,
        tracking_uri,
    )


def _policy(versions: str | tuple[int, ...]) -> VersionPolicy:
    if not isinstance(versions, str):
        return VersionPolicy("specific", versions=versions)
    kind, _, count = versions.partition(":")
    if kind == "all":
        return VersionPolicy("all")
    return VersionPolicy("latest", int(count or 1))


def as_yaml(settings: ServerSettings) -> str:
    """The complete settings as a file's text, defaults included, the token masked."""
    document = settings.model_dump(mode="json")
    document["token"] = settings_file.MASK if settings.token else ""
    return settings_file.as_yaml(document)


def table() -> list[Setting]:
    """Every setting; the reference in conf/README.md."""
    return rows(ServerSettings)


def reference() -> str:
    """The table in Markdown."""
    return markdown(table())
