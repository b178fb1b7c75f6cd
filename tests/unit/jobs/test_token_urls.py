"""Where a job gets its tokens must be allowed in each JVM that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs import token_urls
from jobs.cluster import kubernetes
from jobs.environment import NotReadyError
from jobs.flink_rest import FlinkRest
from jobs.job_jars import jars_of
from jobs.sections.kafka import OAUTH_PROPERTY
from jobs.settings import Settings, load
from tests.support.fixtures import CONFIG

URL = "https://idp/token"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SECRET_OF_TEST", "x")
    sasl = {"mechanism": "OAUTHBEARER", "oauth_url": URL, "client_id": "c"}
    return load(CONFIG, {"kafka.sasl": sasl | {"client_secret": "${SECRET_OF_TEST}"}})


JARS = ["/x/flink-sql-connector-kafka-5.jar", "jackson-databind-2.jar", "/x/jose4j-0.9.6.jar"]


def cluster(options: Sequence[str], jars: Sequence[str] = JARS) -> FlinkRest:
    """One whose JVMs were started so."""

    class Rest:
        address = "flink:1"

        def get(self, path: str) -> Any:
            assert path == "/jobmanager/environment"
            return {"jvm": {"options": [*options]}, "classpath": [*jars]}

    return cast(FlinkRest, Rest())


@pytest.mark.parametrize("allowed", [URL, "*", f"https://other,{URL}"])
def test_a_cluster_that_allows_it(settings: Settings, allowed: str) -> None:
    token_urls.check(settings, cluster(["-Xmx1g", f"-D{OAUTH_PROPERTY}={allowed}"]))


@pytest.mark.parametrize("options", [[], [f"-D{OAUTH_PROPERTY}=https://other"]])
def test_a_cluster_that_does_not(settings: Settings, options: list[str]) -> None:
    with pytest.raises(NotReadyError, match="may not ask https://idp/token") as caught:
        token_urls.check(settings, cluster(options))
    assert f"-D{OAUTH_PROPERTY}={URL}" in caught.value.fix
    token_urls.check(load(CONFIG), cluster(options))


def test_a_cluster_of_its_own_is_started_so(settings: Settings) -> None:
    option = f"-D{OAUTH_PROPERTY}={URL}"
    found = token_urls.cluster_options(settings)
    assert found["env.java.opts.jobmanager"] == option
    known = "-XX:+ExitOnOutOfMemoryError"  # what conf/flink.yaml says is kept
    assert found["env.java.opts.taskmanager"] == f"{known} {option}"
    assert option in kubernetes.manifest(settings, CONFIG, "image")
    assert token_urls.cluster_options(load(CONFIG)) == {}


def test_a_jvm_that_runs_other_jobs_too(settings: Settings) -> None:
    properties = {OAUTH_PROPERTY: "https://other", "java.class.path": ":".join(JARS)}
    system = SimpleNamespace(getProperty=properties.get, setProperty=properties.__setitem__)
    jvm = SimpleNamespace(java=SimpleNamespace(lang=SimpleNamespace(System=system)))
    for _ in range(2):
        token_urls.allow(settings, jvm)
    assert properties[OAUTH_PROPERTY] == f"https://other,{URL}"
    properties["java.class.path"] = "/x/flink-dist.jar"
    with pytest.raises(NotReadyError, match="in a process of its own"):
        token_urls.allow(settings, jvm)


def test_jars_that_only_the_job_brings_are_not_enough(settings: Settings) -> None:
    with pytest.raises(NotReadyError, match="no jars to log in") as caught:
        token_urls.check(settings, cluster([f"-D{OAUTH_PROPERTY}={URL}"], JARS[:1]))
    assert "HADOOP_CLASSPATH=" in caught.value.fix and "jose4j" in caught.value.fix


def test_the_jars_that_read_tokens_go_along(settings: Settings) -> None:
    names = {path.name.rpartition("-")[0] for path in jars_of(settings)}
    tokens = {"jackson-annotations", "jackson-core", "jackson-databind", "jose4j"}
    assert names - {path.name.rpartition("-")[0] for path in jars_of(load(CONFIG))} == tokens
