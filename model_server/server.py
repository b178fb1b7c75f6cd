"""The server process: listen, load, warm up, serve, drain.

Health says NOT_SERVING from the first moment of listening until every model is warm, then SERVING,
and NOT_SERVING again from the first moment of a drain. Calls in flight get ``grace_s`` to end.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from model_server.backends import load as load_by_files
from model_server.call_record import Observers
from model_server.calls import Caller
from model_server.errors import ModelServerError
from model_server.lifecycle import LoadModel, Manager, ModelConfig
from model_server.listeners import Listeners
from model_server.logs import CallLog
from model_server.metrics import ServerMetrics
from model_server.options import Ports, ServerOptions
from model_server.running import RunningServer
from model_server.servables import Servables
from model_server.tracing import start_tracing

__all__ = ["ModelServer", "Ports", "RunningServer", "ServerOptions", "serve", "start"]

logger = logging.getLogger(__name__)


class ModelServer:
    """A server in three steps: ``listen``, ``load``, ``stop``. One event loop owns it.

    Attributes:
        servables: The models.
        manager: Loads and unloads them.
        metrics: What was counted.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        load_model: LoadModel | None = None,
        models: tuple[ModelConfig, ...] | None = None,
    ) -> None:
        """Keep the settings; nothing is opened yet.

        Args:
            options: Settings.
            load_model: Takes a version folder and the threads per call; may block. By the files in
                the folder if not given.
            models: What to serve, if it is not what the settings say any more; may be empty.

        Raises:
            StartupError: Tracing is asked for and not installed.
        """
        self._options = options
        self.servables = Servables()
        self._models = options.models if models is None else models
        for config in self._models:
            self.servables.declare(config.name, config.labels)
        self.metrics = ServerMetrics(self.servables)
        self._tracing = (
            start_tracing(options.tracing_endpoint) if options.tracing_endpoint else None
        )
        self._observer = Observers(
            [
                self.metrics,
                *([CallLog()] if options.log_calls else []),
                *([self._tracing] if self._tracing else []),
            ]
        )
        self.manager = Manager(
            self.servables,
            load_model or partial(load_by_files, python=options.model_python),
            on_loaded=self.metrics.loaded,
            on_refused=self.metrics.refused,
        )
        self._polling: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(options.threads, thread_name_prefix="predict")
        self._caller = Caller(
            self._executor,
            threads=options.threads,
            max_queued=options.max_concurrent_rpcs,
            on_run=self.metrics.ran,
        )
        self.metrics.watch_queue(lambda: self._caller.queued)
        self._listeners = Listeners(
            options,
            self.servables,
            self._caller,
            self.manager,
            self._observer,
            self._exposed,
        )
        self._listening = asyncio.Event()

    async def listen(self) -> Ports:
        """Open the ports; every model is still NOT_SERVING.

        Raises:
            StartupError: An address cannot be had, or a file of the identity not be read.
        """
        ports = await self._listeners.open()
        self._listening.set()
        return ports

    async def load_models(self) -> None:
        """Load and warm up every model; they are served once ``load`` has been called too.

        Raises:
            RepositoryError: The repository has no such model or version.
            ModelError: A model cannot be served.
        """
        await self.manager.configure(self._models)

    async def load(self) -> None:
        """Load and warm up every model, then say SERVING and look for new versions.

        May begin before ``listen`` does, but does not end before that has ended.

        Raises:
            RepositoryError: The repository has no such model or version.
            ModelError: A model cannot be served.
        """
        await self.load_models()
        await self._listening.wait()
        await self._listeners.set_serving(True)
        if self._options.poll_s:
            self._polling = asyncio.create_task(self.manager.poll_forever(self._options.poll_s))
        logger.info("event=serving models=%s", ",".join(self.servables.names))

    async def _exposed(self) -> bytes:
        return self.metrics.exposed()

    async def stop(self) -> None:
        """Refuse new calls, give those in flight ``grace_s``, then close. May be called twice."""
        logger.info("event=draining grace_s=%.1f", self._options.grace_s)
        if self._polling is not None:
            self._polling.cancel()
        self.servables.retire()
        if (remote := sys.modules.get("model_server.backends.remote")) is not None:
            remote.end_loads()
        await self._listeners.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)
        await self.servables.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        logger.info("event=stopped")


async def start(options: ServerOptions, *, load_model: LoadModel | None = None) -> RunningServer:
    """Start a server in the running event loop and return once it is SERVING.

    Args:
        options: Settings.
        load_model: Loads a version folder; by the files in it if not given.

    Raises:
        StartupError: The address cannot be had.
        RepositoryError: The repository has no such model or version.
        ModelError: The model cannot be served.
    """
    server = ModelServer(options, load_model=load_model)
    loading = asyncio.create_task(server.load())  # mostly another process's work
    try:
        ports = await server.listen()
        await loading
    except BaseException:
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await server.stop()
        raise
    return RunningServer(ports, server)


def serve(
    options: ServerOptions,
    *,
    on_ready: Callable[[Ports], None] | None = None,
    load_model: LoadModel | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Call it from the main thread.

    Args:
        options: Settings.
        on_ready: Called once with the ports when the server is SERVING.
        load_model: Loads a version folder, in a server of one process; by the files in it if not
            given.

    Returns:
        Exit code: 0 after a drain, 1 when the server could not start (the log says why).
    """
    return asyncio.run(_serve(options, on_ready, load_model))


async def _serve(
    options: ServerOptions, on_ready: Callable[[Ports], None] | None, load_model: LoadModel | None
) -> int:
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_asked.set)
    if options.workers > 1:
        from model_server.supervisor import start_workers

        starting = asyncio.create_task(start_workers(options))
    else:
        starting = asyncio.create_task(start(options, load_model=load_model))
    stopping = asyncio.create_task(stop_asked.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
    try:
        running = await starting
    except ModelServerError as exc:
        logger.error("event=start_failed reason=%s message=%s", type(exc).__name__, exc)
        return 1
    except asyncio.CancelledError:  # a signal came while it was loading
        return 0
    if on_ready is not None and not stop_asked.is_set():
        on_ready(running.ports)
    await stopping
    await running.stop()
    return 0
