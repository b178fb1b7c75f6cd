"""A worker of ``model_server.backends.remote`` with a library that behaves as its folder says."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from model_server.backends.base import Arrays, Signature, TensorSpec
from model_server.backends.workers.serving import serve
from model_server.errors import InvalidRows

_NEVER = threading.Event()


class Doubling:
    """Doubles; refuses what is large, and hangs at what is negative."""

    signatures: ClassVar = {
        "serving_default": Signature(
            (TensorSpec("x", np.dtype(np.float32), (None,)),),
            (TensorSpec("y", np.dtype(np.float32), (None,)),),
        )
    }

    def __init__(self, folder: Path, threads: int) -> None:
        behaviour = (folder / "behaviour").read_text()
        if behaviour == "broken":
            raise ValueError("broken")
        if behaviour == "exits":
            os._exit(3)
        if behaviour == "hangs":
            _NEVER.wait()

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        if (inputs["x"] > 1e6).any():
            raise InvalidRows("too large")
        if (inputs["x"] < 0).any():
            _NEVER.wait()
        outputs = {"y": 2 * inputs["x"]}
        return {name: outputs[name] for name in wanted}


if __name__ == "__main__":
    serve(Doubling, sys.argv[1:])
