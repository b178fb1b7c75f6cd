"""What a submission consists of, as one zip: the same inputs give the same bytes.

    code/   the project's packages, what they read of conf/, and the locks of what they import
    conf/   the job's settings file as it is (secrets stay ``${NAME}``), and overrides
    jars/   the connectors

Code is unpacked by its own hash, so that jobs which differ in settings alone share TaskManagers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from jobs.environment import BUILD, ROOT
from jobs.job_jars import jars_of
from jobs.settings import load

PACKAGES = BUILD / "packages"
_CODE = ("jobs", "model_server", "udfs")
_CODE_CONF = ("flink.yaml", "jars.sha256", "requirements.lock", "requirements-serving.lock")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_STEM = 16
"""Hex digits of a hash that name a folder."""


@dataclass(frozen=True)
class Package:
    """An unpacked submission.

    Attributes:
        sha256: Of the zip, 64 hex digits.
        code_sha256: Of the part ``code/`` alone.
        folder: Holds all packages.
        overrides: Over the settings file, by dotted name.
    """

    sha256: str
    code_sha256: str
    folder: Path
    overrides: dict[str, Any]

    @property
    def archive(self) -> Path:
        """The zip."""
        return self.folder / f"{self.sha256[:_STEM]}.zip"

    @property
    def code(self) -> Path:
        """The folder that TaskManagers import from."""
        return self.folder / f"code-{self.code_sha256[:_STEM]}"

    @property
    def job(self) -> Path:
        """The folder with ``conf/`` and ``jars/``."""
        return self.folder / f"job-{self.sha256[:_STEM]}"

    @property
    def conf(self) -> Path:
        """The settings file."""
        return self.job / "conf" / "job.yaml"

    @property
    def jars(self) -> list[Path]:
        """The connectors."""
        return sorted((self.job / "jars").glob("*.jar"))


def make(
    conf: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    root: Path = ROOT,
    folder: Path = PACKAGES,
) -> Package:
    """Pack and unpack a job.

    Args:
        conf: Its settings file, which has been checked.
        overrides: Over that file, by dotted name.
        root: The project's folder, whose code is packed.
        folder: Where packages go.

    Raises:
        NotReadyError: a jar is missing.
    """
    chosen = dict(overrides or {})
    code = dict(_code(root))
    files = {f"code/{name}": content for name, content in code.items()}
    files["conf/job.yaml"] = conf.read_bytes()
    files["conf/overrides.json"] = json.dumps(chosen, sort_keys=True).encode()
    files |= {f"jars/{jar.name}": jar.read_bytes() for jar in jars_of(load(conf, chosen))}
    content = zipped(files)
    package = Package(_digest(content), _digest(zipped(code)), folder.absolute(), chosen)
    folder.mkdir(parents=True, exist_ok=True)
    package.archive.write_bytes(content)
    _unpack(package.code, code)
    _unpack(package.job, {n: c for n, c in files.items() if not n.startswith("code/")})
    for source in (root, *folder.glob("code-*")):
        _take_machine_code(source, package.code)
    return package


def _code(root: Path) -> Iterable[tuple[str, bytes]]:
    for top in _CODE:
        for path in (root / top).rglob("*"):
            if path.suffix in (".py", ".proto"):
                yield path.relative_to(root).as_posix(), path.read_bytes()
    for name in _CODE_CONF:
        yield f"conf/{name}", (root / "conf" / name).read_bytes()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip of files by name: sorted, without times, owners or modes of this machine."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            stored = PurePosixPath(name).suffix == ".jar"
            entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder, which is complete once it is there."""
    if folder.is_dir():
        return
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    for name, content in files.items():
        path = draft / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    draft.rename(folder)


def _take_machine_code(root: Path, code: Path) -> None:
    """Take over what Numba has compiled: it is valid wherever the kernels' sources are the same.

    ``udfs/compiled.py`` stamps it with their content, so that other kernels compile anew.
    """
    for pattern in ("*.nbi", "*.nbc"):
        for path in (root / "udfs").rglob(pattern):
            target = code / path.relative_to(root)
            if not target.exists() and target.parent.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                shutil.copy(path, target)
