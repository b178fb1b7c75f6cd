"""What is wrong between the sections of a job's settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.outlets.columns import taken_names
from jobs.sections.kafka import KafkaSettings
from jobs.sections.topics import TopicSettings
from jobs.sections.training import TrainingSettings
from udfs.definition.enrichment import LookupSpec
from udfs.definition.feature import FeatureSpec
from udfs.definition.overload import OverloadSpec
from udfs.definition.rollup import RollupSpec
from udfs.definition.schema import Schema
from udfs.definition.types import Mistake


def mistakes_across(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    """What is wrong between sections, as far as those that are given tell.

    Args:
        sections: Those that are right by themselves, by name.
    """
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
        yield from _unfit_to_shed(sections)
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


def _unfit_to_shed(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    overload: OverloadSpec = sections["overload"]
    yield from _of_a_job_that_sheds_none(sections)
    if "event" in sections:
        for path, message in overload.unfit(sections["event"]):
            yield Mistake(("overload", *path), message)
    if "topics" in sections and sections["topics"].shed is None:
        yield Mistake(("topics", "shed"), "overload writes there what it sheds: name the topic")


def _of_a_job_that_sheds_none(sections: Mapping[str, Any]) -> Iterator[Mistake]:
    if "kafka" in sections and sections["kafka"].stop_at_end:
        message = "a job that stops at the end reads what is old: remove overload"
        yield Mistake(("overload",), message)
    if sections.get("rollup") is not None:
        message = "the events are windows, and one without some readings is another one: remove it"
        yield Mistake(("overload",), message)
    if sections.get("ranking") is not None:
        message = "each request has somebody who waits: limit gateway.in_flight, and remove it"
        yield Mistake(("overload",), message)


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
