"""The baseline: the fraud job as PyFlink's own documentation would write it.

DataStream API, one Python call per record and operator; the features, the model and the fields of
a prediction are those of ``conf/fraud.yaml``, so that only the arrangement differs from ours::

    KafkaSource -> parse, expressions -> key_by(card) -> windows -> key_by(terminal) -> windows
                                                   labels -> parse -> key_by(terminal) ^
                -> score, JSON -> KafkaSink

What was chosen, and why it is fair:

* Python's ``json``, keyed state, ``KeyedCoProcessFunction`` and ``AsyncDataStream`` as in the
  documentation. Flink's options stay at their defaults (bundles of 1,000 records or 1 s, buffer
  timeout 100 ms, heap state) except: a checkpoint every 60 s to a folder, as the default keeps no
  more than 5 MB; and no restarts, so that a fault ends the benchmark.
* As few Python operators as the exchanges allow: the expressions are computed while parsing, the
  JSON is written while scoring. One more map would cost an unpickling and a pickling per record.
* A key's history is one Python list in a ``ValueState``: one read and one write per record. The
  same job with a ``ListState`` of tuples, pruned and rewritten per record, needed the same CPU time
  per record within the noise, in both modes. The id of each entry is in the list too, so that
  duplicates need no second state.
* Windows are exact and recounted from the list, which is short (about 14 transactions per card
  in 7 days, 75 labels per terminal in the demo data).
* Served scoring calls the stub of a plain ``grpc.aio`` channel, one row per call, deadline 200 ms,
  100 calls in flight (PyFlink's default). A call that fails gives the fallback score and its
  reason; a benchmark must count those, as they are not scores.

It does less than our job, in its own favour: no alerts and explanations, no dead letter and
duplicate topics (it only counts such records), no Kafka keys on its output. SimpleStringSchema
gives no partition and offset, so ``source`` holds nulls, ``prediction_id`` is the event's id and
``order`` is empty.

Delivery is at least once. The sink gives a record its event's Kafka time: to measure by the output
topic's timestamps, make that topic with ``message.timestamp.type=LogAppendTime``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pyflink.common import Configuration, SimpleStringSchema, Time, Types, WatermarkStrategy
from pyflink.datastream import AsyncDataStream, DataStream, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
)

from bench.stock.scoring import PREDICT_TIMEOUT_MS, EmbeddedScore, Model, ServedScore, WriteFeatures
from bench.stock.stages import CardFeatures, ParseEvents, ParseLabels, TerminalFeatures
from jobs.environment import BUILD, ROOT, thread_mode_env
from jobs.jars import flink_jars
from jobs.settings import Settings, load
from model_server.repository import find_version

CHECKPOINT_INTERVAL_MS = 60_000
GROUP_ID = "streamscore-stock"


def build(env: StreamExecutionEnvironment, settings: Settings, options: argparse.Namespace) -> None:
    """Wire the job; ``env.execute()`` runs it.

    Args:
        env: An environment with ``configuration``.
        settings: What to compute.
        options: What ``parser`` gives.
    """
    schema = settings.schema_
    key, labels = schema.stages[1], schema.labels
    assert labels is not None and settings.topics.labels is not None
    id_of_card, id_of_terminal, label_key = schema.key, key, labels.key
    late = (
        _source(env, settings.topics.labels, options)
        .flat_map(ParseLabels(labels))
        .key_by(lambda label: label[label_key], Types.STRING())
    )
    stream = (
        _source(env, settings.topics.events, options)
        .flat_map(ParseEvents(schema))
        .key_by(lambda event: event[id_of_card], Types.STRING())
        .process(CardFeatures(schema))
        .key_by(lambda event: event[id_of_terminal], Types.STRING())
        .connect(late)
        .process(TerminalFeatures(schema, key))
    )
    texts = _scored(stream, settings, options)
    texts.sink_to(_sink(options.output_topic or settings.topics.predictions, options))


def _scored(stream: DataStream, settings: Settings, options: argparse.Namespace) -> DataStream:
    scoring = options.scoring
    folder = None if scoring == "none" else options.model_dir or _newest_model(settings)
    model = Model(settings.schema_, folder, settings.model)
    if scoring == "served":
        return AsyncDataStream.unordered_wait(
            stream,
            ServedScore(model, options.model_server or settings.model.server),
            Time.milliseconds(PREDICT_TIMEOUT_MS),
            output_type=Types.STRING(),
        )
    function = EmbeddedScore(model) if scoring == "embedded" else WriteFeatures(model)
    return stream.map(function, Types.STRING())


def _newest_model(settings: Settings) -> Path:
    model = settings.model
    return find_version(model.path, model.name, model.version).path


def _source(env: StreamExecutionEnvironment, topic: str, options: argparse.Namespace) -> DataStream:
    builder = (
        KafkaSource.builder()
        .set_bootstrap_servers(options.bootstrap)
        .set_topics(topic)
        .set_group_id(GROUP_ID)
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_value_only_deserializer(SimpleStringSchema())
    )
    if not options.unbounded:
        builder = builder.set_bounded(KafkaOffsetsInitializer.latest())
    return env.from_source(builder.build(), WatermarkStrategy.no_watermarks(), topic)


def _sink(topic: str, options: argparse.Namespace) -> KafkaSink:
    serializer = (
        KafkaRecordSerializationSchema.builder()
        .set_topic(topic)
        .set_value_serialization_schema(SimpleStringSchema())
        .build()
    )
    return (
        KafkaSink.builder()
        .set_bootstrap_servers(options.bootstrap)
        .set_record_serializer(serializer)
        .set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
        .build()
    )


def configuration(options: argparse.Namespace) -> Configuration:
    """Flink's options; what is not here is Flink's default."""
    result = Configuration()
    for name, value in {
        "pipeline.jars": ";".join(jar.absolute().as_uri() for jar in flink_jars()),
        "parallelism.default": str(options.parallelism),
        "python.execution-mode": options.mode,
        "execution.checkpointing.interval": f"{CHECKPOINT_INTERVAL_MS} ms",
        "execution.checkpointing.dir": options.checkpoint_dir.absolute().as_uri(),
        "restart-strategy.type": "none",
    }.items():
        result.set_string(name, value)
    return result


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m bench.stock.job", description="The fraud job in stock PyFlink."
    )
    add = result.add_argument
    add("--conf", type=Path, default=ROOT / "conf" / "fraud.yaml", help="settings file")
    add("--bootstrap", help="host:port of the broker (default: the settings')")
    add("--parallelism", type=int, default=1, help="subtasks per operator")
    add("--mode", choices=("process", "thread"), default="process", help="Python execution mode")
    add("--scoring", choices=("served", "embedded", "none"), default="served", help="who scores")
    add("--features-only", dest="scoring", action="store_const", const="none",
        help="write the features without a score: --scoring none")  # fmt: skip
    add("--model-server", help="host:port of the model server (default: the settings')")
    add("--model-dir", type=Path, help="<name>/<version>/ folder (default: the newest)")
    add("--output-topic", help="topic to write to (default: the settings' predictions)")
    add("--checkpoint-dir", type=Path, default=BUILD / "checkpoints" / "stock", help="folder")
    add("--unbounded", action="store_true", help="go on after the offsets seen at the start")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job in a mini-cluster of this process until its end; returns the exit code.

    Prints ``started job=<id> time_ms=<epoch ms>`` when it is submitted and ``finished
    runtime_ms=<Flink's net run time>`` at its end.
    """
    arguments = parser()
    options = arguments.parse_args(argv)
    if options.scoring == "served" and options.mode == "thread":
        arguments.error("PyFlink's AsyncFunction exists only in process mode")
    settings = load(options.conf)
    options.bootstrap = options.bootstrap or settings.kafka.bootstrap_servers
    os.environ.update(thread_mode_env())  # before PyFlink starts its JVM
    (BUILD / "logs").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("FLINK_LOG_DIR", str(BUILD / "logs"))
    env = StreamExecutionEnvironment.get_execution_environment(configuration(options))
    build(env, settings, options)
    client = env.execute_async(f"stock {options.mode} {options.scoring}")
    print(f"started job={client.get_job_id()} time_ms={time.time_ns() // 1_000_000}", flush=True)
    result = client.get_job_execution_result().result()
    print(f"finished runtime_ms={result.get_net_runtime()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
