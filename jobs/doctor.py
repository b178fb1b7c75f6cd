"""Is this machine ready? Every requirement with what was found and, where it fails, the fix."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from jobs import jars, kafka_broker, ports
from jobs.environment import BUILD, JAVA_MAJOR, ROOT, find_java, first_output, java_major

GIB = 1024**3
MIN_MEMORY_BYTES = 4 * GIB
MIN_DISK_BYTES = 5 * GIB
MIN_MAVEN = (3, 6)
KAFKA_PORT = 9092
MODEL_SERVER_PORT = 8500
LAST_DEMO_DAY = datetime(2025, 3, 17, tzinfo=UTC)
LOCK = ROOT / "conf" / "requirements.lock"

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: What was checked.
        verdict: A warning does not make the machine unready.
        found: What is there.
        fix: What to do about it; empty when ok.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def _finding(name: str, good: bool, found: str, fix: str, bad: Verdict = "failed") -> Finding:
    return Finding(name, "ok", found) if good else Finding(name, bad, found, fix)


def check_python() -> Finding:
    """Python 3.11: apache-flink 2.3.0 and the locks are for it."""
    version = sys.version_info
    found = f"{version.major}.{version.minor}.{version.micro}"
    fix = "run: make clean setup PYTHON=/path/to/python3.11"
    return _finding("Python 3.11", version[:2] == (3, 11), found, fix)


def check_packages(lock: Path = LOCK) -> Finding:
    """Every package at its locked version."""
    wrong = [name for name, version in _locked(lock) if _installed(name) != version]
    found = f"not as locked: {', '.join(wrong)}" if wrong else "as locked"
    return _finding("Packages", not wrong, found, "run: make setup")


def _locked(lock: Path) -> Iterator[tuple[str, str]]:
    has_tensorflow = _installed("tensorflow") is not None
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE):
        if not (has_tensorflow and name == "tensorflow-protobuf"):  # the extra replaces it
            yield name, version


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_java() -> Finding:
    """Java 17 runs Flink and Kafka."""
    found = find_java()
    major = java_major(found) if found else None
    text = f"{major or 'broken'} at {found}" if found else "none"
    fix = f"install Java {JAVA_MAJOR}, or set JAVA_HOME to one"
    return _finding(f"Java {JAVA_MAJOR}", major == JAVA_MAJOR, text, fix)


def check_maven() -> Finding:
    """Maven fetches the jars; once they are there its absence does no harm."""
    match = re.search(r"Apache Maven (\d+)\.(\d+)\S*", first_output(["mvn", "-v"]))
    good = match is not None and (int(match[1]), int(match[2])) >= MIN_MAVEN
    found = match[0].removeprefix("Apache Maven ") if match else "none"
    bad: Verdict = "failed" if jars.damaged() else "warning"
    return _finding("Maven 3.6+", good, found, "install Maven 3.6 or newer", bad)


def check_jars() -> Finding:
    """Every jar is there with its SHA-256."""
    bad = jars.damaged()
    found = f"{len(jars.expected())} present, checksums right"
    if bad:
        found = f"missing or damaged: {', '.join(bad[:3])}" + (" ..." if len(bad) > 3 else "")
    return _finding("Jars", not bad, found, "run: make jars")


def check_thread_mode() -> Finding:
    """Thread mode: pemja embeds Python in the JVM, clusters find flink-python's jar."""
    needed = {"pemja": "pemja_core*.so", "pyflink": "lib/flink-python-*.jar"}
    missing = [
        f"{package}/{files}" for package, files in needed.items() if not _has(package, files)
    ]
    found = f"missing: {', '.join(missing)}" if missing else "pemja and flink-python's jar"
    return _finding("Thread mode", not missing, found, "run: make clean setup")


def _has(package: str, files: str) -> bool:
    spec = importlib.util.find_spec(package)
    return bool(spec and spec.origin and list(Path(spec.origin).parent.glob(files)))


def check_kafka_port(port: int = KAFKA_PORT) -> Finding:
    """The local broker's port is free, or the broker's."""
    running = kafka_broker.KafkaBroker().status()
    ours = running is not None and ports.port_of(running.bootstrap) == port
    found = "the local broker's" if ours else "free" if ports.is_free(port) else "taken"
    fix = "set STREAMSCORE_KAFKA=127.0.0.1:<a free port>"
    return _finding(f"Port {port} (Kafka)", found != "taken", found, fix, "warning")


def check_model_server_port(port: int = MODEL_SERVER_PORT) -> Finding:
    """The model server's port is free; a warning, as it may be the model server that has it."""
    free = ports.is_free(port)
    fix = "unless that is the model server, set STREAMSCORE_MODEL_SERVER=127.0.0.1:<a free port>"
    name = f"Port {port} (model server)"
    return _finding(name, free, "free" if free else "taken", fix, "warning")


def check_memory() -> Finding:
    """Memory for Flink, Kafka and the model server side by side."""
    free_bytes = psutil.virtual_memory().available
    return _finding(
        f"Memory {MIN_MEMORY_BYTES // GIB} GiB",
        free_bytes >= MIN_MEMORY_BYTES,
        f"{free_bytes / GIB:.1f} GiB available",
        "end other programs, or take a larger machine",
    )


def check_disk(folder: Path = BUILD) -> Finding:
    """Disk space for jars, data, checkpoints and the broker's logs."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free_bytes = shutil.disk_usage(existing).free
    return _finding(
        f"Disk {MIN_DISK_BYTES // GIB} GiB",
        free_bytes >= MIN_DISK_BYTES,
        f"{free_bytes / GIB:.1f} GiB free",
        f"free some space below {existing}",
    )


def check_clock(now_s: Callable[[], float] = time.time) -> Finding:
    """The clock is past the demo's events; events of the future become dead letters."""
    now = datetime.fromtimestamp(now_s(), tz=UTC)
    found = now.isoformat(timespec="seconds")
    return _finding("Clock", now > LAST_DEMO_DAY, found, "set the system's clock, e.g. with NTP")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_packages,
    check_java,
    check_maven,
    check_jars,
    check_thread_mode,
    check_kafka_port,
    check_model_server_port,
    check_memory,
    check_disk,
    check_clock,
)


def examine(checks: tuple[Callable[[], Finding], ...] = CHECKS) -> list[Finding]:
    """Run the checks in their order."""
    return [check() for check in checks]


def is_ready(findings: list[Finding]) -> bool:
    """Whether none failed."""
    return all(finding.verdict != "failed" for finding in findings)


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """The findings as plain types: ``ready`` and one object per check."""
    return {"ready": is_ready(findings), "checks": [asdict(finding) for finding in findings]}
