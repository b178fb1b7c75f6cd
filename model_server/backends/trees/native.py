"""The loops over trees as machine code, mapped into memory as it is.

Numba, which makes the code, takes a second to import and 70 MiB, and LLVM alone 40 MiB; a server
that only runs it need not pay for that. The code is made once per processor and version, in a
process of its own, and kept beside the byte code of this package or in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from model_server.backends.trees.code_file import HEAD
from model_server.copies import cache_dir
from model_server.errors import ModelError

__all__ = ["Kernels", "Run", "address", "kernels"]

logger = logging.getLogger(__name__)

_MODULE = "model_server.backends.trees.kernels"
_SOURCE = Path(__file__).with_name("kernels.py")
_ROOT = _SOURCE.parents[3]
_DIGEST_BYTES = hashlib.sha256().digest_size

_PROCESSOR = ("vendor_id", "cpu family", "model\t", "flags", "CPU ", "Features")
"""Lines of /proc/cpuinfo by which a compiler chooses instructions, on x86-64 and on ARM."""

_P, _N, _COUNT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
_ADD_LEAVES = ctypes.CFUNCTYPE(
    None, _P, _P, _P, _P, ctypes.c_float, _N, _COUNT, _P, _COUNT, _COUNT, _N, _P, _P
)
_ADD_CONTRIBUTIONS = ctypes.CFUNCTYPE(
    None, _P, _P, _P, _P, _P, _P, _P, _P, _N, _P, _N, _N, _P, _P, _P
)


@dataclass(frozen=True)
class Kernels:
    """The functions of ``kernels``, called without the interpreter's lock.

    Attributes:
        add_leaves: See there; pointers are integers, see ``address``.
        add_contributions: See there.
        memory: Where the machine code lies.
    """

    add_leaves: Callable[..., None]
    add_contributions: Callable[..., None]
    memory: mmap.mmap


_lock = threading.Lock()
_loaded: Kernels | None = None


def kernels() -> Kernels:
    """Load the loops; where none are kept yet the first call takes some seconds.

    Raises:
        ModelError: They cannot be compiled on this machine.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load(_code())
        return _loaded


def address(array: npt.NDArray[np.generic]) -> int:
    """Return where the array's values begin; it must be C-contiguous, and outlive the address."""
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])


def _load(code: bytes) -> Kernels:
    # From a file in memory, not the kept one: a cache may lie where nothing is executable.
    with open(os.memfd_create("kernels"), "wb") as file:
        file.write(code)
        file.flush()
        memory = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    begin = address(np.frombuffer(memory, np.uint8))
    add_leaves, add_contributions = (begin + at for at in HEAD.unpack_from(memory))
    return Kernels(_ADD_LEAVES(add_leaves), _ADD_CONTRIBUTIONS(add_contributions), memory)


def _code() -> bytes:
    name = f"kernels-{_key()}.bin"
    for folder in _folders():
        if (kept := _read(folder / name)) is not None:
            return kept
    logger.info("event=compiling_kernels message=once per machine, for some seconds")
    made = _compile()
    for folder in _folders():
        if _write(folder / name, made):
            return made
    logger.warning(
        "event=kernels_not_kept message=no folder can be written, so each start compiles again: "
        "set XDG_CACHE_HOME"
    )
    return made


def _key() -> str:
    """What the machine code depends on: the compiler, the processor and the source."""
    first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    processor = [line for line in first.splitlines() if line.startswith(_PROCESSOR)]
    versions = [metadata.version(name) for name in ("numba", "llvmlite")]
    parts = [_SOURCE.read_bytes(), "\n".join([platform.machine(), *processor, *versions]).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _folders() -> Iterator[Path]:
    yield _SOURCE.parent / "__pycache__"
    yield cache_dir()


def _read(path: Path) -> bytes | None:
    """Return kept code; None if there is none, or if it is damaged."""
    try:
        digest, content = (kept := path.read_bytes())[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
    except OSError:
        return None
    return content if hashlib.sha256(content).digest() == digest else None


def _write(path: Path, content: bytes) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
            draft.write(hashlib.sha256(content).digest() + content)
        os.replace(draft.name, path)  # another process reads the old one or the new, never half
    except OSError:
        return False
    return True


def _compile() -> bytes:
    if "numba" in sys.modules:  # its price is paid: a Flink worker, whose features need it too
        from model_server.backends.trees.kernels import compile_code

        return compile_code()
    with Run(_MODULE) as run:
        return run.output()[:]


class Run:
    """A module of ours running in a process of its own; a context manager that ends with it.

    What it writes to stdout goes through a file that has no name any more, not through a pipe: to
    collect megabytes from a pipe holds the interpreter's lock for milliseconds.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        """Start it.

        Args:
            module: Its name.
            arguments: Its arguments.
        """
        # One thread, and not in the way of a server that answers meanwhile.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        paths = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        self._module = module
        self._written = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._written,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes its pipe and waits
            self._process.kill()
        self._written.close()

    def output(self) -> mmap.mmap:
        """Wait for its end; return what it wrote to stdout.

        Raises:
            ModelError: It failed; the message is the last line that it wrote to stderr.
        """
        _, errors = self._process.communicate()
        if status := self._process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit code {status}"
            raise ModelError(f"python -m {self._module} failed: {reason}")
        return mmap.mmap(self._written.fileno(), 0, access=mmap.ACCESS_READ)
