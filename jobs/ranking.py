"""Content ranking: requests to ranked items, interactions to popularity and to training examples.

    events --by user--> features, candidates, one model call --> replies, impressions
    events --by item--> popularity --> compacted topic, followed by the stage above and the gateways
    events, impressions --by user--> feedback join --> examples

The cluster supplies: the topics of ``conf/feed.yaml``, a checkpoint folder and the model folder
that every TaskManager reaches and, unless ``model.embedded``, a server that speaks TensorFlow
Serving's Predict API.

Run by ``streamscore run`` or by Flink itself: ``flink run -py jobs/ranking.py --config FILE``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyflink.common import Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from jobs import keyed, pipeline, settings, sinks, sources, uids
from jobs.environment import ROOT
from jobs.inputs import Inputs, source_options
from jobs.settings import Settings
from jobs.settings_file import SettingsError
from model_server.errors import RepositoryError
from model_server.repository import ModelVersion, find_version
from udfs.batches.buckets import even_labels
from udfs.batches.routing import Routing
from udfs.enrichment.table_sources import KafkaAccess
from udfs.feedback.join import FeedbackOptions
from udfs.feedback.operator import FeedbackStage
from udfs.preparation.preparation import Preparation
from udfs.ranking.index import IndexFileError, ItemIndex
from udfs.ranking.item_stage import ItemStage
from udfs.ranking.output import COLUMNS, RankingOutput
from udfs.ranking.ranking import RankingOptions, RankingScoring, check_columns
from udfs.scoring.base import Scoring
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.served import ServedScoring
from udfs.stages.first import FirstStage

__all__ = ["build", "main"]

_AWAITED = ("predictions",)
# What nobody waits for goes and comes in batches: a record by itself costs the broker as much.
_PATIENT_SINK = {"properties.linger.ms": "50"}
_PATIENT_SOURCE = {"properties.fetch.min.bytes": "1048576"}


def build(env: StreamExecutionEnvironment, settings: Settings) -> None:
    """Wire a ranking job into an environment; ``env.execute()`` runs it.

    Raises:
        SettingsError: there is no model, or one with features that this job does not make.
    """
    version = _version(settings)
    tables = StreamTableEnvironment.create(env)
    labels = even_labels(settings.batch.buckets)
    ranked = _ranked(tables, settings, labels, version)
    _write(tables, settings, ranked, COLUMNS)
    _write(tables, settings, _popularity(tables, settings, labels, version), ("popularity",))
    _write(tables, settings, _examples(tables, settings, labels), ("examples",))
    uids.assign(env)


def _write(
    tables: StreamTableEnvironment, settings: Settings, stream: DataStream, columns: Sequence[str]
) -> None:
    options = {column: pipeline.sink_options(settings, column) for column in columns}
    for column in columns:
        if column not in _AWAITED:
            options[column] |= _PATIENT_SINK
    sinks.write(tables, stream, options, columns=columns, view=f"{columns[0]}_batches")


def _ranked(
    tables: StreamTableEnvironment,
    settings: Settings,
    labels: tuple[int, ...],
    version: ModelVersion,
) -> DataStream:
    schema = settings.schema_
    stage = FirstStage(
        schema,
        settings.key,
        Routing(labels, settings.kafka.keyed_by_record_key),
        settings.topics.events,
        pipeline.idle_ms(settings),
        settings.flink.cached_entries,
        settings.flink.journal_events,
        RankingScoring(_options(settings, version), partial(_scoring, settings)),
    )
    batches = Inputs(tables, settings, labels, {}).events()
    return (
        keyed.by_first_field(batches, Types.STRING())
        .process(stage, sinks.row_type(COLUMNS))
        .name(f"features by {settings.key}, rank")
        .uid(f"features-{settings.key}")
    )


def _popularity(
    tables: StreamTableEnvironment,
    settings: Settings,
    labels: tuple[int, ...],
    version: ModelVersion,
) -> DataStream:
    assert settings.ranking is not None
    bucket = sources.bucket_expression(labels, sources.key_from_json("item"))
    batches = _batches(tables, settings, "items", settings.topics.events, bucket)
    ranking = settings.ranking
    stage = ItemStage(version.path, ranking.weights, ranking.publish, labels)
    return (
        keyed.by_first_field(batches, Types.STRING())
        .process(stage, sinks.row_type(("popularity",)))
        .name("popularity by item")
        .uid("popularity-item")
    )


def _examples(
    tables: StreamTableEnvironment, settings: Settings, labels: tuple[int, ...]
) -> DataStream:
    feedback = settings.feedback
    topics = f"{settings.topics.events};{settings.topics.impressions}"
    bucket = sources.bucket_expression(labels, sources.key_from_record_key())
    batches = _batches(tables, settings, "feedback", topics, bucket)
    options = FeedbackOptions(feedback.window, feedback.lateness, feedback.keep_closed)
    return (
        keyed.by_first_field(batches, Types.STRING())
        .process(FeedbackStage(options, frozenset(feedback.kinds)), sinks.row_type(("examples",)))
        .name("feedback by user")
        .uid("feedback-user")
    )


def _batches(
    tables: StreamTableEnvironment, settings: Settings, name: str, topic: str, bucket: str
) -> DataStream:
    options = source_options(settings, topic) | _PATIENT_SOURCE
    options["properties.fetch.max.wait.ms"] = str(settings.batch.label_window)
    window, ends = settings.batch.label_window, settings.kafka.stop_at_end
    return sources.micro_batches(tables, name, options, bucket, window, ends=ends)


def _version(settings: Settings) -> ModelVersion:
    """The version that the job starts with."""
    model = settings.model
    try:
        found = find_version(model.path, model.name, model.version)
        names = Preparation.load(found.path).names
        ItemIndex.load(found.path)
    except (RepositoryError, IndexFileError) as exc:
        raise SettingsError(f"{exc}; train one with: streamscore train") from exc
    if unknown := check_columns(names, settings.schema_.columns):
        raise SettingsError(
            f"{found.path} was trained with features that this job does not make: "
            f"{', '.join(unknown)}; train a model with these settings: streamscore train"
        )
    return found


def _options(settings: Settings, version: ModelVersion) -> RankingOptions:
    ranking, kafka = settings.ranking, settings.kafka
    assert ranking is not None and settings.topics.popularity is not None
    return RankingOptions(
        models=settings.model.path.absolute(),
        name=settings.model.name,
        version=settings.model.version,
        reload_ms=ranking.reload,
        popularity=settings.topics.popularity,
        kafka=KafkaAccess(kafka.bootstrap_servers, tuple(kafka.python_properties().items())),
        candidates=ranking.candidate_options,
        limits=ranking.user_limits,
        kinds=frozenset(ranking.weights),
        request_columns=settings.schema_.columns,
        columns=Preparation.load(version.path).names,
        topic=settings.topics.events,
        max_rows=_max_rows(settings),
        follows=settings.model.embedded,
    )


def _max_rows(settings: Settings) -> int:
    """Rows of a call: those of one request are never parted."""
    assert settings.ranking is not None
    return max(settings.batch.max_rows, settings.ranking.candidates)


def _scoring(settings: Settings, version: ModelVersion) -> Scoring:
    """What scores a request's candidates with a version."""
    output = RankingOutput(settings.topics.events, Preparation.load(version.path))
    if settings.model.embedded:
        return EmbeddedScoring(version.path, settings.model.name, output)
    return ServedScoring(
        pipeline.client_options(settings),
        output,
        _max_rows(settings),
        settings.model.calls_in_flight,
        settings.model.rollout.absolute() if settings.model.rollout else None,
        version.path,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Build the job and hand it to the environment that Flink supplies; returns the exit code."""
    parser = argparse.ArgumentParser(description="Rank items for requests.")
    parser.add_argument("--config", type=Path, default=ROOT / "conf" / "feed.yaml")
    chosen = settings.load(parser.parse_args(argv).config)
    env = StreamExecutionEnvironment.get_execution_environment(pipeline.flink_configuration(chosen))
    build(env, chosen)
    env.execute(chosen.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
