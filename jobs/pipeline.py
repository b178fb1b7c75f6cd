"""The shape every scoring job shares: micro-batches, a keyed stage per key, scoring, sinks.

Kafka -> JVM: bucket, 10 ms window, join -> FirstStage -> NextStage ..., score -> JVM: split
                                             (Python in the TaskManager's own process)  -> Kafka
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyflink.common import Configuration, Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from jobs import keyed, sinks, sources, uids
from jobs.enrichment import lookups_of, tables_of
from jobs.settings import ModelTlsSettings, Settings
from jobs.settings_file import SettingsError
from model_server.breaker import BreakerOptions
from model_server.client import ClientOptions
from model_server.endpoints import ChannelSecurity
from model_server.errors import RepositoryError
from model_server.repository import ModelVersion, find_version, load_features
from udfs.alerting.feed import EpisodeFeed
from udfs.alerting.operator import SCORED, EpisodeOperator
from udfs.alerting.scored import ScoredColumns
from udfs.batches.buckets import DEFAULT_MAX_PARALLELISM, even_labels
from udfs.batches.privacy import Privacy
from udfs.batches.records import RecordWriter
from udfs.operators import FirstStage, LabelReader, NextStage, Routing
from udfs.preparation.preparation import Preparation
from udfs.rollup.operator import RollupStage
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.scoring import Output, Scoring, ServedScoring

logger = logging.getLogger(__name__)

_MONTH_S = 30 * 86_400
_BATCH = Types.PICKLED_BYTE_ARRAY()
_ROUTED = Types.ROW([Types.INT(), _BATCH])


def flink_configuration(
    settings: Settings, target: Mapping[str, str] | None = None
) -> Configuration:
    """The Flink options of a job; ``target`` says where it runs, ``flink.options`` win."""
    configuration = Configuration()
    for name, value in flink_options(settings, target).items():
        configuration.set_string(name, value)
    return configuration


def flink_options(settings: Settings, target: Mapping[str, str] | None = None) -> dict[str, str]:
    """``flink_configuration`` as plain texts."""
    flink = settings.flink
    options = {
        "parallelism.default": str(flink.parallelism),
        "pipeline.max-parallelism": str(DEFAULT_MAX_PARALLELISM),
        "pipeline.name": settings.name,
        # Without it UNNEST copies a whole batch for each of its records.
        "pipeline.object-reuse": "true",
        "python.execution-mode": "thread",
        "execution.buffer-timeout.interval": "0 ms",
        "execution.checkpointing.interval": f"{flink.checkpoint_interval} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.unaligned.enabled": "false",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.dir": _as_url(flink.checkpoint_dir),
        "state.backend.type": flink.state_backend,
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": str(flink.restart_attempts),
        "restart-strategy.fixed-delay.delay": f"{flink.restart_delay} ms",
        "table.exec.sink.not-null-enforcer": "DROP",
        "table.exec.source.idle-timeout": "0 ms",
    }
    return options | {**(target or {}), **flink.options}


def _as_url(folder: str) -> str:
    return folder if "://" in folder else Path(folder).absolute().as_uri()


def build(env: StreamExecutionEnvironment, settings: Settings) -> None:
    """Wire a scoring job into an environment; ``env.execute()`` runs it.

    Args:
        env: An environment with ``flink_configuration``.
        settings: The job's settings.

    Raises:
        SettingsError: there is no model, or one that was trained with other features.
    """
    model = _model(settings)
    tables = StreamTableEnvironment.create(env)
    labels = even_labels(settings.batch.buckets)
    scored = _stages(tables, settings, labels, _scoring(settings, model))
    wanted = [column for column in sinks.COLUMNS if getattr(settings.topics, column)]
    options = {column: _sink_options(settings, column) for column in wanted}
    sinks.write(tables, scored, options, _episodes(settings, scored))
    uids.assign(env)


def _stages(
    tables: StreamTableEnvironment,
    settings: Settings,
    labels: tuple[int, ...],
    scoring: Scoring,
) -> DataStream:
    schema = settings.schema_
    ttl_s = _ttl_s(settings)
    stream = _events(tables, settings, labels)
    if schema.rollup is not None:
        stream = _rolled_up(stream, settings, labels)
    for number, key in enumerate(schema.stages):
        last = number == len(schema.stages) - 1
        function = (NextStage if number else FirstStage)(
            schema,
            key,
            Routing(labels, settings.kafka.keyed_by_record_key),
            settings.topics.events,
            ttl_s,
            settings.flink.cached_entries,
            settings.flink.journal_events,
            scoring if last else None,
            **({} if number else _of_first_stage(settings)),
        )
        if number and settings.labels is not None and key == settings.labels.key:
            stream = stream.union(_labels(tables, settings, labels))
        stream = (
            keyed.by_first_field(stream, _BATCH if number or schema.rollup else Types.STRING())
            .process(function, sinks.OUTPUT_TYPE if last else _ROUTED)
            .name(f"features by {key}{', score' if last else ''}")
            .uid(f"features-{key}")
        )
    return stream


def _of_first_stage(settings: Settings) -> dict[str, Any]:
    """Tables, and the fields that episodes read of a scored event; it has the record key anyway."""
    episodes = settings.alerts.episodes
    read = episodes.fields if episodes else ()
    return {"tables": tables_of(settings), "carried": tuple(f for f in read if f != settings.key)}


def _episodes(settings: Settings, scored: DataStream) -> dict[str, DataStream]:
    """The stream of alerts, if they are of episodes: keyed by the bucket of the entity."""
    if settings.alerts.episodes is None:
        return {}
    spec = settings.alerts.episodes.with_lateness(settings.event)
    span_ms = (spec.lateness or 0) + (spec.close_after or 0) + (spec.silent_after or 0)
    ttl_s = max(_ttl_s(settings), 2 * span_ms // 1_000)
    privacy = Privacy.of_events(settings.schema_)
    hide = privacy.hashed if privacy and spec.entity in privacy.fields else None
    operator = EpisodeOperator(spec, settings.topics.events, ttl_s, hide)
    told = (
        keyed.by_first_field(keyed.side_output(scored, SCORED), _BATCH)
        .process(operator, sinks.row_type(["alerts"]))
        .name(f"episodes by {spec.entity}")
        .uid("episodes")
    )
    return {"alerts": told}


def _events(
    tables: StreamTableEnvironment, settings: Settings, labels: tuple[int, ...]
) -> DataStream:
    kafka = settings.kafka
    key = (
        sources.key_from_record_key()
        if kafka.keyed_by_record_key
        else sources.key_from_json(settings.key)
    )
    return sources.micro_batches(
        tables,
        "events",
        _events_options(settings),
        sources.bucket_expression(labels, key),
        settings.batch.window,
        ends=settings.kafka.stop_at_end,
    )


def _rolled_up(stream: DataStream, settings: Settings, labels: tuple[int, ...]) -> DataStream:
    function = RollupStage(
        settings.schema_,
        Routing(labels, settings.kafka.keyed_by_record_key),
        settings.topics.events,
        _readings_ttl_s(settings),
        settings.flink.journal_events,
    )
    return (
        keyed.by_first_field(stream, Types.STRING())
        .process(function, _ROUTED)
        .name(f"windows of {settings.key}")
        .uid("windows")
    )


def _labels(
    tables: StreamTableEnvironment, settings: Settings, labels: tuple[int, ...]
) -> DataStream:
    topic = settings.topics.labels
    assert topic is not None
    batches = sources.micro_batches(
        tables,
        "labels",
        _source_options(settings, topic),
        str(labels[0]),
        settings.batch.label_window,
        ends=settings.kafka.stop_at_end,
    )
    reader = LabelReader(settings.schema_, Routing(labels), topic)
    return batches.flat_map(reader, _ROUTED).name("labels").uid("labels")


def _ttl_s(settings: Settings) -> int:
    """Idle keys outlive every window twice over, so that a paused job loses nothing."""
    if settings.flink.state_ttl is not None:
        return max(1, settings.flink.state_ttl // 1_000)
    schema = settings.schema_
    horizon_ms = max(schema.horizon_ms(k, s) for k in schema.stages for s in ("events", "labels"))
    return max(1, 2 * horizon_ms // 1_000)


def _readings_ttl_s(settings: Settings) -> int:
    """Readings of open windows outlive a job that is paused for weeks."""
    if settings.flink.state_ttl is not None:
        return max(1, settings.flink.state_ttl // 1_000)
    schema = settings.schema_
    assert schema.rollup is not None
    longest_ms = max(schema.rollup.every, schema.rollup.idle, schema.arriving.dedupe_within)
    return max(_MONTH_S, 2 * (longest_ms + schema.arriving.time.allowed_lateness) // 1_000)


def _events_options(settings: Settings) -> dict[str, str]:
    kinesis = settings.kinesis
    if kinesis is None:
        return _source_options(settings, settings.topics.events)
    return {
        "connector": "kinesis",
        "stream.arn": kinesis.stream_arn,
        "aws.region": kinesis.region,
        "source.init.position": {"earliest": "TRIM_HORIZON", "latest": "LATEST"}[kinesis.start],
        "format": "raw",
        **kinesis.options,
    }


def _source_options(settings: Settings, topic: str) -> dict[str, str]:
    kafka = settings.kafka
    start = {
        "earliest": "earliest-offset",
        "latest": "latest-offset",
        "committed": "group-offsets",
    }[kafka.start]
    options = {
        "connector": "kafka",
        "topic": topic,
        "properties.bootstrap.servers": kafka.bootstrap_servers,
        "properties.group.id": kafka.group_id,
        "properties.auto.offset.reset": "earliest",
        "scan.startup.mode": start,
        "key.format": "raw",
        "key.fields": "record_key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
    }
    if kafka.stop_at_end:
        options["scan.bounded.mode"] = "latest-offset"
    return options | _client_properties(settings)


def _sink_options(settings: Settings, column: str) -> dict[str, str]:
    topic = getattr(settings.topics, column)
    options = {
        "connector": "kafka",
        "topic": topic,
        "properties.bootstrap.servers": settings.kafka.bootstrap_servers,
        "properties.compression.type": "lz4",
        "properties.linger.ms": "1",
        "properties.batch.size": "262144",
        "properties.max.request.size": "8388608",
        "key.format": "raw",
        "key.fields": "record_key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
        "sink.delivery-guarantee": settings.flink.delivery.replace("_", "-"),
    }
    if settings.flink.delivery == "exactly_once":
        options["sink.transactional-id-prefix"] = f"{settings.name}-{column}"
        options["properties.transaction.timeout.ms"] = str(settings.flink.transaction_timeout)
    return options | _client_properties(settings)


def _client_properties(settings: Settings) -> dict[str, str]:
    return {f"properties.{k}": v for k, v in settings.kafka.java_properties().items()}


def _client_options(settings: Settings) -> ClientOptions:
    model = settings.model
    return ClientOptions(
        target=model.server,
        model_name=model.name,
        model_version=model.version,
        protocol=model.protocol,
        signature_name=model.signature,
        input_name=model.input,
        output_name=model.output,
        deadline_ms=model.deadline,
        max_attempts=model.max_attempts,
        backoff_ms=model.backoff,
        retry_budget=model.retry_budget,
        hedge_ms=model.hedge,
        security=_channel_security(model.tls),
        token=model.token,
        breaker=BreakerOptions(
            failure_threshold=model.breaker.failures,
            open_ms=model.breaker.open_for,
            trial_calls=model.breaker.trial_calls,
        ),
    )


def _channel_security(tls: ModelTlsSettings | None) -> ChannelSecurity:
    if tls is None:
        return ChannelSecurity()
    return ChannelSecurity(True, tls.ca, tls.certificate, tls.key, tls.server_name)


def _model(settings: Settings) -> ModelVersion:
    """The model whose preparation the job follows, and which it embeds."""
    try:
        found = find_version(settings.model.path, settings.model.name, settings.model.version)
        preparation, features = Preparation.load(found.path), load_features(found.path)
    except RepositoryError as exc:
        raise SettingsError(f"{exc}; train one with: streamscore train") from exc
    if preparation.names != settings.schema_.columns:
        other = sorted(set(preparation.names) ^ set(settings.schema_.columns))
        raise SettingsError(
            f"{found.path} was trained with other features ({', '.join(other) or 'another order'}):"
            " train a model with these settings: streamscore train"
        )
    wanted = {name: spec.encoding for name, spec in settings.features.categories.items()}
    if preparation.categories != wanted:
        raise SettingsError(
            f"{found.path} encodes the categories {preparation.categories or 'none'}, the settings "
            f"{wanted or 'none'}: train a model with these settings: streamscore train"
        )
    if features.config_hash != settings.features_hash:
        logger.warning(
            "%s was trained with other event or feature settings: train anew if they matter",
            found.path,
        )
    return found


def _scoring(settings: Settings, model: ModelVersion) -> Scoring:
    output = _output(settings, model)
    if settings.model.embedded:
        return EmbeddedScoring(
            model.path,
            settings.model.name,
            output,
            lookups_of(settings),
            0 if settings.model.version is not None else settings.model.follow,
        )
    return ServedScoring(
        _client_options(settings),
        output,
        settings.batch.max_rows,
        settings.model.calls_in_flight,
        settings.model.rollout.absolute() if settings.model.rollout else None,
        model.path,
        lookups_of(settings),
    )


def _output(settings: Settings, model: ModelVersion) -> Output:
    schema = settings.schema_
    return Output(
        writer=RecordWriter(
            settings.topics.events,
            schema.columns,
            schema.stages,
            settings.alerts.threshold,
            bool(schema.lookups),
            schema.rollup is not None,
        ),
        preparation=Preparation.load(model.path),
        fallback_score=settings.model.fallback_score,
        explain=settings.alerts.explain,
        privacy=Privacy.of_events(schema),
        episodes=_feed(settings),
    )


def _feed(settings: Settings) -> EpisodeFeed | None:
    spec, columns = settings.alerts.episodes, settings.schema_.columns
    if spec is None:
        return None
    scored = ScoredColumns(spec, settings.key, columns, settings.alerts.threshold)
    return EpisodeFeed(scored, Routing(even_labels(settings.batch.buckets)).of)
