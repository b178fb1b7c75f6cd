"""One section of settings logs both kinds of Kafka clients in."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from jobs import settings
from jobs.environment import ROOT
from jobs.jars import flink_jars
from jobs.sections.kafka import KafkaSettings
from jobs.settings_file import SettingsError

CONF = ROOT / "conf" / "fraud.yaml"
SASL = {"username": "u", "password": 'p"\\w'}
OAUTH = {
    "mechanism": "OAUTHBEARER",
    "oauth_url": "https://idp/token",
    "client_id": "c",
    "client_secret": "s",
    "scope": "kafka",
}


def kafka(**sections: Any) -> KafkaSettings:
    return KafkaSettings.model_validate({"bootstrap_servers": "k:1", **sections})


def test_plain_text_adds_nothing() -> None:
    assert kafka().java_properties() == kafka().python_properties() == {}


@pytest.mark.parametrize("sections", [{}, {"tls": {}}, {"sasl": SASL}, {"tls": {}, "sasl": OAUTH}])
def test_librdkafka_knows_what_it_is_told(sections: dict[str, Any]) -> None:
    login: dict[str, Any] = kafka(**sections).python_properties()
    Consumer({"bootstrap.servers": "127.0.0.1:9", "group.id": "g", "log_level": 0, **login}).close()


def test_tls() -> None:
    given = kafka(tls={"ca": "/ca.pem", "identity": "/me.pem", "check_name": False})
    assert given.java_properties() == {
        "security.protocol": "SSL",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": "/ca.pem",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": "/me.pem",
        "ssl.endpoint.identification.algorithm": "",
    }
    assert given.python_properties() == {
        "security.protocol": "SSL",
        "ssl.ca.location": "/ca.pem",
        "ssl.certificate.location": "/me.pem",
        "ssl.key.location": "/me.pem",
        "ssl.endpoint.identification.algorithm": "none",
    }


def test_a_login_is_escaped_for_the_java_client() -> None:
    java = kafka(sasl=SASL).java_properties()
    assert java["security.protocol"] == "SASL_PLAINTEXT"
    assert java["sasl.jaas.config"].endswith('required username="u" password="p\\"\\\\w";')
    assert kafka(sasl=SASL).python_properties()["sasl.password"] == 'p"\\w'


@pytest.mark.parametrize("sasl", [{"mechanism": "PLAIN"} | SASL, SASL, OAUTH])
def test_the_login_modules_are_in_the_connector(sasl: dict[str, str]) -> None:
    jar = next((p for p in flink_jars() if "kafka" in p.name), None)
    if jar is None:
        pytest.skip("no connector jar: make jars")
    java = kafka(sasl=sasl).java_properties()
    classes = [java["sasl.jaas.config"].split()[0]]
    classes += [v for k, v in java.items() if k.endswith("handler.class")]
    names = set(zipfile.ZipFile(jar).namelist())
    assert {f"{name.replace('.', '/')}.class" for name in classes} <= names


def test_who_signs_the_token_server_is_told_to_both() -> None:
    given = kafka(sasl=OAUTH | {"oauth_ca": "/ca.pem"})
    assert 'ssl.truststore.location="/ca.pem"' in given.java_properties()["sasl.jaas.config"]
    assert given.python_properties()["https.ca.location"] == "/ca.pem"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/t", "http://localhost/t", "https://idp/t"])
def test_where_a_secret_may_be_shown(url: str) -> None:
    assert kafka(sasl=OAUTH | {"oauth_url": url}).token_url == url


def test_own_properties_win() -> None:
    given = kafka(
        tls={},
        properties={"security.protocol": "PLAINTEXT"},
        client_properties={"security.protocol": "plaintext"},
    )
    assert given.java_properties()["security.protocol"] == "PLAINTEXT"
    assert given.python_properties()["security.protocol"] == "plaintext"


@pytest.mark.parametrize(
    ("sasl", "words"),
    [
        ({}, "kafka.sasl.username: SCRAM-SHA-512 needs it"),
        ({"username": "u"}, "kafka.sasl.password: SCRAM-SHA-512 needs it"),
        ({"mechanism": "OAUTHBEARER"}, "kafka.sasl.oauth_url: OAUTHBEARER needs it"),
        ({"mechanism": "GSSAPI"}, "kafka.sasl.mechanism"),
        (
            OAUTH | {"oauth_url": "http://idp/token"},
            "kafka.sasl.oauth_url: must begin with https://",
        ),
        (SASL, "kafka.sasl.password: a secret in the file"),
    ],
)
def test_what_is_missing_is_said(sasl: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings.load(CONF, {"kafka.sasl": sasl})


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "hunter2")
    for sasl in (SASL, OAUTH):
        hidden = {k: "${SECRET_OF_TEST}" for k in sasl if k in ("password", "client_secret")}
        assert hidden
        shown = settings.as_yaml(settings.load(CONF, {"kafka.sasl": sasl | hidden}))
        assert "hunter2" not in shown
