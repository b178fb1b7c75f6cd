"""The image and the manifests, as far as they can be checked without Docker or Kubernetes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from jobs import server_settings, settings
from jobs.cluster.kubernetes import manifest
from jobs.kafka_topics import partitions_of
from tests.support.monitoring import flinks_metrics

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
KUBERNETES = "1.37"
DOCKERFILES = ("Dockerfile", "Dockerfile.job")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKER / name], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def instructions(file: str = "Dockerfile") -> Iterator[list[str]]:
    text = (DOCKER / file).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield shlex.split(line)


@pytest.mark.parametrize("file", DOCKERFILES)
def test_what_is_copied_is_there_and_not_ignored(file: str) -> None:
    ignored = (DOCKER / f"{file}.dockerignore").read_text(encoding="utf-8").splitlines()
    for name, *arguments in instructions(file):
        if name == "COPY" and not arguments[0].startswith("--from"):
            for source in arguments[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


@pytest.mark.parametrize(
    ("file", "expected"), [("Dockerfile", "10001"), ("Dockerfile.job", "9999")]
)
def test_it_does_not_run_as_root(file: str, expected: str) -> None:
    *_, user = (arguments for name, *arguments in instructions(file) if name == "USER")
    assert user == [f"{expected}:{expected}"]


def test_its_settings_are_a_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "fraud")
    settings = server_settings.load(DOCKER / "server.yaml", {})
    assert [(m.name, m.models_dir / m.folder) for m in settings.models] == [
        ("fraud", Path("/mnt/models"))
    ]
    exposed = next(arguments for name, *arguments in instructions() if name == "EXPOSE")
    ports = {str(p) for p in (settings.port, settings.http_port, settings.metrics_port)}
    assert set(exposed) == ports


@pytest.mark.parametrize("document", documents("kubernetes.yaml"), ids=lambda d: d["kind"])
def test_manifests_are_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kserves_containers_are_kubernetes() -> None:
    runtime, service = documents("kserve.yaml")
    (deployment, *_) = documents("kubernetes.yaml")
    deployment["spec"]["template"]["spec"] = {"containers": runtime["spec"]["containers"]}
    kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [entry["name"] for entry in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats


def test_images_have_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in ("kubernetes.yaml", "kserve.yaml", "compose.yaml"):
        images = re.findall(r"image: (streamscore\S+)", (DOCKER / name).read_text(encoding="utf-8"))
        assert {f"streamscore-server:{version}"} <= set(images)
        assert {image.partition(":")[2] for image in images} == {version}


def test_the_servers_packages_are_the_locks() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / "conf" / name).read_text(encoding="utf-8")
        return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))

    known = pins("requirements-onnx.lock") | pins("requirements.lock")
    for package, version in pins("requirements-server.lock").items():
        assert known[package] == version


COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


def test_compose_is_compose() -> None:
    """By the schema of the Compose specification."""
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", DOCKER / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_mounts_what_is_there() -> None:
    made = {"build/models"}
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                path = (DOCKER / source).resolve().relative_to(ROOT)
                assert str(path) in made or (ROOT / path).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_compose_offers_ports_to_this_machine_alone() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


def test_compose_makes_the_jobs_topics() -> None:
    overrides = json.loads((DOCKER / "compose-overrides.json").read_text(encoding="utf-8"))
    job = settings.load(ROOT / "conf" / "fraud.yaml", overrides)
    script = COMPOSE["services"]["topics"]["entrypoint"][-1]
    named = re.search(r"for topic in (.*?); do", script)
    assert named is not None
    assert set(named[1].split()) == set(partitions_of(job.topics))
    assert job.kafka.bootstrap_servers in script


def test_the_job_runs_as_it_is_packed() -> None:
    """compose.yaml's command is that of `submit --target kubernetes`."""
    (deployment,) = (
        document
        for document in yaml.safe_load_all(
            manifest(settings.load(ROOT / "conf" / "fraud.yaml"), ROOT / "conf" / "fraud.yaml", "x")
        )
        if document["kind"] == "FlinkDeployment"
    )
    arguments = deployment["spec"]["job"]["args"]
    assert COMPOSE["services"]["jobmanager"]["command"][-len(arguments) :] == arguments


def test_alerts_look_at_metrics_that_are_told_of() -> None:
    """Flink's own names are compared with a running cluster's in tests/cluster."""
    operators = (ROOT / "jobs" / "README.md").read_text(encoding="utf-8")
    flinks_own = {"pendingRecords"}
    for name in flinks_metrics():
        metric = name.rpartition("_operator_")[2]
        if metric != name and metric not in flinks_own:
            assert f"| `{metric}` |" in operators, name


def test_each_alert_is_in_the_runbook() -> None:
    rules = yaml.safe_load((DOCKER / "alerts.yaml").read_text(encoding="utf-8"))
    _, _, runbook = (ROOT / "jobs" / "README.md").read_text(encoding="utf-8").partition("# Runbook")
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert f"`{rule['alert']}`" in runbook
