"""The jars: Flink's Kafka connector and the local broker, fetched by Maven and checked.

``conf/pom.xml`` and ``conf/kafka-pom.xml`` name them, ``conf/jars.sha256`` says what they must
contain. ``python -m jobs.jars`` fetches what is missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.environment import BUILD, ROOT, NotReadyError

JARS = BUILD / "jars"
POMS = {"flink": ROOT / "conf" / "pom.xml", "kafka": ROOT / "conf" / "kafka-pom.xml"}
SUMS = ROOT / "conf" / "jars.sha256"
_TOKEN_JARS = ("jackson-annotations-", "jackson-core-", "jackson-databind-", "jose4j-")

Progress = Callable[[str], None]


class JarsError(NotReadyError):
    """A jar is missing, cannot be fetched, or is not the one it should be."""


def silent(_: str) -> None:
    """A progress callback that shows nothing."""


def expected() -> dict[str, str]:
    """SHA-256 in hex of every jar, by its path below the jars' folder, e.g. ``flink/a.jar``."""
    rows = (line.split() for line in SUMS.read_text(encoding="ascii").splitlines())
    return {path: digest for digest, path in rows}


def damaged(folder: Path = JARS) -> list[str]:
    """Paths below ``folder`` of the jars that are missing or have other contents."""
    return [path for path, digest in expected().items() if _sha256(folder / path) != digest]


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def flink_jars(folder: Path = JARS) -> list[Path]:
    """The jars a job needs beside Flink's own.

    Raises:
        JarsError: one is missing.
    """
    return list(_present("flink", folder))


def token_jars(folder: Path = JARS) -> list[Path]:
    """What Kafka's client reads an OAuth token with: Flink's connector leaves it out.

    They are the broker's own.

    Raises:
        JarsError: one is missing.
    """
    return [path for path in _present("kafka", folder) if path.name.startswith(_TOKEN_JARS)]


def broker_classpath(folder: Path = JARS) -> str:
    """The local broker's class path.

    Raises:
        JarsError: a jar is missing.
    """
    return os.pathsep.join(str(path) for path in _present("kafka", folder))


def _present(group: str, folder: Path) -> Iterator[Path]:
    for path in expected():
        if path.startswith(f"{group}/"):
            if not (folder / path).is_file():
                raise JarsError(f"{folder / path} is missing", "run: make jars")
            yield folder / path


def fetch(progress: Progress = silent, folder: Path = JARS) -> bool:
    """Make all jars present and right; quick when they are.

    Args:
        progress: Called with one line per group that is fetched.
        folder: Where the groups' folders go.

    Returns:
        Whether anything had to be fetched.

    Raises:
        JarsError: Maven is missing or failed, or a fetched jar is not the expected one.
    """
    groups = sorted({path.split("/")[0] for path in damaged(folder)})
    for group in groups:
        progress(f"fetching the {group} jars")
        _copy_dependencies(group, folder / group)
    if groups and (wrong := damaged(folder)):
        raise JarsError(
            f"{', '.join(wrong)}: SHA-256 differs from conf/jars.sha256",
            "remove them from build/jars and from Maven's local repository, then run: make jars",
        )
    return bool(groups)


def _copy_dependencies(group: str, target: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise JarsError("mvn is not on the path", "install Maven 3.6 or newer")
    shutil.rmtree(target, ignore_errors=True)  # a jar of an older version would stay otherwise
    goal = "dependency:copy-dependencies"
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={target.absolute()}"]
    command = [maven, "-q", "-B", "-f", str(POMS[group]), goal, *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise JarsError(
            f"Maven failed: {_first_error(done.stdout)}", "check the network, then retry"
        )


def _first_error(output: str) -> str:
    errors = (line for line in output.splitlines() if line.startswith("[ERROR]"))
    return next(errors, "no error text").removeprefix("[ERROR]").strip()


def main() -> int:
    """Fetch the jars from the command line; returns the exit code."""
    try:
        if fetch(progress=print):
            print(f"the jars are in {JARS}")
    except JarsError as exc:
        print(exc, file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
