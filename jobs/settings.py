"""A job's settings: one typed file in ``conf/``, refused at start when it is wrong."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from jobs import settings_file
from jobs.kafka_settings import HostPorts, KafkaSettings
from jobs.outlets.columns import taken_names
from jobs.outlets.settings import DeliverySettings, StoreSettings
from jobs.overload_settings import overload_mistakes
from jobs.profiles import with_profile
from jobs.ranking_settings import (
    FeedbackSettings,
    GatewaySettings,
    RankingSettings,
    RankingTraining,
)
from jobs.settings_file import SECRET
from jobs.settings_table import Setting, markdown, rows
from udfs.batches.buckets import DEFAULT_MAX_PARALLELISM
from udfs.definition.enrichment import LookupSpec, TableSpec
from udfs.definition.episode import EpisodeSpec
from udfs.definition.event import EventSpec, LabelSpec
from udfs.definition.feature import FeatureSpec
from udfs.definition.overload import OverloadSpec, SourceSpec
from udfs.definition.privacy import PrivacySpec
from udfs.definition.rollup import RollupSpec
from udfs.definition.schema import Schema
from udfs.definition.types import DurationMs, Mistake, Strict, as_python, format_duration

_EXAMPLE = "conf/fraud.yaml"
_NAME, _TOPIC = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", r"[A-Za-z0-9._-]{1,249}"


def _name(text: str) -> str:
    if not re.fullmatch(_NAME, text):
        raise ValueError(f"{text!r} is no name: letters, digits, dots, dashes and underscores")
    return text


def _topic(text: str) -> str:
    if not re.fullmatch(_TOPIC, text) or text in (".", ".."):
        raise ValueError(f"{text!r} is no topic: letters, digits, dots, dashes and underscores")
    return text


Name = Annotated[str, AfterValidator(_name)]
Topic = Annotated[str, AfterValidator(_topic)]
_WITH_SECRETS = (
    "kafka",
    "kinesis",
    "flink",
    "model",
    "lookups",
    "privacy",
    "delivery",
    "store",
    "gateway",
)
"""Sections in which secrets can be, among free properties or as a token."""


class KinesisSettings(Strict):
    """A stream of events on Amazon Kinesis, in place of the events' topic."""

    stream_arn: str = Field(description="ARN of the stream, arn:aws:kinesis:...")
    region: str = Field(description="AWS region of the stream, as eu-central-1")
    jar: Path = Field(description="Flink's Kinesis SQL connector, a jar with all it needs")
    start: Literal["earliest", "latest"] = Field(
        "earliest", description="where a job without a checkpoint begins"
    )
    options: dict[str, str] = Field(
        default_factory=dict, description="passed to the connector, e.g. source.reader.type"
    )


class TopicSettings(Strict):
    """Topic names."""

    events: Topic = Field("transactions", description="the events to score")
    labels: Topic | None = Field(None, description="late labels; none if no feature reads them")
    predictions: Topic = Field("predictions", description="one record per scored event")
    alerts: Topic = Field("alerts", description="predictions above the threshold with their event")
    dead_letters: Topic = Field("dead-letters", description="records that could not be scored")
    duplicates: Topic = Field("duplicates", description="records dropped because their id was seen")
    shed: Topic | None = Field(None, description="events that `overload` has shed, with the reason")
    shadow: Topic | None = Field(None, description="a rollout's shadow answers; none drops them")
    impressions: Topic | None = Field(
        None, description="a ranking job's: what was ranked for a request, with its features"
    )
    examples: Topic | None = Field(
        None, description="a ranking job's: impressions with their labels, to train on"
    )
    popularity: Topic | None = Field(
        None, description="a ranking job's: popularity by item, compacted"
    )
    partitions: int = Field(4, ge=1, description="partitions of topics that `stack up` makes")


class BreakerSettings(Strict):
    """The circuit breaker before the model server."""

    failures: int = Field(5, ge=1, description="consecutive failed calls that open it")
    open_for: DurationMs = Field(1_000, ge=1, description="how long it stays open")
    trial_calls: int = Field(1, ge=1, description="calls let through while half-open")


class ModelTlsSettings(Strict):
    """How the job knows its model servers, and they it."""

    ca: Path | None = Field(None, description="PEM file of who signs servers; the system's if none")
    certificate: Path | None = Field(
        None, description="PEM file of the job's certificate, for servers that ask for one"
    )
    key: Path | None = Field(None, description="PEM file of its private key")
    server_name: str = Field(
        "", description="name in the server's certificate, if not the address's"
    )

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if (self.certificate is None) != (self.key is None):
            yield Mistake(("certificate",), "certificate and key belong together")


class ModelSettings(Strict):
    """The model and how it is called."""

    name: Name = Field("fraud", description="model name, as the server knows it")
    path: Path = Field(Path("build/models"), description="folder of <name>/<version>/ folders")
    version: int | None = Field(None, ge=1, description="pinned version; none takes the newest")
    embedded: bool = Field(False, description="score inside the operator, without a server")
    follow: DurationMs = Field(
        2_000,
        description="embedded and without `version`: how often to look for a newer version, or "
        "for the one that serve.json beside the versions names; 0 for never",
    )
    server: HostPorts = Field(
        "${STREAMSCORE_MODEL_SERVER:-127.0.0.1:8500}",
        description="host:port, gRPC; of several servers, commas between them",
    )
    tls: ModelTlsSettings | None = Field(None, description="TLS to the server; plain text if none")
    token: str = Field("", description="bearer token to show, as `${MODEL_TOKEN}`; none if empty")
    protocol: Literal["tfserving", "oip"] = Field(
        "tfserving",
        description="what the server speaks; `oip`: the Open Inference Protocol, as MLServer",
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
    retry_budget: float = Field(
        0.2, ge=0, description="retries for each call, on average; 0.2 is one for five"
    )
    hedge: DurationMs = Field(
        0, ge=0, description="wait after which a second server is asked too; 0 for never"
    )
    breaker: BreakerSettings = Field(default_factory=lambda: BreakerSettings())
    rollout: Path | None = Field(
        None,
        description="file that sends a share of the keys to another version or server; "
        "`streamscore rollout` writes it",
    )
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
    episodes: EpisodeSpec | None = Field(
        None, description="one alert per stretch of high scores; none: one per score above"
    )


class FlinkSettings(Strict):
    """How Flink runs the job."""

    profile: Literal["latency", "throughput", "large-state"] | None = Field(
        None,
        description="settings and options that conf/flink.yaml has for a purpose; own ones win",
    )
    parallelism: int = Field(1, ge=1, description="subtasks per operator")
    checkpoint_interval: DurationMs = Field(60_000, ge=100, description="time between checkpoints")
    checkpoint_dir: str = Field(
        "build/checkpoints", description="a folder or URL that every TaskManager reaches"
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="exactly_once shows predictions only at the next checkpoint",
    )
    transaction_timeout: DurationMs = Field(
        600_000,
        ge=1_000,
        description="exactly_once: how long Kafka keeps a transaction open, so the longest outage "
        "that loses nothing; at most the broker's transaction.max.timeout.ms",
    )
    restart_attempts: int = Field(100, ge=0, description="restarts before the job fails")
    restart_delay: DurationMs = Field(1_000, ge=0, description="pause before a restart")
    state_backend: Literal["hashmap", "rocksdb"] = Field("hashmap", description="keyed state")
    state_ttl: DurationMs | None = Field(
        None,
        description="idle keys are dropped after this event time; none: twice the horizon",
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

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        shortest = 2 * self.checkpoint_interval
        if self.delivery == "exactly_once" and self.transaction_timeout < shortest:
            message = f"must be at least two checkpoint intervals, {format_duration(shortest)}"
            yield Mistake(("transaction_timeout",), message)


class TrainingSettings(Strict):
    """How `streamscore train` makes a model."""

    kind: Literal["xgboost", "isolation_forest", "autoencoder"] = Field(
        "xgboost",
        description="`xgboost`: from labels of both kinds; `isolation_forest` and `autoencoder`: "
        "from normal rows, those of label 0, alone",
    )
    train_fraction: float = Field(0.7, gt=0, lt=1, description="earliest part of time trained on")
    trees: int = Field(200, ge=1, description="boosting rounds, or trees of an isolation_forest")
    depth: int = Field(6, ge=1, description="depth of a boosted tree")
    learning_rate: float = Field(0.1, gt=0, description="shrinkage of each boosted tree")
    max_samples: int = Field(256, ge=2, description="rows that a tree of an isolation_forest sees")
    epochs: int = Field(60, ge=1, description="passes of an autoencoder's training over the rows")
    torch_python: Path | None = Field(
        None, description="interpreter that trains an autoencoder; none: this one, with PyTorch"
    )
    seed: int = Field(42, description="random seed")
    label: str | None = Field(
        None,
        description="column of the training data with the label, 0 or 1; none: labels.value",
    )
    ranking: RankingTraining = Field(
        default_factory=lambda: RankingTraining(), description="of a ranking job"
    )


class Settings(Strict):
    """Everything a job needs to know."""

    name: Name = Field(description="the job's name; also the prefix of its transactional ids")
    key: str = Field(description="field that records are keyed by; the first features' key")
    kafka: KafkaSettings = Field(default_factory=lambda: KafkaSettings(), description="brokers")
    kinesis: KinesisSettings | None = Field(
        None, description="where the events are read in place of `topics.events`"
    )
    topics: TopicSettings = Field(default_factory=lambda: TopicSettings(), description="topics")
    event: EventSpec = Field(description="schema of an event")
    labels: LabelSpec | None = Field(None, description="schema of a late label")
    rollup: RollupSpec | None = Field(
        None, description="windows of readings that go on as one event each; none: every event does"
    )
    features: FeatureSpec = Field(description="what the model gets to see")
    tables: tuple[TableSpec, ...] = Field((), description="reference tables joined to events")
    lookups: tuple[LookupSpec, ...] = Field(
        (), description="stores that are asked for features before the model is called"
    )
    privacy: PrivacySpec | None = Field(None, description="how sensitive fields are hidden")
    model: ModelSettings = Field(default_factory=lambda: ModelSettings(), description="the model")
    alerts: AlertSettings = Field(default_factory=lambda: AlertSettings(), description="alerts")
    batch: BatchSettings = Field(default_factory=lambda: BatchSettings(), description="batches")
    source: SourceSpec = Field(
        default_factory=lambda: SourceSpec(), description="how fast sources are read"
    )
    overload: OverloadSpec | None = Field(
        None, description="what is shed when there is too much; none: everything waits"
    )
    flink: FlinkSettings = Field(default_factory=lambda: FlinkSettings(), description="Flink")
    training: TrainingSettings = Field(
        default_factory=lambda: TrainingSettings(), description="training"
    )
    ranking: RankingSettings | None = Field(
        None, description="makes the job one that ranks items for requests"
    )
    feedback: FeedbackSettings = Field(
        default_factory=lambda: FeedbackSettings(), description="labels of what was ranked"
    )
    gateway: GatewaySettings = Field(
        default_factory=lambda: GatewaySettings(), description="HTTP before a ranking job"
    )
    delivery: DeliverySettings | None = Field(
        None, description="where `streamscore deliver` takes alerts"
    )
    store: StoreSettings | None = Field(
        None, description="where `streamscore store run` keeps predictions"
    )

    @property
    def schema_(self) -> Schema:
        """Events, labels and features, checked against each other."""
        return Schema(**Schema.parts(dict(self)))

    @property
    def features_hash(self) -> str:
        """SHA-256 of all that decides a feature's value; a model carries that of its training."""
        schema = as_python(self.schema_)
        schema["event"]["fields"].sort(key=lambda field: field["name"])
        del schema["privacy"]
        for field in schema["event"]["fields"]:
            del field["sensitive"]  # changes what is shown, not a feature
        for name, specs in (("tables", self.tables), ("lookups", self.lookups)):
            schema[name] = [spec.identity for spec in specs]
            if not specs:  # what it was before there were any
                del schema[name]
        if self.rollup is None:
            del schema["rollup"], schema["readings"]
        return hashlib.sha256(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from _cross_mistakes({name: getattr(self, name) for name in Settings.model_fields})


def _cross_mistakes(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    """What is wrong between sections, as far as those that are given tell."""
    yield from _schema_mistakes(sections)
    if sections.keys() >= {"topics", "features"}:
        reads_labels = any(w.stream == "labels" for w in sections["features"].windows)
        if reads_labels and not sections["topics"].labels:
            yield Mistake(("topics", "labels"), "features read labels: name their topic")
    if sections.keys() >= {"kafka", "kinesis"} and sections["kinesis"] is not None:
        yield from _not_of_kinesis(sections["kafka"])
    if "model" in sections and sections["model"].embedded and sections["model"].rollout:
        message = "an embedded model has no rollout: set model.embedded to false"
        yield Mistake(("model", "rollout"), message)
    if "kafka" in sections and sections["kafka"].align != "off":
        yield from _not_aligned(sections)
    if sections.keys() >= {"lookups", "model"} and not sections["model"].embedded:
        yield from _no_time_left(sections["lookups"], sections["model"].deadline)
    if sections.get("overload") is not None:
        yield from overload_mistakes(sections)
    if "topics" in sections:
        yield from _loops(sections["topics"])
        if sections.get("ranking"):
            yield from _unfit_for_ranking(sections)
    if sections.keys() >= {"training", "features"}:
        yield from _unknown_to_a_model(sections["training"], sections["features"])
    if sections.keys() >= {"flink", "batch"}:
        parallelism, buckets = sections["flink"].parallelism, sections["batch"].buckets
        if parallelism > buckets:
            message = f"{parallelism} is more than batch.buckets {buckets}: the rest would idle"
            yield Mistake(("flink", "parallelism"), message)


def _not_of_kinesis(kafka: KafkaSettings) -> Iterator[Mistake]:
    if kafka.keyed_by_record_key:
        message = "the connector does not tell a record's partition key: set it to false"
        yield Mistake(("kafka", "keyed_by_record_key"), message)
    if kafka.stop_at_end:
        yield Mistake(("kafka", "stop_at_end"), "a Kinesis stream has no end: set it to false")


def _schema_mistakes(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    if not sections.keys() >= Schema.model_fields.keys() - {"readings"}:
        return
    rollup: RollupSpec | None = sections["rollup"]
    unfit = [*rollup.unfit(sections["event"], sections["key"])] if rollup is not None else []
    if unfit:  # features over windows that cannot be made tell nothing
        yield from (Mistake(("rollup", *path), message) for path, message in unfit)
        return
    schema = Schema.model_construct(**Schema.parts(sections))
    yield from schema.mistakes()
    if sections.get("store") is not None and (taken := taken_names(schema.columns)):
        message = f"features named as columns of a stored prediction: {', '.join(taken)}"
        yield Mistake(("store",), f"{message}; rename them")
    if "alerts" in sections and (episodes := sections["alerts"].episodes) is not None:
        for path, message in episodes.unfit(schema.known, schema.columns):
            yield Mistake(("alerts", "episodes", *path), message)


def _not_aligned(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    kafka = sections["kafka"]
    if kafka.stop_at_end:
        yield Mistake(("kafka", "align"), "a job that stops at the end reads as it comes: set off")
    if sections.get("kinesis"):
        yield Mistake(("kafka", "align"), "a Kinesis stream is not kept in step: set off")
    event = sections.get("event")
    if kafka.align == "event_time" and event and event.time.format == "iso8601":
        yield Mistake(("kafka", "align"), "an event time that is text has no order: set kafka_time")


def _no_time_left(lookups: tuple[LookupSpec, ...], deadline_ms: int) -> Iterator[Mistake]:
    for n, lookup in enumerate(lookups):
        if lookup.deadline >= deadline_ms:
            message = f"must be below model.deadline, {deadline_ms}ms: the model needs the rest"
            yield Mistake(("lookups", n, "deadline"), message)


def _unfit_for_ranking(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    for name in ("impressions", "examples", "popularity"):
        if getattr(sections["topics"], name) is None:
            yield Mistake(("topics", name), "a ranking job writes it: name the topic")
    for n, field in enumerate(sections["event"].fields if "event" in sections else ()):
        if field.sensitive:
            message = "a ranking job answers with users and items as they are: it hides none"
            yield Mistake(("event", "fields", n, "sensitive"), message)
    if "batch" in sections and sections["batch"].max_rows < sections["ranking"].candidates:
        message = "must hold the candidates of a request, which are one call"
        yield Mistake(("batch", "max_rows"), message)


def _unknown_to_a_model(training: TrainingSettings, features: FeatureSpec) -> Iterator[Mistake]:
    if training.kind == "xgboost":
        return
    spec = features.preparation
    places: dict[tuple[str, ...], Any] = {("default",): spec.default}
    places |= {("columns", name, "impute"): c.impute for name, c in spec.columns.items()}
    for place, impute in places.items():
        if impute == "none":
            message = f"an {training.kind} has no place for a missing value: impute a number"
            yield Mistake(("features", "preparation", *place), message)


def _loops(topics: TopicSettings) -> Iterator[Mistake]:
    for name in (
        "predictions",
        "alerts",
        "dead_letters",
        "duplicates",
        "shed",
        "shadow",
        "examples",
    ):
        topic = getattr(topics, name)
        if topic is not None and topic in (topics.events, topics.labels):
            yield Mistake(("topics", name), f"{topic!r} is read by the job: it would feed itself")


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read, complete and check a settings file.

    Args:
        path: A YAML file.
        overrides: Dotted paths and their values, e.g. ``{"model.embedded": True}``.

    Raises:
        SettingsError: the file is missing, not YAML, or refused; all mistakes are listed.
    """
    return settings_file.load(
        Settings,
        Path(path),
        overrides,
        example=_EXAMPLE,
        secrets=_WITH_SECRETS,
        complete=_with_defaults,
        # pydantic compares no sections while a value within one of them is wrong.
        across=lambda document: _cross_mistakes(_sound(document)),
    )


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Spell out the defaults that name environment variables, so that they are expanded too."""
    filled = with_profile(document)
    for section, field in (("kafka", "bootstrap_servers"), ("model", "server")):
        values = filled.get(section, {})
        if isinstance(values, dict):
            model = Settings.model_fields[section].annotation
            assert isinstance(model, type) and issubclass(model, BaseModel)
            filled[section] = {field: model.model_fields[field].default, **values}
    return filled


def _sound(document: dict[str, Any]) -> dict[str, Any]:
    """The sections that are right by themselves, defaults included."""
    sections = {}
    for name, field in Settings.model_fields.items():
        with suppress(ValidationError):
            if name in document:
                sections[name] = settings_file.checked(field, document[name])
            elif not field.is_required():
                sections[name] = field.get_default(call_default_factory=True)
    return sections


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain types with the secrets' values hidden, to be shown."""
    document = settings.model_dump(mode="json")
    kafka = document["kafka"]
    for free in (kafka["properties"], kafka["client_properties"], document["flink"]["options"]):
        free.update({name: settings_file.MASK for name in free if SECRET.search(name)})
    for name in ("password", "client_secret"):
        if kafka["sasl"] and kafka["sasl"][name]:
            kafka["sasl"][name] = settings_file.MASK
    if document["privacy"]:
        document["privacy"]["key"] = settings_file.MASK
    if document["kinesis"]:
        options = document["kinesis"]["options"]
        options.update({name: settings_file.MASK for name in options if SECRET.search(name)})
    for section in ("model", "gateway"):
        if document[section]["token"]:
            document[section]["token"] = settings_file.MASK
    _mask_outlets(document)
    for lookup in document["lookups"]:
        store = lookup["redis"] or lookup["postgres"]
        if store and store["password"]:
            store["password"] = settings_file.MASK
    return document


def _mask_outlets(document: dict[str, Any]) -> None:
    """A webhook's URL is often its only secret."""
    webhook = (document["delivery"] or {}).get("webhook")
    postgres = (document["store"] or {}).get("postgres")
    for section, names in ((webhook, ("url", "token")), (postgres, ("password",))):
        for name in names:
            if section and section[name]:
                section[name] = settings_file.MASK


def as_yaml(settings: Settings) -> str:
    """The complete settings as a file's text, defaults included, secrets masked."""
    return settings_file.as_yaml(masked(settings))


def summary(settings: Settings) -> str:
    """What ``streamscore config check`` says of a file that is right."""
    schema = settings.schema_
    features, stages = len(schema.columns), len(schema.stages)
    return (
        f"{features} feature{'s' * (features > 1)}, {stages} keyed stage{'s' * (stages > 1)}, "
        f"features hash {settings.features_hash[:12]}"
    )


def table() -> list[Setting]:
    """Every setting; the reference in conf/README.md."""
    return rows(Settings)


def reference() -> str:
    """The table in Markdown."""
    return markdown(table())
