"""Where things are on this machine: the project's folders, Java, what thread mode needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The project's folder: ``conf/`` is below it."""

BUILD = Path(os.environ.get("STREAMSCORE_BUILD", ROOT / "build"))
"""Folder of everything that is made: jars, data, models, logs, the local broker's files."""

JAVA_MAJOR = 17


class NotReadyError(RuntimeError):
    """Something outside the project's code is missing or broken; the caller can put it right.

    Attributes:
        fix: What to do about it, as one sentence or command.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}; {fix}")
        self.problem = problem
        self.fix = fix


QUICK_JVM = "-XX:TieredStopAtLevel=1"
"""For a JVM that lives for minutes beside others on few cores: no optimising compiler.

On two cores it takes most of one for the first minutes, and the events wait for it: at 2,000/s the
median latency was 0.2 to 4 s for half a minute, and 30 ms after 4 s without it. The Java code, a
fifth of a record's cost, then takes 2.5 times as long: a job that runs on is better off with it.
"""


def find_java() -> Path | None:
    """The ``java`` that is used: ``JAVA_HOME``'s, else the first on the path."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin") if home else None)
    return Path(found) if found else None


def java() -> Path:
    """The ``java`` that is used.

    Raises:
        NotReadyError: there is none.
    """
    found = find_java()
    if found is None:
        raise NotReadyError("no java found", f"install Java {JAVA_MAJOR} or set JAVA_HOME to one")
    return found


def java_major(executable: Path) -> int | None:
    """Major version of a ``java``, None if it does not say."""
    text = first_output([str(executable), "-version"])
    match = re.search(r'version "(\d+)', text)
    return int(match[1]) if match else None


def first_output(command: list[str], timeout_s: float = 30.0) -> str:
    """Both outputs of a short command as text, empty if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout + done.stderr


def thread_mode_env(code: Path = ROOT) -> dict[str, str]:
    """Variables to put into ``os.environ`` before PyFlink starts its JVM.

    In thread mode the JVM starts a Python of its own, which finds neither the virtual environment's
    packages nor, as ``PYTHONPATH`` folders have no ``.pth`` files, the project when that is
    installed editable. Both folders lead an existing ``PYTHONPATH``. ``PATH`` leads to the virtual
    environment too: workers of process mode, of the stock benchmark, are started as ``python``.

    Args:
        code: The folder with the project's packages.

    Returns:
        ``PYTHONPATH``, ``PATH`` and, if a Java is found, ``JAVA_HOME``.
    """
    variables = {
        "PYTHONPATH": _leading("PYTHONPATH", sysconfig.get_path("purelib"), str(code)),
        "PATH": _leading("PATH", sysconfig.get_path("scripts")),
    }
    executable = find_java()
    if executable is not None:
        variables["JAVA_HOME"] = str(executable.resolve().parents[1])
    return variables


def _leading(variable: str, *folders: str) -> str:
    rest = [part for part in os.environ.get(variable, "").split(os.pathsep) if part]
    return os.pathsep.join([*folders, *(part for part in rest if part not in folders)])
