"""The shape every scoring job shares: micro-batches, a keyed stage per key, scoring, sinks.

Kafka -> JVM: bucket, 10 ms window, join -> FirstStage -> NextStage ..., score -> JVM: split
                                             (Python in the TaskManager's own process)  -> Kafka
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyflink.common import Configuration, Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from jobs import keyed, sinks, uids
from jobs.enrichment import lookups_of, tables_of
from jobs.environment import as_url
from jobs.inputs import BATCH, ROUTED, Inputs, client_properties
from jobs.sections.model import ModelTlsSettings
from jobs.settings import Settings
from jobs.settings_file import SettingsError
from jobs.starting import EMPTY, Start
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
from udfs.batches.routing import Routing
from udfs.overload.valve import SHED
from udfs.preparation.preparation import Preparation
from udfs.rollup.operator import RollupStage
from udfs.scoring.base import Scoring
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.output import Output
from udfs.scoring.served import ServedScoring
from udfs.stages.first import FirstStage
from udfs.stages.next import NextStage

logger = logging.getLogger(__name__)

_MONTH_S = 30 * 86_400


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
        "execution.checkpointing.dir": as_url(flink.checkpoint_dir),
        "state.backend.type": flink.state_backend,
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": str(flink.restart_attempts),
        "restart-strategy.fixed-delay.delay": f"{flink.restart_delay} ms",
        "table.exec.sink.not-null-enforcer": "DROP",
        "table.exec.source.idle-timeout": "0 ms",
    }
    return options | {**(target or {}), **flink.options}


def build(
    env: StreamExecutionEnvironment,
    settings: Settings,
    begin: Start = EMPTY,
) -> None:
    """Wire a scoring job into an environment; ``env.execute()`` runs it.

    Args:
        env: An environment with ``flink_configuration``.
        settings: The job's settings.
        begin: From which positions; its savepoint is an option of the environment.

    Raises:
        SettingsError: there is no model, or one that was trained with other features.
    """
    model = _model(settings)
    tables = StreamTableEnvironment.create(env)
    labels = even_labels(settings.batch.buckets)
    inputs = Inputs(tables, settings, labels, begin.positions)
    scored = _stages(inputs, _scoring(settings, model), begin.since_ms)
    wanted = [column for column in sinks.COLUMNS if getattr(settings.topics, column)]
    options = {column: sink_options(settings, column) for column in wanted}
    sinks.write(tables, scored.stream, options, _episodes(settings, scored.stream))
    if scored.shed is not None:
        shed = {"shed": sink_options(settings, "shed")}
        sinks.write(tables, scored.shed, shed, columns=["shed"], view="shed_batches")
    uids.assign(env)


@dataclass(frozen=True, slots=True)
class _Scored:
    """Batches of records, and those of shed events, if any can be."""

    stream: DataStream
    shed: DataStream | None


def _stages(inputs: Inputs, scoring: Scoring, begins_ms: int | None) -> _Scored:
    settings, labels = inputs.settings, inputs.labels
    schema, overload, shed = settings.schema_, settings.overload, None
    stream = inputs.events()
    if schema.rollup is not None:
        stream = _rolled_up(stream, settings, labels)
    of_first = _of_first_stage(settings) | {"begins_ms": begins_ms}
    for number, key in enumerate(schema.stages):
        last = number == len(schema.stages) - 1
        sheds = overload is not None and (last if overload.before == "scoring" else not number)
        function = (NextStage if number else FirstStage)(
            schema,
            key,
            Routing(labels, settings.kafka.keyed_by_record_key),
            settings.topics.events,
            idle_ms(settings),
            settings.flink.cached_entries,
            settings.flink.journal_events,
            scoring if last else None,
            overload=overload if last or not number else None,
            job=settings.name,
            **({} if number else of_first),
        )
        if number and settings.labels is not None and key == settings.labels.key:
            stream = stream.union(inputs.late_labels())
        stream = (
            keyed.by_first_field(stream, BATCH if number or schema.rollup else Types.STRING())
            .process(function, sinks.OUTPUT_TYPE if last else ROUTED)
            .name(f"features by {key}{', score' if last else ''}")
            .uid(uid_of(key))
        )
        shed = keyed.side_output(stream, SHED) if sheds else shed
    return _Scored(stream, shed)


def uid_of(stage: str) -> str:
    """The operator id of a stage: by it a savepoint's state is found."""
    return f"features-{stage}"


def _of_first_stage(settings: Settings) -> dict[str, Any]:
    """Tables, and the fields that episodes read of a scored event; it has the record key anyway."""
    episodes = settings.alerts.episodes
    read = episodes.fields if episodes else ()
    carried = tuple(field for field in read if field != settings.key)
    rate = settings.source.rate if settings.rollup is None else None
    return {"tables": tables_of(settings), "carried": carried, "rate": rate}


def _episodes(settings: Settings, scored: DataStream) -> dict[str, DataStream]:
    """The stream of alerts, if they are of episodes: keyed by the bucket of the entity."""
    if settings.alerts.episodes is None:
        return {}
    spec = settings.alerts.episodes.with_lateness(settings.event)
    span_ms = (spec.lateness or 0) + (spec.close_after or 0) + (spec.silent_after or 0)
    kept_s = max(idle_ms(settings), 2 * span_ms) // 1_000
    privacy = Privacy.of_events(settings.schema_)
    hide = privacy.hashed if privacy and spec.entity in privacy.fields else None
    operator = EpisodeOperator(spec, settings.topics.events, kept_s, hide)
    told = (
        keyed.by_first_field(keyed.side_output(scored, SCORED), BATCH)
        .process(operator, sinks.row_type(["alerts"]))
        .name(f"episodes by {spec.entity}")
        .uid("episodes")
    )
    return {"alerts": told}


def _rolled_up(stream: DataStream, settings: Settings, labels: tuple[int, ...]) -> DataStream:
    function = RollupStage(
        settings.schema_,
        Routing(labels, settings.kafka.keyed_by_record_key),
        settings.topics.events,
        _readings_ttl_s(settings),
        settings.flink.journal_events,
        rate=settings.source.rate,
    )
    return (
        keyed.by_first_field(stream, Types.STRING())
        .process(function, ROUTED)
        .name(f"windows of {settings.key}")
        .uid("windows")
    )


def idle_ms(settings: Settings) -> int:
    """Idle keys outlive every window twice over: a key may lag behind the others of its bucket."""
    if settings.flink.state_ttl is not None:
        return max(1, settings.flink.state_ttl)
    schema = settings.schema_
    horizon_ms = max(schema.horizon_ms(k, s) for k in schema.stages for s in ("events", "labels"))
    return max(1, 2 * horizon_ms)


def _readings_ttl_s(settings: Settings) -> int:
    """Readings of open windows outlive a job that is paused for weeks."""
    if settings.flink.state_ttl is not None:
        return max(1, settings.flink.state_ttl // 1_000)
    schema = settings.schema_
    assert schema.rollup is not None
    longest_ms = max(schema.rollup.every, schema.rollup.idle, schema.arriving.dedupe_within)
    return max(_MONTH_S, 2 * (longest_ms + schema.arriving.time.allowed_lateness) // 1_000)


def sink_options(settings: Settings, column: str) -> dict[str, str]:
    """The Kafka connector's options to write the topic of that name in the settings."""
    topic = getattr(settings.topics, column)
    options = {
        "connector": "kafka",
        "topic": topic,
        "properties.bootstrap.servers": settings.kafka.bootstrap_servers,
        "properties.compression.type": "lz4",
        # Nobody waits for what is shed, and an overload is no time for many small requests.
        "properties.linger.ms": "100" if column == "shed" else "1",
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
    return options | client_properties(settings)


def client_options(settings: Settings) -> ClientOptions:
    """How the model server is asked."""
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
        client_options(settings),
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
