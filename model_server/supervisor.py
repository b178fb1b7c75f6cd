"""Several processes that share the ports of calls, and one that starts and watches them.

Each worker is a whole server: it has the models, looks for new versions itself and listens with
SO_REUSEPORT, by which the kernel gives each connection to one of them. The supervisor runs no
model. It has the ports of admin calls and metrics, where it answers for all: a version is AVAILABLE
and the server SERVING if that is so in every worker, a change reaches every worker, and counts are
sums. A worker that ends is started anew, later each time if it ends soon; the others go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import Counter, Gauge

from model_server.call_record import Observers
from model_server.calls import Caller
from model_server.errors import ModelServerError, StartupError
from model_server.lifecycle import ModelConfig
from model_server.listeners import Listeners
from model_server.logs import CallLog
from model_server.metrics import ServerMetrics
from model_server.options import Ports, ServerOptions
from model_server.running import RunningServer
from model_server.worker_channel import Asker
from model_server.worker_reports import Counts, Merged

__all__ = ["Supervisor", "start_workers"]

logger = logging.getLogger(__name__)

_LOOK_S = 0.25
"""Seconds between two looks at the workers' models."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_STEADY_S = 60.0
"""A worker that lived so long is started anew without a longer pause than the first."""
_KILL_S = 15.0
"""Seconds beyond the calls' own that a worker gets to end."""


@dataclass
class _Worker:
    """A running worker.

    Attributes:
        process: It.
        asker: Asks it.
        serving: Whether it has opened its ports.
        counted: Its metrics when it was asked last.
    """

    process: asyncio.subprocess.Process
    asker: Asker
    serving: bool = False
    counted: bytes = b""
    begun_s: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps the workers; where ``lifecycle.Manager`` changes one process, this changes all."""

    def __init__(self, options: ServerOptions) -> None:
        """Start nothing yet."""
        self._options = options
        self._models = {config.name: config for config in options.models}
        self._workers: dict[int, _Worker] = {}
        self._changing = asyncio.Lock()  # a change waits for a worker that starts, and it for them
        self._tasks: list[asyncio.Task[None]] = []
        self._held: list[socket.socket] = []
        self._merged, self._counts = Merged(), Counts()
        self._metrics = ServerMetrics(self._merged)
        registry = self._metrics.registry
        serving = Gauge("streamscore_server_workers", "Workers that serve", registry=registry)
        serving.set_function(lambda: len(self._serving()))
        self._restarts = Counter(
            "streamscore_server_worker_restarts", "Workers that ended", registry=registry
        )
        self._executor = ThreadPoolExecutor(1)
        observer = Observers([self._metrics, *([CallLog()] if options.log_calls else [])])
        caller = Caller(self._executor)
        self._listeners = Listeners(options, self._merged, caller, self, observer, self._exposed)

    async def start(self) -> Ports:
        """Start the workers, and return where they listen once all are SERVING.

        Raises:
            StartupError: An address cannot be had.
            RepositoryError: The repository has no such model or version.
            ModelError: A model cannot be served.
        """
        options = self._options
        port = self._hold(options.port)
        http_port = None if options.http_port is None else self._hold(options.http_port)
        self._options = replace(options, port=port, http_port=http_port)
        numbers = range(options.workers)
        # All are loaded before one listens: else the first would have all connections.
        await asyncio.gather(*(self._prepare(number) for number in numbers))
        await asyncio.gather(*(self._open(number) for number in numbers))
        await self._look()
        admin = await self._listeners.open_admin()
        await self._listeners.set_serving(True)
        self._tasks = [asyncio.create_task(self._keep(number)) for number in numbers]
        self._tasks.append(asyncio.create_task(self._look_forever()))
        return Ports(port, http_port, *admin)

    async def stop(self) -> None:
        """Let every worker drain and end; kill one that does not."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(self._listeners.stop(), *map(self._end, self._workers.values()))
        self._executor.shutdown(wait=False)
        for held in self._held:
            held.close()

    async def configure(self, configs: Iterable[ModelConfig]) -> None:
        """See ``Manager.configure``, in every worker."""
        wanted = {config.name: config for config in configs}
        async with self._changing:
            self._models |= wanted
            await self._change("configure", tuple(wanted.values()))
            self._models = wanted
            await self._look()

    async def load(self, config: ModelConfig) -> None:
        """See ``Manager.load``, in every worker."""
        async with self._changing:
            await self._change("load", config)
            self._models[config.name] = config

    async def unload(self, name: str) -> bool:
        """See ``Manager.unload``, in every worker."""
        async with self._changing:
            self._models.pop(name, None)
            return any(await self._change("unload", name))

    async def _change(self, name: str, *arguments: Any) -> list[Any]:
        workers = self._serving().values()
        asked = [worker.asker.ask(name, *arguments) for worker in workers]
        results = await asyncio.gather(*asked, return_exceptions=True)
        await self._look()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def _serving(self) -> dict[int, _Worker]:
        return {number: worker for number, worker in self._workers.items() if worker.serving}

    def _hold(self, port: int) -> int:
        """Take a port without listening, so that no stranger gets it while no worker has it."""
        host = self._options.host
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            if port:
                with socket.create_server((host, port), family=family):
                    pass  # with SO_REUSEPORT another server on this port would not be noticed
            held = socket.socket(family)
            self._held.append(held)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except OSError as exc:
            raise StartupError(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
        return int(held.getsockname()[1])

    async def _prepare(self, number: int) -> None:
        """Start a worker and have it load the models."""
        here, there = socket.socketpair()
        with there:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "model_server.worker", str(there.fileno())),
                os.environ.get("PYTHONPATH", ""),
                pass_fds=[there.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=asyncio.subprocess.DEVNULL,
            )
        logger.info("event=worker_started worker=%d pid=%d", number, process.pid)
        worker = self._workers[number] = _Worker(process, await Asker.over(here))
        options = replace(self._options, admin_port=None, admin_http_port=None, metrics_port=None)
        await worker.asker.ask("prepare", options, tuple(self._models.values()))

    async def _open(self, number: int) -> None:
        await self._workers[number].asker.ask("open")
        self._workers[number].serving = True

    async def _keep(self, number: int) -> None:
        """Start a worker anew whenever it ends."""
        pause_s = _FIRST_PAUSE_S
        while True:
            worker = self._workers[number]
            code = await worker.process.wait()
            if worker.serving:
                self._counts.keep(worker.counted)
            if time.monotonic() - worker.begun_s > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            del self._workers[number]
            self._restarts.inc()
            logger.error("event=worker_ended worker=%d code=%d pause_s=%.2f", number, code, pause_s)
            await self._look()
            await worker.asker.close()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                async with self._changing:
                    await self._prepare(number)
                    await self._open(number)
                    await self._look()
            except ModelServerError as exc:
                logger.error("event=worker_failed worker=%d message=%s", number, exc)
                await self._end(self._workers[number])

    async def _look(self) -> None:
        """Ask every worker for its models, and say so to those who ask the supervisor."""
        reports: list[Any] = []
        for number in range(self._options.workers):
            reports.append({})
            if (worker := self._serving().get(number)) is not None:
                with suppress(ModelServerError):  # it has just ended
                    reports[-1] = await worker.asker.ask("report")
        self._merged.show(reports, self._models)
        await self._listeners.set_serving(all(reports))

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._look()

    async def _exposed(self) -> bytes:
        for worker in self._serving().values():
            with suppress(ModelServerError):
                worker.counted = await worker.asker.ask("metrics")
        counted = {number: worker.counted for number, worker in self._serving().items()}
        return self._counts.merged(counted, self._metrics.exposed())

    async def _end(self, worker: _Worker) -> None:
        with suppress(ProcessLookupError):
            worker.process.terminate()
        try:
            await asyncio.wait_for(worker.process.wait(), self._options.grace_s + _KILL_S)
        except TimeoutError:
            worker.process.kill()
            await worker.process.wait()
        await worker.asker.close()


async def start_workers(options: ServerOptions) -> RunningServer:
    """Start a server of several processes and return once all of them are SERVING.

    Raises:
        StartupError: An address cannot be had.
        RepositoryError: The repository has no such model or version.
        ModelError: A model cannot be served.
    """
    supervisor = Supervisor(options)
    try:
        ports = await supervisor.start()
    except BaseException:
        await supervisor.stop()
        raise
    logger.info("event=serving models=%s workers=%d", ",".join(_names(options)), options.workers)
    return RunningServer(ports, supervisor)


def _names(options: ServerOptions) -> list[str]:
    return [config.name for config in options.models]
