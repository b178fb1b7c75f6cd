"""Where the measurements take place: a broker, a model server, and jobs as processes of their own.

Everything a run starts is a child of it and is stopped by its process id at the end; everything it
writes lies in one folder below ``build/bench`` that is removed then.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import pandas as pd
import psutil
import yaml
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from bench import far_model, records
from bench.common import BENCH, BenchError, say
from jobs import kafka_broker, kafka_topics, settings
from jobs.demo import data as demo_data
from jobs.environment import ROOT
from jobs.ports import HOST
from jobs.settings import Settings
from model_server.errors import RepositoryError
from model_server.repository import find_version, load_features

PARTITIONS = 4
LABELS = 40_000
"""Labels both jobs read beside the events: few, so that they are read within the warm-up."""

_OUTPUTS = ("predictions", "alerts", "dead_letters", "duplicates")
_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 60.0
_READ_TIMEOUT_S = 30.0


def installed_environment() -> dict[str, str]:
    """The environment of a program that is installed, so has its byte code."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


class Child:
    """A Python module that runs as a child process.

    Args:
        name: For messages, and of its log file.
        module: What ``python -m`` runs.
        arguments: Its arguments.
        folder: Of its log: what it writes to standard error.
        ends_at_eof: Whether closing its standard input ends it; else SIGTERM does.
        python: The interpreter; another one is of an environment of its own.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Iterable[str],
        folder: Path,
        *,
        ends_at_eof: bool = False,
        python: Path | str = sys.executable,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._ends_at_eof = ends_at_eof
        self._lines: queue.Queue[str | None] = queue.Queue()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=installed_environment(),
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def line(self, prefix: str, timeout_s: float = _START_TIMEOUT_S) -> str:
        """Wait for a line of its standard output that begins so.

        Raises:
            BenchError: it ended, or said no such thing in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                found = self._lines.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                message = f"{self.name} did not say {prefix!r} within {timeout_s:.0f} s"
                raise BenchError(f"{message}; see {self.log}") from None
            if found is None:
                raise BenchError(self._ended())
            if found.startswith(prefix):
                return found

    def tell(self, text: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            BenchError: it ended.
        """
        if self._process.poll() is not None:
            raise BenchError(self._ended())

    def cpu_s(self) -> float:
        """CPU seconds so far of it and the children it has now; 0 if it has ended."""
        total = 0.0
        with suppress(psutil.NoSuchProcess):
            for process in self.processes():
                used = process.cpu_times()
                total += used.user + used.system
        return total

    def processes(self) -> list[psutil.Process]:
        """It and the children it has now.

        Raises:
            psutil.NoSuchProcess: it has ended.
        """
        return [psutil.Process(self.pid), *_family(self.pid)]

    def _ended(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        signs = ("Error", "Exception: ")
        causes = [ln for ln in lines if ln.startswith("Caused by:") or any(s in ln for s in signs)]
        cause = (causes or [line for line in lines if line.strip()] or ["it left no error"])[-1]
        return f"{self.name} ended by itself: {cause.strip()[:500]}; see {self.log}"

    def stop(self) -> None:
        """End it and every process it started that is still there."""
        family = _family(self._process.pid)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if not self._ends_at_eof:
            self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, alive = psutil.wait_procs(family, timeout=5.0)
        for process in alive:
            process.kill()  # psutil compares start times: never another process of the same id


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


class Topics:
    """A view of a broker's topics.

    Args:
        bootstrap: host:port of the broker.
    """

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._consumer = self._new_consumer()
        self._partitions: dict[str, int] = {}

    def close(self) -> None:
        """Give the connection up."""
        self._consumer.close()

    def _new_consumer(self) -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": f"bench-{os.getpid()}",
                "enable.auto.commit": False,
                "log_level": 3,  # a topic that is deleted is no news
                "queued.max.messages.kbytes": 262_144,
            }
        )

    def size(self, topic: str) -> int:
        """How many records it holds: the sum of the high watermarks."""
        return sum(self.ends(topic).values())

    def ends(self, topic: str) -> dict[int, int]:
        """The high watermark of each partition."""
        if topic not in self._partitions:
            known = self._consumer.list_topics(topic, timeout=10).topics[topic].partitions
            self._partitions[topic] = len(known)
        places = [TopicPartition(topic, n) for n in range(self._partitions[topic])]
        return {
            place.partition: self._consumer.get_watermark_offsets(place, timeout=10)[1]
            for place in places
        }

    def newest(self, topic: str, timeout_s: float = 10.0) -> list[Message]:
        """The last record of each partition that has any and answers in time."""
        ends = [(n, end) for n, end in self.ends(topic).items() if end]
        self._consumer.assign([TopicPartition(topic, n, end - 1) for n, end in ends])
        found: dict[int | None, Message] = {}
        deadline_s = time.monotonic() + timeout_s
        try:
            while len(found) < len(ends) and time.monotonic() < deadline_s:
                for message in self._consumer.consume(1_000, timeout=0.1):
                    found[message.partition()] = message
        finally:
            self._consumer.unassign()
        return [*found.values()]

    def read(self, topic: str) -> Iterator[Message]:
        """Every record it holds now, in the order of each partition."""
        left = sum(ends := [*self.ends(topic).values()])
        consumer = self._new_consumer()
        consumer.assign([TopicPartition(topic, n, 0) for n, end in enumerate(ends) if end])
        try:
            while left > 0:
                batch = consumer.consume(min(left, 10_000), timeout=_READ_TIMEOUT_S)
                if not batch:
                    raise BenchError(f"{left:,} records of {topic} could not be read")
                left -= len(batch)
                yield from batch
        finally:
            consumer.close()

    def write(self, topic: str, pairs: Iterable[tuple[bytes, bytes]], step: str, n: int) -> None:
        """Write records, saying how far it got.

        Raises:
            BenchError: the broker did not take them all.
        """
        producer = Producer(
            {
                "bootstrap.servers": self._bootstrap,
                "linger.ms": 50,
                "batch.num.messages": 10_000,
                "compression.type": "lz4",
            }
        )
        said_s = time.monotonic()
        for count, (key, value) in enumerate(pairs, start=1):
            while True:
                try:
                    producer.produce(topic, value, key)
                    break
                except BufferError:
                    producer.poll(0.1)
            if count % 10_000 == 0:
                producer.poll(0)
                if time.monotonic() - said_s > 10:
                    said_s = time.monotonic()
                    say(f"{step}: {count:,} of {n:,}")
        if producer.flush(60) or self.size(topic) != n:
            raise BenchError(f"{topic} holds {self.size(topic):,} of {n:,} records")

    def delete(self, names: Iterable[str]) -> None:
        """Delete topics: their disk space is wanted for the next run's."""
        admin = AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 3})
        for future in admin.delete_topics(list(names), operation_timeout=30).values():
            future.result()


@dataclass(frozen=True)
class Place:
    """A running broker and the folder of a benchmark's run.

    Attributes:
        tag: Unique per run; part of every topic's name.
        folder: Of this run's files.
        bootstrap: host:port of the broker.
        topics: Its topics.
        config: The settings file.
        overrides: Settings of our job that the user changed.
        failures: What went wrong so far.
    """

    tag: str
    folder: Path
    bootstrap: str
    topics: Topics
    config: Path
    overrides: Mapping[str, Any]
    failures: list[str]

    def topic(self, name: str) -> str:
        """The name of this run's topic."""
        return f"{name.replace('_', '-')}-{self.tag}"

    def create(self, *names: str, partitions: int = PARTITIONS, **configs: str) -> list[str]:
        """Make topics of this run; returns their whole names."""
        wanted = {self.topic(name): partitions for name in names}
        kafka_topics.create_topics(self.bootstrap, wanted, configs)
        return list(wanted)

    def create_outputs(self, run: str, partitions: int = PARTITIONS) -> dict[str, str]:
        """Make the output topics of a measurement, by the settings' names; timed by the broker."""
        config = {"message.timestamp.type": "LogAppendTime"}
        outputs = (f"{run}_{output}" for output in _OUTPUTS)
        names = self.create(*outputs, partitions=partitions, **config)
        return dict(zip(_OUTPUTS, names, strict=True))

    def job_overrides(self, run: str, outputs: Mapping[str, str]) -> dict[str, Any]:
        """The settings that only say where a measurement's job finds and puts things."""
        return {
            "kafka.bootstrap_servers": self.bootstrap,
            "kafka.group_id": f"{run}-{self.tag}",
            "flink.checkpoint_dir": str(self.folder / "checkpoints" / run),
            "flink.restart_attempts": 0,  # a fault ends the measurement
            **{f"topics.{name}": topic for name, topic in outputs.items()},
        }

    def start_ours(
        self, run: str, overrides: Mapping[str, Any], *, features_alone: bool = False
    ) -> Child:
        """Our job; returns when every task runs."""
        path = self._write_settings(run, {**overrides, **self.overrides})
        arguments = ["--config", str(path)]
        arguments += ["--features-alone"] if features_alone else []
        return _started(Child(run, "bench.ours_job", arguments, self.folder, ends_at_eof=True))

    def _write_settings(self, run: str, overrides: Mapping[str, Any]) -> Path:
        path = self.folder / f"{run}.yaml"
        path.write_text(settings.as_yaml(settings.load(self.config, overrides)), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Lab(Place):
    """A place with the demo's transactions and a model of them.

    Attributes:
        data: Which demo data.
        frame: The demo's transactions.
        model_dir: The model's version folder.
    """

    data: str
    frame: pd.DataFrame
    model_dir: Path

    def preload_labels(self, tag: str, count: int) -> str:
        """A topic with the labels of the first events whose ids begin with a tag."""
        (topic,) = self.create("labels")
        count = min(count, len(self.frame))
        self.topics.write(topic, records.labels(self.frame, count, tag), "writing labels", count)
        return topic

    def start_stock(self, run: str, overrides: Mapping[str, Any], *arguments: str) -> Child:
        """The stock job with the same events, labels, model and settings of features."""
        path = self._write_settings(run, overrides)
        arguments += ("--conf", str(path), "--unbounded", "--model-dir", str(self.model_dir))
        arguments += ("--checkpoint-dir", overrides["flink.checkpoint_dir"])
        return _started(Child(run, "bench.stock.job", arguments, self.folder))

    @contextmanager
    def model_server(self) -> Iterator[str]:
        """A model server for a measurement of its own; host:port."""
        with self.model_server_process() as (_, address):
            yield address

    @contextmanager
    def model_server_process(self, far_us: float = 0.0) -> Iterator[tuple[Child, str]]:
        """The same with its process.

        Args:
            far_us: Of bench.far_model, microseconds a row; 0 is our server as it is.
        """
        name_dir = self.model_dir.parent
        if far_us:
            module, arguments = "jobs.cli", ["serve", "--config", str(self._far(name_dir, far_us))]
        else:
            module, arguments = (
                "model_server",
                ["--models-dir", str(name_dir.parent), "--port", "0"],
            )
            arguments += ["--model-name", name_dir.name]
            arguments += ["--model-version", self.model_dir.name]
        with Child("model-server", module, arguments, self.folder) as server:
            ports = server.line("ready port=").partition("port=")[2]
            yield server, f"{HOST}:{ports.split()[0]}"

    def _far(self, name_dir: Path, far_us: float) -> Path:
        os.environ[far_model.ROW_US] = str(far_us)
        model = {"name": name_dir.name, "models_dir": str(name_dir.parent)}
        model["python_class"] = f"{far_model.__name__}:{far_model.FarModel.__name__}"
        path = self.folder / "far-server.yaml"
        limits = {"threads": 16}  # one is at work, the others wait
        document = {"port": 0, "http_port": None, "models": [model], "limits": limits}
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path


def _started(job: Child) -> Child:
    try:
        job.line("started")
    except BaseException:
        job.stop()
        raise
    return job


@contextmanager
def place(name: str, config: Path, overrides: Mapping[str, Any], *, keep: bool) -> Iterator[Place]:
    """Start a broker; stop and clear up after.

    Args:
        name: The benchmark's.
        config: The settings file.
        overrides: Settings of our job that the user changed.
        keep: Keep the folder with the logs even if nothing failed.
    """
    tag = f"{time.strftime('%m%d%H%M%S')}-{os.getpid()}"
    folder = BENCH / f"{name}-{tag}"
    (folder / "checkpoints").mkdir(parents=True)
    failures: list[str] = []
    with ExitStack() as exits:
        exits.push(lambda kind, *_: _clear(folder, keep=keep or bool(kind or failures)))
        say("starting Kafka")
        bootstrap = exits.enter_context(_broker(folder / "kafka"))
        topics = Topics(bootstrap)
        exits.callback(topics.close)
        yield Place(tag, folder, bootstrap, topics, config, overrides, failures)


@contextmanager
def lab(
    name: str, config: Path, overrides: Mapping[str, Any], data: str, *, keep: bool
) -> Iterator[Lab]:
    """Make the model and the data if they are missing, start a broker; stop and clear up after.

    Args:
        name: The benchmark's.
        config: The settings file.
        overrides: Settings of our job that the user changed.
        data: Which demo data.
        keep: Keep the folder with the logs even if nothing failed.
    """
    chosen = settings.load(config, overrides)
    say(f"demo data: {data}")
    frame = demo_data.load(data)
    model_dir = ensure_model(chosen, config, data)
    with place(name, config, overrides, keep=keep) as at:
        parts = {part.name: getattr(at, part.name) for part in fields(at)}
        yield Lab(**parts, data=data, frame=frame, model_dir=model_dir)


@contextmanager
def _broker(folder: Path) -> Iterator[str]:
    with kafka_broker.KafkaBroker(folder) as broker:
        yield broker.bootstrap


def _clear(folder: Path, *, keep: bool) -> None:
    for part in ("kafka", "checkpoints") if keep else ("",):
        shutil.rmtree(folder / part, ignore_errors=True)


def ensure_model(chosen: Settings, config: Path, data: str) -> Path:
    """The newest model's folder; one is trained if there is none with these features.

    Raises:
        BenchError: the training failed.
    """
    if (found := _newest(chosen)) is None:
        say(f"training a model on the {data} demo data")
        command = [sys.executable, "-m", "jobs.cli", "train", "--size", data]
        done = subprocess.run([*command, "--config", str(config.absolute())], cwd=ROOT)
        found = _newest(chosen) if done.returncode == 0 else None
    if found is None:
        raise BenchError("no model could be trained; see above")
    return found


def _newest(chosen: Settings) -> Path | None:
    try:
        path = find_version(ROOT / chosen.model.path, chosen.model.name, chosen.model.version).path
        is_fit = load_features(path).config_hash == chosen.features_hash
    except RepositoryError:
        return None
    return path if is_fit else None
