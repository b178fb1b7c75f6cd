"""A job at a broker that wants TLS and a login; what is wrong is refused, and secrets stay so."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import trustme

from jobs import preflight, settings
from jobs.environment import BUILD, NotReadyError
from jobs.settings import Settings
from tests.support.checks import check_accounts
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.hidden import PASSWORD
from tests.support.job_process import JobProcess
from tests.support.kafka import Record, Traffic
from tests.support.running import running
from tests.support.secure_kafka import STRANGER, USER, SecureKafka, pem

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    with SecureKafka(tmp_path_factory.mktemp("secure-kafka")) as kafka:
        yield kafka


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", PASSWORD)


def login(broker: SecureKafka, **changes: Any) -> dict[str, Any]:
    """SASL over TLS."""
    return {
        "kafka.bootstrap_servers": broker.bootstrap,
        "kafka.tls": {"ca": str(broker.ca)},
        "kafka.sasl": {"username": USER, "password": "${SECRET_OF_TEST}"} | changes,
    }


def certificate(broker: SecureKafka, identity: Path) -> dict[str, Any]:
    """TLS with a certificate of the job's own."""
    return {
        "kafka.bootstrap_servers": f"127.0.0.1:{broker.mtls_port}",
        "kafka.tls": {"ca": str(broker.ca), "identity": str(identity)},
    }


def tokens(broker: SecureKafka, **changes: Any) -> dict[str, Any]:
    """SASL over TLS, by a token for the client's secret."""
    oauth = {
        "mechanism": "OAUTHBEARER",
        "oauth_url": broker.tokens.token_url,
        "oauth_ca": str(broker.ca),
        "client_id": USER,
        "client_secret": "${SECRET_OF_TEST}",
    }
    return login(broker) | {"kafka.sasl": oauth | changes}


def overrides(models: Path, folder: Path, security: dict[str, Any]) -> dict[str, Any]:
    own = own_overrides("127.0.0.1:1", models, folder)
    return own | {"model.embedded": True, "batch.buckets": 1} | security


def chosen(models: Path, folder: Path, security: dict[str, Any]) -> Settings:
    return settings.load(CONFIG, overrides(models, folder, security))


def transaction(number: int) -> Record:
    value = {
        "transaction_id": f"t{number}",
        "event_time_ms": time.time_ns() // 1_000_000,
        "card_id": "c1",
        "terminal_id": "m1",
        "amount": 5.0,
        "type": "CP",
    }
    return Record(0, b"c1", orjson.dumps(value))


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "certificate"])
def test_a_job_reads_and_writes(
    mechanism: str, broker: SecureKafka, models: Path, tmp_path: Path
) -> None:
    security = login(broker, mechanism=mechanism)
    if mechanism == "certificate":
        security = certificate(broker, pem(tmp_path / "job.pem", broker.authority, "job"))
    given = chosen(models, tmp_path, security)
    begun_s = time.time()
    with Traffic(given) as traffic, running(given) as job:
        assert preflight.check(given, CONFIG) == []
        traffic.send(*map(transaction, range(20)))
        traffic.wait_accounted()
        check_accounts(traffic)
        shown = orjson.dumps(job.rest.get(f"/jobs/{job.job_id}/config")).decode()
        shown += orjson.dumps(job.rest.get(f"/jobs/{job.job_id}/plan")).decode()
    shown += settings.as_yaml(given)
    shown += "\n".join(" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
    logs = [p for p in (BUILD / "logs").glob("*") if p.stat().st_mtime >= begun_s]
    assert logs
    for text in [shown, *(p.read_text("utf-8", "replace") for p in logs)]:
        assert PASSWORD not in text


def test_a_job_reads_and_writes_by_tokens(
    broker: SecureKafka, models: Path, tmp_path: Path
) -> None:
    """In a JVM of its own, whose class path has Kafka's client."""
    given = overrides(models, tmp_path, tokens(broker))
    before = len(broker.tokens.granted)
    with (
        Traffic(settings.load(CONFIG, given)) as traffic,
        JobProcess(given, tmp_path / "job.log", tmp_path) as process,
    ):
        traffic.send(*map(transaction, range(20)))
        traffic.wait_accounted()
        check_accounts(traffic)
        shown = " ".join(w for p in psutil.Process().children(recursive=True) for w in p.cmdline())
        process.stop()
    assert len(broker.tokens.granted) > before
    assert PASSWORD not in shown


def refusal(given: Settings) -> str:
    with pytest.raises(NotReadyError) as found:
        preflight.check(given, CONFIG)
    assert "correct kafka.bootstrap_servers, kafka.tls or kafka.sasl" in found.value.fix
    return found.value.problem


def test_a_wrong_password_is_refused(broker: SecureKafka, models: Path, tmp_path: Path) -> None:
    security = login(broker, username="somebody")
    problem = refusal(chosen(models, tmp_path, security))
    assert "invalid credentials" in problem
    assert PASSWORD not in problem


@pytest.mark.parametrize(
    ("client", "words"), [("nobody", "invalid_client"), (STRANGER, "invalid_token")]
)
def test_a_client_without_a_good_token_is_refused(
    client: str, words: str, broker: SecureKafka, models: Path, tmp_path: Path
) -> None:
    problem = refusal(chosen(models, tmp_path, tokens(broker, client_id=client)))
    assert words in problem
    assert PASSWORD not in problem


def test_the_secret_is_shown_to_no_other_token_server(
    broker: SecureKafka, models: Path, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    security = tokens(broker, oauth_ca=str(tmp_path / "other.pem"))
    granted = len(broker.tokens.granted)
    assert "certificate" in refusal(chosen(models, tmp_path, security))
    assert len(broker.tokens.granted) == granted


def test_a_broker_of_another_authority_is_refused(
    broker: SecureKafka, models: Path, tmp_path: Path
) -> None:
    security = login(broker)
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    security["kafka.tls"] = {"ca": str(tmp_path / "other.pem")}
    assert "certificate" in refusal(chosen(models, tmp_path, security))


def test_a_login_without_tls_is_refused(broker: SecureKafka, models: Path, tmp_path: Path) -> None:
    security = login(broker)
    del security["kafka.tls"]
    assert "no broker answers" in refusal(chosen(models, tmp_path, security))


@pytest.mark.parametrize("which", ["none", "another authority's", "expired"])
def test_a_job_without_a_good_certificate_is_refused(
    which: str, broker: SecureKafka, models: Path, tmp_path: Path
) -> None:
    authority = trustme.CA() if which == "another authority's" else broker.authority
    ended = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    options = {"not_after": ended} if which == "expired" else {}
    security = certificate(broker, pem(tmp_path / "job.pem", authority, "job", **options))
    if which == "none":
        del security["kafka.tls"]["identity"]
    assert "no broker answers" in refusal(chosen(models, tmp_path, security))
