"""Models that run in a process of their own, beside the server.

For libraries that are large, that hold the interpreter's lock, or that shall not be in the
server's environment: it stays as small as it is, and a model that crashes takes no other with it.
The process may belong to another interpreter, and ends with the server however that ends.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Self

import numpy as np

from model_server import warmup
from model_server.backends.base import PREDICT_SIGNATURE, Arrays, Signature, TensorSpec
from model_server.backends.frames import pack, unpack
from model_server.errors import InvalidRows, ModelError, ServableNotReady

__all__ = ["RemoteModel", "end_loads"]

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]
_STDERR = 2
_WORKERS = "model_server.backends.workers"
_START_S = 120.0
_LOAD_S = 600.0
_CALL_S = 60.0
_END_S = 1.0
"""From the end of a process' connections to its own."""
_STOP_S = 5.0
_POLL_S = 0.02


def end_loads() -> None:
    """Kill the processes that load a model now: the server ends, and waits for those who wait."""
    for worker in list(_loading):
        worker.kill()


class _Worker:
    """The process and the connections to it."""

    def __init__(self, python: str, module: str, version_dir: Path, threads: int) -> None:
        """Start it and load the model.

        Raises:
            ModelError: It cannot; the message says why.
        """
        self._name = module
        self._folder = tempfile.TemporaryDirectory(prefix="streamscore-")  # ours alone
        self._address = str(Path(self._folder.name) / "socket")
        self._idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        # Another interpreter finds this package here, and nothing else of ours.
        (Path(self._folder.name) / _PACKAGE.name).symlink_to(_PACKAGE)
        arguments = [str(version_dir.resolve()), str(threads), self._address]
        # Not resolved: a virtual environment's interpreter is a link.
        program = os.path.abspath(python) if os.sep in python else python
        try:
            self._process = subprocess.Popen(
                [program, "-m", f"{_WORKERS}.{module}", *arguments],
                cwd=self._folder.name,
                env=_environment(python),
                stdin=subprocess.PIPE,
                stdout=_STDERR,
            )
        except OSError as exc:
            self._folder.cleanup()
            raise ModelError(f"cannot start {program}: {exc.strerror}") from exc
        _loading.add(self)
        try:
            first = self._connect_first()
            head, _ = unpack(self._received(first))
            if "error" in head:
                raise ModelError(f"{version_dir}: {head['error']}")
        except BaseException:
            self.stop()
            raise
        finally:
            _loading.discard(self)
        self.signatures = {name: _signature(said) for name, said in head["signatures"].items()}
        self._idle.put(first)

    def _connect_first(self) -> Connection:
        """Connect as soon as the socket is there."""
        ends_s = time.monotonic() + _START_S
        while time.monotonic() < ends_s:
            try:
                return Client(self._address, "AF_UNIX")
            except OSError:
                if (status := self._process.poll()) is not None:
                    raise ModelError(f"the {self._name} process ended with {status}") from None
            time.sleep(_POLL_S)
        raise ModelError(f"the {self._name} process does not answer after {_START_S:g} s")

    def _received(self, connection: Connection) -> bytes:
        try:
            if not connection.poll(_LOAD_S):
                raise ModelError(f"the model is not loaded after {_LOAD_S:g} s")
            return connection.recv_bytes()
        except (EOFError, OSError):
            raise ModelError(
                f"the {self._name} process ended while it loaded the model, with "
                f"{self._process.wait()}"
            ) from None

    def call(self, request: bytes) -> bytes:
        """Send a frame and return the answer.

        Raises:
            EOFError: The process is gone.
            OSError: The same.
        """
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = Client(self._address, "AF_UNIX")
        try:
            connection.send_bytes(request)
            if not connection.poll(_CALL_S):
                self.kill()  # it hangs, and holds threads that other models need
                raise EOFError
            answer = connection.recv_bytes()
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)
        return answer

    def has_ended(self) -> bool:
        """Whether the process is gone, and not only a connection to it."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End the process at once; who waits for it gets an error."""
        self._process.kill()

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()
        self._folder.cleanup()


_loading: set[_Worker] = set()


class RemoteModel:
    """A model by its worker. A worker that dies is started again; calls are refused meanwhile."""

    def __init__(
        self, platform: str, module: str, version_dir: Path, threads: int, python: str
    ) -> None:
        """Start its process; see ``load``."""
        self.platform = platform
        self._start = (python, module, version_dir, threads)
        self._lock = threading.Lock()
        self._worker: _Worker | None = _Worker(*self._start)
        self._closed = False
        self.signatures: Mapping[str, Signature] = self._worker.signatures

    @classmethod
    def load(
        cls, module: str, platform: str, version_dir: Path, threads: int, python: str = ""
    ) -> Self:
        """Load a version folder in a process of its own.

        Args:
            module: One of ``backends.workers``.
            platform: Its kind, in the Open Inference Protocol's words.
            version_dir: Folder in the repository's layout.
            threads: Threads for one call.
            python: The process' interpreter; this one's if empty.

        Raises:
            ModelError: The model cannot be served.
        """
        return cls(platform, module, version_dir, threads, python or sys.executable)

    def warm_up(self) -> None:
        """Run zeros through ``serving_default``; a model may refuse them."""
        signature = self.signatures[PREDICT_SIGNATURE]
        if any(spec.shape is None for spec in signature.inputs):
            return
        inputs = {spec.name: warmup.zeros(spec, 1) for spec in signature.inputs}
        try:
            self.run(PREDICT_SIGNATURE, inputs, [spec.name for spec in signature.outputs])
        except (InvalidRows, ModelError) as exc:
            logger.info("event=warm_up_skipped message=%s", exc)

    def is_quick(self, signature_name: str, rows: int) -> bool:
        """Never: the answer is waited for."""
        return False

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        """Call a signature; see ``Model``.

        Raises:
            InvalidRows: The values are none that the model takes.
            ModelError: The model failed.
            ServableNotReady: Its process has ended and is being started again.
        """
        worker = self._worker
        if worker is None:
            raise ServableNotReady("the model's process is being started again")
        request = pack({"signature": signature_name, "wanted": list(wanted)}, inputs)
        try:
            head, outputs = unpack(worker.call(request))
        except (EOFError, OSError) as exc:
            if not worker.has_ended():  # as when this process has no file descriptor left
                raise ServableNotReady(f"the model's process cannot be asked: {exc}") from exc
            self._start_again(worker)
            raise ServableNotReady("the model's process ended during the call") from exc
        if "invalid" in head:
            raise InvalidRows(head["invalid"])
        if "error" in head:
            raise ModelError(head["error"])
        return outputs

    def _start_again(self, dead: _Worker) -> None:
        with self._lock:
            if self._worker is not dead or self._closed:
                return  # another call saw to it
            self._worker = None
        logger.error("event=model_process_ended message=starting it again")
        threading.Thread(target=self._replace, args=(dead,), daemon=True).start()

    def _replace(self, dead: _Worker) -> None:
        with suppress(OSError):
            dead.stop()
        delay_s = 0.1
        while not self._closed:
            try:
                worker = _Worker(*self._start)
            except Exception as exc:  # as when memory is short, which is when processes die
                logger.error("event=model_process_failed message=%s", exc)
                time.sleep(delay_s)
                delay_s = min(2 * delay_s, 30.0)
                continue
            with self._lock:
                if not self._closed:
                    self._worker = worker
                    return
            worker.stop()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()


def _environment(python: str) -> dict[str, str]:
    """Return this process' environment; without paths of packages for another interpreter."""
    dropped = {"PYTHONSAFEPATH", *([] if python == sys.executable else ["PYTHONPATH"])}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def _signature(said: Mapping[str, Any]) -> Signature:
    def specs(side: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, np.dtype(kind), None if shape is None else tuple(shape))
            for name, kind, shape in said[side]
        )

    return Signature(specs("inputs"), specs("outputs"), said["method"])
