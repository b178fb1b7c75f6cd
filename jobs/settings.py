"""A job's settings: one typed file in ``conf/``, refused at start when it is wrong.

``${NAME}`` and ``${NAME:-default}`` in any text are replaced from the environment. That is the
only way for a secret to get in: a password written in the file is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import orjson
import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from udfs.spec import DurationMs, EventSpec, FeatureSpec, LabelSpec, Schema, Strict, as_python

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_SECRET = re.compile(r"password|secret|token|jaas|credential|private.?key", re.IGNORECASE)


class SettingsError(ValueError):
    """The settings file cannot be used; the text says where and what to write instead."""


class KafkaSettings(Strict):
    """The Kafka cluster."""

    bootstrap_servers: str = Field(
        "${STREAMSCORE_KAFKA:-127.0.0.1:9092}", description="host:port list of the brokers"
    )
    group_id: str = Field("streamscore-fraud", description="consumer group; shows the lag")
    start: Literal["earliest", "latest", "committed"] = Field(
        "earliest", description="where a job without a checkpoint begins"
    )
    keyed_by_record_key: bool = Field(
        True,
        description="producers key records by `key`; false reads the key from each record's JSON",
    )
    stop_at_end: bool = Field(False, description="end at the offsets seen at start (a backfill)")
    properties: dict[str, str] = Field(
        default_factory=dict, description="passed to the Kafka clients, e.g. security.protocol"
    )


class TopicSettings(Strict):
    """Topic names."""

    events: str = Field("transactions", description="the events to score")
    labels: str | None = Field(None, description="late labels; none if no feature reads them")
    predictions: str = Field("predictions", description="one record per scored event")
    alerts: str = Field("alerts", description="predictions above the threshold with their event")
    dead_letters: str = Field("dead-letters", description="records that could not be scored")
    duplicates: str = Field("duplicates", description="records dropped because their id was seen")
    partitions: int = Field(4, ge=1, description="partitions of topics that `stack up` makes")


class BreakerSettings(Strict):
    """The circuit breaker before the model server."""

    failures: int = Field(5, ge=1, description="consecutive failed calls that open it")
    open_for: DurationMs = Field(1_000, ge=1, description="how long it stays open")
    trial_calls: int = Field(1, ge=1, description="calls let through while half-open")


class ModelSettings(Strict):
    """The model and how it is called."""

    name: str = Field("fraud", description="model name, as the server knows it")
    path: Path = Field(Path("build/models"), description="folder of <name>/<version>/ folders")
    version: int | None = Field(None, ge=1, description="pinned version; none takes the newest")
    embedded: bool = Field(False, description="score inside the operator, without a server")
    server: str = Field(
        "${STREAMSCORE_MODEL_SERVER:-127.0.0.1:8500}", description="host:port, gRPC"
    )
    signature: str = Field("serving_default", description="TF Serving signature")
    input: str = Field("inputs", description="name of the input tensor, float32 (rows, features)")
    output: str = Field("scores", description="name of the output tensor, (rows,) or (rows, 1)")
    deadline: DurationMs = Field(
        200, ge=1, le=10_000, description="longest wait for a score, retries included"
    )
    max_attempts: int = Field(3, ge=1, description="calls within one deadline")
    backoff: DurationMs = Field(10, ge=1, description="first pause before a retry; doubles")
    calls_in_flight: int = Field(16, ge=1, description="Predict calls an operator has open at once")
    breaker: BreakerSettings = Field(default_factory=lambda: BreakerSettings())
    fallback_score: float = Field(0.0, ge=0, le=1, description="score when the model cannot answer")


class BatchSettings(Strict):
    """Micro-batches: made in the JVM, one Python call each."""

    window: DurationMs = Field(10, ge=1, description="longest time a record waits for its batch")
    label_window: DurationMs = Field(100, ge=1, description="the same for labels")
    buckets: int = Field(
        2, ge=1, le=1_024, description="key groups; bounds the parallelism, never changes"
    )
    max_rows: int = Field(512, ge=1, le=65_536, description="most rows in one Predict call")


class AlertSettings(Strict):
    """When a prediction becomes an alert."""

    threshold: float = Field(0.85, ge=0, le=1, description="a score above it is an alert")
    explain: bool = Field(True, description="ask for the three largest feature contributions")


class FlinkSettings(Strict):
    """How Flink runs the job."""

    parallelism: int = Field(1, ge=1, description="subtasks per operator")
    checkpoint_interval: DurationMs = Field(60_000, ge=100, description="time between checkpoints")
    checkpoint_dir: str = Field(
        "build/checkpoints", description="a folder or URL that every TaskManager reaches"
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="exactly_once shows predictions only at the next checkpoint",
    )
    restart_attempts: int = Field(100, ge=0, description="restarts before the job fails")
    restart_delay: DurationMs = Field(1_000, ge=0, description="pause before a restart")
    state_backend: Literal["hashmap", "rocksdb"] = Field("hashmap", description="keyed state")
    state_ttl: DurationMs | None = Field(
        None,
        description="idle keys are dropped after this processing time; none: twice the horizon",
    )
    cached_entries: int = Field(
        8_000_000, ge=1, description="events kept unpacked per bucket and stage, 36 bytes each"
    )
    web_port: int | None = Field(None, description="port of a local run's web page; none: free one")
    options: dict[str, str] = Field(default_factory=dict, description="any other Flink option")


class TrainingSettings(Strict):
    """How `streamscore train` makes a model."""

    train_fraction: float = Field(0.7, gt=0, lt=1, description="earliest part of time trained on")
    trees: int = Field(200, ge=1, description="boosting rounds")
    depth: int = Field(6, ge=1, description="depth of a tree")
    learning_rate: float = Field(0.1, gt=0, description="shrinkage of each tree")
    seed: int = Field(42, description="random seed")


class Settings(Strict):
    """Everything a job needs to know."""

    name: str = Field(description="the job's name; also the prefix of its transactional ids")
    key: str = Field(description="field that records are keyed by; the first features' key")
    kafka: KafkaSettings = Field(default_factory=lambda: KafkaSettings(), description="brokers")
    topics: TopicSettings = Field(default_factory=lambda: TopicSettings(), description="topics")
    event: EventSpec = Field(description="schema of an event")
    labels: LabelSpec | None = Field(None, description="schema of a late label")
    features: FeatureSpec = Field(description="what the model gets to see")
    model: ModelSettings = Field(default_factory=lambda: ModelSettings(), description="the model")
    alerts: AlertSettings = Field(default_factory=lambda: AlertSettings(), description="alerts")
    batch: BatchSettings = Field(default_factory=lambda: BatchSettings(), description="batches")
    flink: FlinkSettings = Field(default_factory=lambda: FlinkSettings(), description="Flink")
    training: TrainingSettings = Field(
        default_factory=lambda: TrainingSettings(), description="training"
    )

    @property
    def schema_(self) -> Schema:
        """Events, labels and features, checked against each other."""
        return Schema(event=self.event, key=self.key, labels=self.labels, features=self.features)

    @property
    def features_hash(self) -> str:
        """SHA-256 of all that decides a feature's value; a model carries that of its training."""
        text = orjson.dumps(as_python(self.schema_), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(text).hexdigest()

    @model_validator(mode="after")
    def _check(self) -> Self:
        schema = self.schema_
        if any(w.stream == "labels" for w in schema.features.windows) and not self.topics.labels:
            raise ValueError("features read labels: name their topic in topics.labels")
        if self.flink.parallelism > self.batch.buckets:
            raise ValueError(
                f"flink.parallelism {self.flink.parallelism} is more than "
                f"batch.buckets {self.batch.buckets}: the rest would idle"
            )
        return self


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read, complete and check a settings file.

    Args:
        path: A YAML file.
        overrides: Dotted paths and their values, e.g. ``{"model.embedded": True}``.

    Raises:
        SettingsError: the file is missing, not YAML, or refused; all mistakes are listed.
    """
    document = _read(Path(path))
    for dotted, value in (overrides or {}).items():
        _set(document, dotted.split("."), value)
    _refuse_literal_secrets(document, str(path))
    try:
        return Settings.model_validate(_expand(_with_defaults(document), str(path)))
    except ValidationError as exc:
        raise SettingsError(_explain(exc, str(path))) from exc


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise SettingsError(f"{path}: no such file; conf/fraud.yaml is one to start from") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: not YAML: {exc}") from exc
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: must be a mapping of settings, like conf/fraud.yaml")
    return document


def _set(document: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        document = document.setdefault(key, {})
    document[keys[-1]] = value


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Spell out the defaults that name environment variables, so that they are expanded too."""
    filled = dict(document)
    for section, field in (("kafka", "bootstrap_servers"), ("model", "server")):
        values = filled.get(section) or {}
        if isinstance(values, dict):
            model = Settings.model_fields[section].annotation
            assert isinstance(model, type) and issubclass(model, BaseModel)
            filled[section] = {field: model.model_fields[field].default, **values}
    return filled


def _expand(node: Any, source: str) -> Any:
    if isinstance(node, dict):
        return {key: _expand(value, source) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, source) for value in node]
    return _VARIABLE.sub(lambda m: _variable(m, source), node) if isinstance(node, str) else node


def _variable(match: re.Match[str], source: str) -> str:
    value = os.environ.get(match[1], match[2])
    if value is None:
        raise SettingsError(f"{source}: set the environment variable {match[1]}")
    return value


def _refuse_literal_secrets(node: Any, source: str, path: str = "") -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            _refuse_literal_secrets(value, source, f"{path}.{key}" if path else str(key))
    elif isinstance(node, str) and _SECRET.search(path) and not _VARIABLE.search(node):
        raise SettingsError(
            f"{source}: {path} is a secret in the file; "
            "write ${A_NAME} and set it in the environment"
        )


def _explain(exc: ValidationError, source: str) -> str:
    rows = [f"{source}: {exc.error_count()} setting(s) refused"]
    for error in exc.errors():
        where = ".".join(str(part) for part in error["loc"]) or "(whole file)"
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = _suggestion(error["loc"])
        rows.append(f"  {where}: {message}")
    return "\n".join(rows)


def _suggestion(loc: tuple[int | str, ...]) -> str:
    known = list(_model_at(loc[:-1]).model_fields)
    close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"unknown setting; {hint}"


def _model_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_of(model.model_fields[part].annotation) or model
    return model


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_of, get_args(annotation)) if m), None)


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain types with the secrets' values hidden, to be shown."""
    document = settings.model_dump(mode="json")
    properties = document["kafka"]["properties"]
    for name in properties:
        if _SECRET.search(name):
            properties[name] = "********"
    return document


def table() -> list[tuple[str, str, str, str]]:
    """Every setting: dotted path, type, default, doc line; the README's reference."""
    return list(_rows(Settings, ""))


def _rows(model: type[BaseModel], prefix: str) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        path = f"{prefix}{name}"
        if inner is not None:
            many = "tuple" in str(field.annotation)
            rows += _rows(inner, f"{path}[]." if many else f"{path}.")
            continue
        rows.append((path, _type_name(field.annotation), _default(field), field.description or ""))
    return rows


def _type_name(annotation: Any) -> str:
    text = str(annotation).replace("typing.", "")
    if isinstance(annotation, type):
        return annotation.__name__
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None else str(value)
