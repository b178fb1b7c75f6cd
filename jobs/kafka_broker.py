"""A real Kafka broker on this machine for the demo, the tests and the benchmarks.

One JVM in KRaft mode, a process group of its own, everything it writes below one folder. It has no
replication and no authentication and listens on the loopback address only: never a production
broker.
"""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from jobs.environment import BUILD, QUICK_JVM, java
from jobs.jars import broker_classpath
from jobs.kafka_topics import StackError, answers, probe
from jobs.ports import HOST, free_port, is_free
from jobs.processes import Started, end, find

STACK = BUILD / "stack"
MESSAGE_MAX_BYTES = 8 * 1024 * 1024
HEAP_MAX_MIB = 512

# Record times may lie in the past (a replay), so nothing is deleted by age. The three replication
# factors and the rebalance delay are for a single broker. Flink's transactions may stay open longer
# than Kafka's default allows.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
message.max.bytes={message_max_bytes}
replica.fetch.max.bytes={message_max_bytes}
log.retention.ms=-1
log.retention.bytes=4294967296
log.segment.bytes=134217728
log.cleaner.dedupe.buffer.size=16777216
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.max.timeout.ms=7200000
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
num.network.threads=2
num.io.threads=4
"""


_LOGGING = """\
status=warn
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={logs}/broker.log
appender.file.filePattern={logs}/broker.log.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{ISO8601}} %p %c{{1}} %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=16MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
"""


@dataclass(frozen=True)
class BrokerState(Started):
    """What ``stack.json`` says about a started broker.

    Attributes:
        bootstrap: host:port for clients.
    """

    bootstrap: str


class KafkaBroker:
    """One local Kafka broker; a context manager that starts and stops it.

    The topics outlive a stop: a later start in the same folder, on the same port if none is given,
    finds them. Any process can stop a broker that another one started.

    Args:
        folder: Where its configuration, data, logs and ``stack.json`` go.
        port: Port for clients; None takes the last one used in this folder or a free one.
        start_timeout_s: Longest wait until it answers.
        stop_timeout_s: Longest wait for an orderly stop, before it is killed.
    """

    def __init__(
        self,
        folder: Path = STACK,
        *,
        port: int | None = None,
        start_timeout_s: float = 90.0,
        stop_timeout_s: float = 30.0,
    ) -> None:
        self.folder = folder.absolute()
        self._port = port
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._format_options: tuple[str, ...] = ()
        # With "=" before it: one id in 64 begins with "-" and would be taken for an option.
        self._cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        self.login: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """host:port of the running broker.

        Raises:
            StackError: it does not run.
        """
        state = self.status()
        if state is None:
            raise StackError("the local broker does not run", "run: streamscore stack up")
        return state.bootstrap

    @property
    def log(self) -> Path:
        """The broker's log file."""
        return self.folder / "logs" / "broker.log"

    def status(self) -> BrokerState | None:
        """The running broker, None if there is none."""
        state = self._recorded()
        return state if state is not None and find(state, self._mark) else None

    def start(self) -> str:
        """Start the broker and wait until it answers; does nothing if it runs.

        Returns:
            host:port for clients.

        Raises:
            StackError: the port is taken, the broker ended, or it did not answer in time; then
                nothing is left running.
            JarsError: its jars are missing.
        """
        if (running := self.status()) is not None:
            return running.bootstrap
        port = self._choose_port()
        self._configure(port)
        process = self._launch()
        bootstrap = f"{HOST}:{port}"
        try:
            self._record(process.pid, bootstrap)
            self._wait_ready(process, bootstrap)
            self._child = process
        except BaseException:
            process.kill()
            process.wait()
            self._state_path.unlink(missing_ok=True)
            raise
        return bootstrap

    def stop(self) -> bool:
        """Stop the broker: SIGTERM, a bounded wait, then SIGKILL.

        Returns:
            Whether one was running.
        """
        return self._end(signal.SIGTERM)

    def kill(self) -> bool:
        """End the broker at once, as a crash would; returns whether one was running."""
        return self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> bool:
        state = self._recorded()
        process = find(state, self._mark) if state else None
        if process is not None:
            end(process, how, self._stop_timeout_s)
        if self._child is not None:
            self._child.poll()  # or Popen warns that its process still runs
        self._state_path.unlink(missing_ok=True)
        return process is not None

    @property
    def _state_path(self) -> Path:
        return self.folder / "stack.json"

    @property
    def _mark(self) -> str:
        """What the broker's command line has and no other's."""
        return str(self._properties_path)

    @property
    def _properties_path(self) -> Path:
        return self.folder / "conf" / "server.properties"

    def _recorded(self) -> BrokerState | None:
        try:
            return BrokerState(**json.loads(self._state_path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _record(self, pid: int, bootstrap: str) -> None:
        state = BrokerState(**asdict(Started.of(pid)), bootstrap=bootstrap)
        draft = self._state_path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(state)), encoding="utf-8")
        draft.replace(self._state_path)

    def _choose_port(self) -> int:
        port = self._port or self._last_port()
        if port is None or (self._port is None and not is_free(port)):
            return free_port()
        if not is_free(port):
            raise StackError(
                f"port {port} is taken",
                f"stop what listens there, or choose another: STREAMSCORE_KAFKA={HOST}:<port>",
            )
        return port

    def _last_port(self) -> int | None:
        with suppress(FileNotFoundError):
            for line in self._properties_path.read_text(encoding="utf-8").splitlines():
                if line.startswith("advertised.listeners="):
                    return int(line.rpartition(":")[2])
        return None

    def _configure(self, port: int) -> None:
        for name in ("conf", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._properties_path.write_text(self._server_properties(port), encoding="utf-8")
        logging_text = _LOGGING.format(logs=self.folder / "logs")
        self._logging_path.write_text(logging_text, encoding="utf-8")
        if not (self.folder / "data" / "meta.properties").is_file():
            self._format()

    def _server_properties(self, port: int) -> str:
        return _PROPERTIES.format(
            host=HOST,
            port=port,
            controller_port=free_port(other_than=port),
            data=self.folder / "data",
            message_max_bytes=MESSAGE_MAX_BYTES,
        )

    @property
    def _logging_path(self) -> Path:
        return self.folder / "conf" / "log4j2.properties"

    def _format(self) -> None:
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={self._cluster_id}"]
        tool += ["-c", str(self._properties_path), *self._format_options]
        command = self._java(QUICK_JVM, *tool)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            text = (done.stderr or done.stdout).strip()
            raise StackError(f"Kafka refused to format its storage: {text}", self._start_afresh)

    @property
    def _start_afresh(self) -> str:
        return f"remove {self.folder} to start afresh"

    def _java(self, *arguments: str) -> list[str]:
        log4j = f"-Dlog4j2.configurationFile={self._logging_path}"
        return [str(java()), "-cp", broker_classpath(), log4j, *arguments]

    def _launch(self) -> subprocess.Popen[bytes]:
        heap = [QUICK_JVM, "-Xms128m", f"-Xmx{HEAP_MAX_MIB}m", "-XX:+ExitOnOutOfMemoryError"]
        command = self._java(*heap, "kafka.Kafka", str(self._properties_path))
        with (self.folder / "logs" / "console.log").open("wb") as console:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_ready(self, process: subprocess.Popen[bytes], bootstrap: str) -> None:
        deadline_s = time.monotonic() + self._start_timeout_s
        client = probe(bootstrap, self.login)
        while not answers(client):
            if process.poll() is not None:
                raise StackError(
                    f"Kafka ended at its start: {self._last_words()}", f"see {self.log}"
                )
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"Kafka did not answer within {self._start_timeout_s:.0f} s",
                    f"see {self.log}; {self._start_afresh}",
                )

    def _last_words(self) -> str:
        for path in (self.log, self.log.with_name("console.log")):
            lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
            errors = [line for line in lines if "ERROR" in line or "Exception" in line]
            if errors:
                return errors[-1]
        return "it left no error"
