"""A job's settings: one typed file in ``conf/``, refused at start when it is wrong.

``${NAME}`` and ``${NAME:-default}`` in any text are replaced from the environment. That is the
only way for a secret to get in: a password written in the file is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
import orjson
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from udfs.buckets import DEFAULT_MAX_PARALLELISM
from udfs.spec import (
    DurationMs,
    EventSpec,
    FeatureSpec,
    LabelSpec,
    Mistake,
    Schema,
    Strict,
    as_python,
    format_duration,
    parse_duration_ms,
)

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_SECRET = re.compile(
    r"password|secret|token|jaas|credential|private.?key|keystore.key|account.key|api.?key",
    re.IGNORECASE,
)
_MASK = "********"
_HOST_PORT = re.compile(r"[^\s,]+:\d{1,5}")


_FREE = ("kafka", "flink")
"""Sections with free properties, among which secrets can be."""


class SettingsError(ValueError):
    """The settings file cannot be used; the text says where and what to write instead."""


def _host_ports(text: str) -> str:
    if not all(_HOST_PORT.fullmatch(part.strip()) for part in text.split(",")):
        raise ValueError(f"{text!r} is not host:port")
    return text


def _host_port(text: str) -> str:
    if not _HOST_PORT.fullmatch(text):
        raise ValueError(f"{text!r} is not host:port")
    return text


class KafkaSettings(Strict):
    """The Kafka cluster."""

    bootstrap_servers: Annotated[str, AfterValidator(_host_ports)] = Field(
        "${STREAMSCORE_KAFKA:-127.0.0.1:9092}",
        description="host:port of the brokers, commas between them",
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
    server: Annotated[str, AfterValidator(_host_port)] = Field(
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
    calls_in_flight: int = Field(4, ge=1, description="Predict calls a bucket has open at once")
    breaker: BreakerSettings = Field(default_factory=lambda: BreakerSettings())
    fallback_score: float = Field(0.0, ge=0, le=1, description="score when the model cannot answer")


class BatchSettings(Strict):
    """Micro-batches: made in the JVM, one Python call each."""

    window: DurationMs = Field(10, ge=1, description="longest time a record waits for its batch")
    label_window: DurationMs = Field(100, ge=1, description="the same for labels")
    buckets: int = Field(
        2,
        ge=1,
        le=DEFAULT_MAX_PARALLELISM,
        description="key groups; bounds the parallelism, never changes",
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
        8_000_000,
        ge=1,
        description="events kept unpacked per bucket, stage and stream, about 40 bytes each",
    )
    journal_events: int = Field(
        100_000,
        ge=0,
        description="events per bucket and stage stored as they came before their keys' histories "
        "are written anew; more: less writing, larger checkpoints, slower restarts",
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
    label: str | None = Field(
        None,
        description="column of the training data with the label, 0 or 1; none: labels.value",
    )


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
        schema = as_python(self.schema_)
        schema["event"]["fields"].sort(key=lambda field: field["name"])
        return hashlib.sha256(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from _cross_mistakes({name: getattr(self, name) for name in Settings.model_fields})


def _cross_mistakes(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    """What is wrong between sections, as far as those that are given tell."""
    if sections.keys() >= Schema.model_fields.keys():
        parts = {name: sections[name] for name in Schema.model_fields}
        yield from Schema.model_construct(**parts).mistakes()
    if sections.keys() >= {"topics", "features"}:
        reads_labels = any(w.stream == "labels" for w in sections["features"].windows)
        if reads_labels and not sections["topics"].labels:
            yield Mistake(("topics", "labels"), "features read labels: name their topic")
    if "topics" in sections:
        yield from _loops(sections["topics"])
    if sections.keys() >= {"flink", "batch"}:
        parallelism, buckets = sections["flink"].parallelism, sections["batch"].buckets
        if parallelism > buckets:
            message = f"{parallelism} is more than batch.buckets {buckets}: the rest would idle"
            yield Mistake(("flink", "parallelism"), message)


def _loops(topics: TopicSettings) -> Iterator[Mistake]:
    for name in ("predictions", "alerts", "dead_letters", "duplicates"):
        topic = getattr(topics, name)
        if topic in (topics.events, topics.labels):
            yield Mistake(("topics", name), f"{topic!r} is read by the job: it would feed itself")


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
    mistakes = list(_literal_secrets(document))
    document = _expand(_with_defaults(document), (), mistakes)
    try:
        settings = Settings.model_validate(document)
    except ValidationError as exc:
        mistakes += _refused(exc, document)
    if mistakes:
        raise SettingsError(_listed(mistakes, str(path)))
    return settings


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for n, key in enumerate(keys):
            if key in keys[:n]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is written twice", node.value[n][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as exc:
        raise SettingsError(f"{path}: no such file; conf/fraud.yaml is one to start from") from exc
    except OSError as exc:
        raise SettingsError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: not YAML: {exc}") from exc
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: must be a mapping of settings, like conf/fraud.yaml")
    return document


def _set(document: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(document.get(key), dict):
            document[key] = {}
        document = document[key]
    document[keys[-1]] = value


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Spell out the defaults that name environment variables, so that they are expanded too."""
    filled = dict(document)
    for section, field in (("kafka", "bootstrap_servers"), ("model", "server")):
        values = filled.get(section, {})
        if isinstance(values, dict):
            model = Settings.model_fields[section].annotation
            assert isinstance(model, type) and issubclass(model, BaseModel)
            filled[section] = {field: model.model_fields[field].default, **values}
    return filled


def _expand(node: Any, path: tuple[int | str, ...], mistakes: list[Mistake]) -> Any:
    if isinstance(node, dict):
        return {key: _expand(value, (*path, key), mistakes) for key, value in node.items()}
    if isinstance(node, list):
        return [_expand(value, (*path, n), mistakes) for n, value in enumerate(node)]
    if not isinstance(node, str):
        return node
    for match in _VARIABLE.finditer(node):
        if _value(match) is None:
            mistakes.append(Mistake(path, f"set the environment variable {match[1]}"))
    return _VARIABLE.sub(lambda match: _value(match) or "", node)


def _value(match: re.Match[str]) -> str | None:
    """A variable's value; as in a shell, an empty one takes the default too."""
    value = os.environ.get(match[1])
    return value if value or match[2] is None else match[2]


def _literal_secrets(node: Any, path: tuple[int | str, ...] = ()) -> Iterator[Mistake]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _literal_secrets(value, (*path, str(key)))
    elif isinstance(node, str) and path[0] in _FREE and _SECRET.search(_dotted(path)):
        variables = list(_VARIABLE.finditer(node))
        if not variables or any(match[2] for match in variables):
            message = "a secret in the file; write ${A_NAME} and set it in the environment"
            yield Mistake(path, message)


def _refused(exc: ValidationError, document: dict[str, Any]) -> list[Mistake]:
    """Every mistake: pydantic compares no sections while a value within one of them is wrong."""
    found = [Mistake(error["loc"], _message(error)) for error in exc.errors()]
    return [*found, *(m for m in _cross_mistakes(_sound(document)) if m not in found)]


def _sound(document: dict[str, Any]) -> dict[str, Any]:
    """The sections that are right by themselves, defaults included."""
    sections = {}
    for name, field in Settings.model_fields.items():
        with suppress(ValidationError):
            if name in document:
                sections[name] = _checked(field, document[name])
            elif not field.is_required():
                sections[name] = field.get_default(call_default_factory=True)
    return sections


def _checked(field: FieldInfo, value: Any) -> Any:
    annotation: Any = field.annotation
    return TypeAdapter(annotation).validate_python(value)


def _listed(mistakes: list[Mistake], source: str) -> str:
    unset = {m.path for m in mistakes if m.message.startswith("set the environment variable")}
    shown = [m for m in mistakes if m.path not in unset or "environment variable" in m.message]
    rows = [f"{source}: {len(shown)} setting{'s' * (len(shown) > 1)} refused"]
    return "\n".join(rows + [f"  {_dotted(m.path) or '(whole file)'}: {m.message}" for m in shown])


def _dotted(path: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


_PLAIN_MESSAGES = {
    "missing": "required",
    "model_type": "must hold settings, one a line below it",
    "model_attributes_type": "must hold settings, one a line below it",
}


def _message(error: Any) -> str:
    loc, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        return _suggestion(loc)
    if kind in ("greater_than_equal", "less_than_equal") and _is_duration(_field_at(loc)):
        limit = format_duration(error["ctx"].get("ge", error["ctx"].get("le")))
        return f"must be at {'least' if kind == 'greater_than_equal' else 'most'} {limit}"
    text: str = _PLAIN_MESSAGES.get(kind, error["msg"])
    return text.removeprefix("Value error, ")


def _suggestion(loc: tuple[int | str, ...]) -> str:
    known = list(_model_at(loc[:-1]).model_fields)
    close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
    return f"unknown setting; {hint}"


def _field_at(loc: tuple[int | str, ...]) -> FieldInfo | None:
    names = [part for part in loc if isinstance(part, str)]
    return _model_at(tuple(names[:-1])).model_fields.get(names[-1])


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
    for free in (document["kafka"]["properties"], document["flink"]["options"]):
        free.update({name: _MASK for name in free if _SECRET.search(name)})
    return document


def as_yaml(settings: Settings) -> str:
    """The complete settings as a file's text, defaults included, secrets masked."""
    text: str = yaml.safe_dump(masked(settings), sort_keys=False, allow_unicode=True, width=100)
    return text


def summary(settings: Settings) -> str:
    """What ``streamscore config check`` says of a file that is right."""
    schema = settings.schema_
    features, stages = len(schema.columns), len(schema.stages)
    return (
        f"{features} feature{'s' * (features > 1)}, {stages} keyed stage{'s' * (stages > 1)}, "
        f"features hash {settings.features_hash[:12]}"
    )


class Setting(NamedTuple):
    """A row of the settings reference.

    Attributes:
        path: Dotted; ``[]`` stands for each entry of a list.
        type: For a reader, e.g. ``duration, at least 1ms``.
        default: As it would be written, ``required`` or ``none``.
        meaning: One line, with the unit.
    """

    path: str
    type: str
    default: str
    meaning: str


def table() -> list[Setting]:
    """Every setting; the README's reference."""
    return list(_rows(Settings, ""))


def reference() -> str:
    """The table in Markdown."""
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for path, type_name, default, meaning in table():
        shown = default if default in ("required", "none") else f"`{default}`"
        lines.append(f"| `{path}` | {type_name} | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        path = f"{prefix}{name}"
        is_list = get_origin(field.annotation) is tuple
        if inner is None or is_list or field.default is None:
            type_name = _type_name(field.annotation, tuple(field.metadata))
            yield Setting(path, type_name, _default(field), field.description or "")
        if inner is not None:
            yield from _rows(inner, f"{path}[]." if is_list else f"{path}.")


_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    datetime: "date and time",
    Path: "path",
}


_PLURALS = {"section": "sections", "duration": "durations", "text": "texts"}


def _type_name(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type in a reader's words, e.g. ``list of durations`` for ``tuple[DurationMs, ...]``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0], (*arguments[1:], *metadata))
    if _parses_duration(metadata):
        return ", ".join(["duration", *_limits(metadata, format_duration)])
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin in (Union, UnionType):
        names = [_type_name(a, metadata) for a in arguments if a is not type(None)]
        return " or ".join(dict.fromkeys(names))
    if origin is tuple:
        inner = _type_name(arguments[0])
        return f"list of {_PLURALS.get(inner, inner)}"
    if origin is dict:
        return "names and their text"
    if _model_of(annotation):
        return "section"
    return ", ".join([_TYPE_NAMES[annotation], *_limits(metadata, "{:g}".format)])


def _limits(metadata: tuple[Any, ...], show: Any) -> list[str]:
    words = {
        annotated_types.Ge: ("at least", "ge"),
        annotated_types.Gt: ("above", "gt"),
        annotated_types.Le: ("at most", "le"),
        annotated_types.Lt: ("below", "lt"),
    }
    found = [(words[type(m)], m) for m in metadata if type(m) in words]
    return [f"{word} {show(getattr(m, attribute))}" for (word, attribute), m in found]


def _parses_duration(metadata: tuple[Any, ...]) -> bool:
    return any(isinstance(m, BeforeValidator) and m.func is parse_duration_ms for m in metadata)


def _is_duration(field: FieldInfo | None) -> bool:
    return field is not None and _type_name(field.annotation, tuple(field.metadata)).startswith(
        "duration"
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return format_duration(value) if _is_duration(field) else str(value)
