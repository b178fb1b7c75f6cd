"""The worker's side: load a model, then answer calls on a socket until the server is gone."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Protocol

from model_server.backends.base import Arrays, Signature
from model_server.backends.frames import pack, unpack
from model_server.errors import InvalidRows

__all__ = ["Runner", "serve"]

_BACKLOG = 64


class Runner(Protocol):
    """A model in its own library."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """See ``backends.base.Model``."""

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        """See ``backends.base.Model``."""


def serve(load: Callable[[Path, int], Runner], arguments: Sequence[str]) -> None:
    """Load a model and answer.

    Args:
        load: Takes a version folder and the threads of a call; whatever it raises is the reason
            why the model cannot be served.
        arguments: The folder, the threads, and where to make the socket.
    """
    folder, threads, address = Path(arguments[0]), int(arguments[1]), arguments[2]
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    with Listener(address, "AF_UNIX", backlog=_BACKLOG) as listener:
        first = listener.accept()
        try:
            runner = load(folder, threads)
        except Exception as exc:  # any library's
            first.send_bytes(pack({"error": f"{type(exc).__name__}: {exc}"}, {}))
            return
        first.send_bytes(pack({"signatures": _described(runner.signatures)}, {}))
        connection = first
        while True:
            threading.Thread(target=_answer, args=(runner, connection), daemon=True).start()
            connection = listener.accept()


def _end_with_the_server() -> None:
    sys.stdin.buffer.read()  # until the server closes its end, or dies
    os._exit(0)


def _answer(runner: Runner, connection: Connection) -> None:
    while True:
        try:
            head, inputs = unpack(connection.recv_bytes())
        except (EOFError, OSError):
            return
        connection.send_bytes(_answered(runner, head, inputs))


def _answered(runner: Runner, head: Mapping[str, Any], inputs: Arrays) -> bytes:
    try:
        return pack({}, runner.run(head["signature"], inputs, head["wanted"]))
    except InvalidRows as exc:
        return pack({"invalid": str(exc)}, {})
    except Exception as exc:  # any library's
        return pack({"error": f"{type(exc).__name__}: {exc}"}, {})


def _described(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    return {
        name: {
            "method": signature.method,
            **{
                side: [
                    (spec.name, "O" if spec.dtype.kind == "O" else spec.dtype.str, spec.shape)
                    for spec in getattr(signature, side)
                ]
                for side in ("inputs", "outputs")
            },
        }
        for name, signature in signatures.items()
    }
