"""A job's settings: one typed file in ``conf/``, refused at start when it is wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, Field, ValidationError

from jobs import settings_file
from jobs.outlets.settings import DeliverySettings, StoreSettings
from jobs.profiles import with_profile
from jobs.sections.across import mistakes_across
from jobs.sections.flink import BatchSettings, FlinkSettings
from jobs.sections.kafka import KafkaSettings
from jobs.sections.model import AlertSettings, ModelSettings
from jobs.sections.names import Name
from jobs.sections.ranking import FeedbackSettings, GatewaySettings, RankingSettings
from jobs.sections.secrets import WITH_SECRETS, mask
from jobs.sections.topics import KinesisSettings, TopicSettings
from jobs.sections.training import TrainingSettings
from jobs.settings_table import Setting, markdown, rows
from udfs.definition.enrichment import LookupSpec, TableSpec
from udfs.definition.event import EventSpec, LabelSpec
from udfs.definition.feature import FeatureSpec
from udfs.definition.overload import OverloadSpec, SourceSpec
from udfs.definition.privacy import PrivacySpec
from udfs.definition.rollup import RollupSpec
from udfs.definition.schema import Schema
from udfs.definition.types import Mistake, Strict, as_python

_EXAMPLE = "conf/fraud.yaml"


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
        yield from mistakes_across({name: getattr(self, name) for name in Settings.model_fields})


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
        secrets=WITH_SECRETS,
        complete=_with_defaults,
        # pydantic compares no sections while a value within one of them is wrong.
        across=lambda document: mistakes_across(_sound(document)),
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
    mask(document)
    return document


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
