"""Real Redis and PostgreSQL servers, each in a folder of its own and stopped by its pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from jobs.ports import HOST, free_port
from tests.support.waiting import wait_until
from udfs.definition.store_tls import StoreTlsSpec

_START_S = 60.0
_STOP_S = 20.0
_POSTGRES_HOMES = "lib/postgresql/*/bin"


@dataclass(frozen=True)
class Identities:
    """PEM files for a server that takes TLS alone, from clients with a certificate.

    Attributes:
        ca: Who signs the server, and the clients that it takes.
        server: Its certificate, for ``localhost`` alone, with its key.
        client: The same of a client.
    """

    ca: Path
    server: Path
    client: Path

    @property
    def spec(self) -> StoreTlsSpec:
        """What a good client says."""
        return StoreTlsSpec(ca=self.ca, certificate=self.client, key=self.client)


class _StoreProcess:
    """A server that is started, killed, hung and started again on one port.

    Args:
        tls: Its certificates; none speaks plain text.
    """

    user: str | None = None

    def __init__(self, tls: Identities | None = None) -> None:
        self.tls = tls
        self.host = HOST if tls is None else "localhost"
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="streamscore-store-"))
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdout=log, stderr=log, user=self.user
            )
        wait_until(self.answers, _START_S, f"{self.command()[0]} answers, see {self.folder}/log")

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_S)
            self._process = None

    def hang(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """To it and to those that it has started."""
        assert self._process is not None
        for process in (self._process, *self._children()):
            os.kill(process.pid, number)

    def _children(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        return psutil.Process(self._process.pid).children(recursive=True)


class RedisProcess(_StoreProcess):
    """Redis; skips the test where there is none."""

    def __init__(self, tls: Identities | None = None) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("no redis-server: apt-get install redis-server")
        self._redis = pytest.importorskip("redis", reason="no client: make setup EXTRA=redis")
        super().__init__(tls)

    @property
    def url(self) -> str:
        return f"redis{'s' * bool(self.tls)}://{self.host}:{self.port}/0"

    def command(self) -> list[str]:
        # What was written is still there after a kill, as of a store that is run with care.
        options = {"port": self.port, "bind": HOST, "appendonly": "yes", "appendfsync": "always"}
        if self.tls is not None:
            server = {"tls-cert-file": self.tls.server, "tls-key-file": self.tls.server}
            options |= {"port": 0, "tls-port": self.port, "tls-ca-cert-file": self.tls.ca, **server}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return ["redis-server", *words, "--save", ""]

    def answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except Exception:
                return False

    def client(self) -> Any:
        tls = {} if self.tls is None else self.tls.spec.for_redis()
        return self._redis.Redis.from_url(self.url, **tls)


class PostgresProcess(_StoreProcess):
    """PostgreSQL; skips the test where there is none."""

    def __init__(self, tls: Identities | None = None) -> None:
        self._bin = _postgres_bin()
        reason = "no client: make setup EXTRA=postgres"
        self._psycopg = pytest.importorskip("psycopg", reason=reason)
        super().__init__(tls)
        if os.getuid() == 0:  # which PostgreSQL refuses to run as
            self.user = "postgres"
            found = pwd.getpwnam(self.user)
            os.chown(self.folder, found.pw_uid, found.pw_gid)
        arguments = ["-D", str(self._data), "-U", "test", "-A", "trust", "--no-sync"]
        command = [str(self._bin / "initdb"), *arguments]
        subprocess.run(command, user=self.user, cwd=self.folder, check=True, capture_output=True)
        if tls is not None:
            self._require_tls(tls)

    def _require_tls(self, tls: Identities) -> None:
        """From everyone; the server reads copies of the files, which must be its own."""
        for name, source in (("ca.pem", tls.ca), ("server.pem", tls.server)):
            copy = self._data / name
            copy.write_bytes(source.read_bytes())
            copy.chmod(0o600)
            shutil.chown(copy, self.user)
        files = {
            "ssl_ca_file": "ca.pem",
            "ssl_cert_file": "server.pem",
            "ssl_key_file": "server.pem",
        }
        lines = [f"{name} = '{value}'" for name, value in {"ssl": "on", **files}.items()]
        (self._data / "postgresql.auto.conf").write_text("\n".join(lines))
        rule = f"hostssl all all {HOST}/32 trust clientcert=verify-ca\n"
        (self._data / "pg_hba.conf").write_text(rule)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def dsn(self) -> str:
        return f"host={self.host} port={self.port} user=test dbname=postgres"

    @property
    def _login(self) -> dict[str, str]:
        return {} if self.tls is None else self.tls.spec.for_postgres()

    def command(self) -> list[str]:
        options = [f"-clisten_addresses={HOST}", f"-cunix_socket_directories={self.folder}"]
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # of one that was killed
        return [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port), *options]

    def kill(self) -> None:
        """End it and its backends, as a crash of the machine would."""
        backends = self._children()
        super().kill()
        for backend in backends:
            if backend.is_running():
                backend.kill()
        psutil.wait_procs(backends, _STOP_S)

    def answers(self) -> bool:
        try:
            self._psycopg.connect(self.dsn, connect_timeout=2, **self._login).close()
        except self._psycopg.OperationalError:
            return False
        return True

    def run(self, *statements: str) -> None:
        with self._psycopg.connect(self.dsn, autocommit=True, **self._login) as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._psycopg.connect(self.dsn, autocommit=True, **self._login) as connection:
            found: list[tuple[Any, ...]] = connection.execute(query).fetchall()
        return found


def _postgres_bin() -> Path:
    """The folder with initdb and postgres; Debian keeps it off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr").glob(_POSTGRES_HOMES))
    if not folders:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    return folders[-1]
