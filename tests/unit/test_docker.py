"""The image and the manifests, as far as they can be checked without Docker or Kubernetes."""

from __future__ import annotations

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

from jobs import server_settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
KUBERNETES = "1.37"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DOCKER / name).read_text(encoding="utf-8")))


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def instructions() -> Iterator[list[str]]:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield shlex.split(line)


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name, *arguments in instructions():
        if name == "COPY" and not arguments[0].startswith("--from"):
            for source in arguments[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


def test_it_does_not_run_as_root() -> None:
    *_, user = (arguments for name, *arguments in instructions() if name == "USER")
    assert user == ["10001:10001"]


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
    for name in ("kubernetes.yaml", "kserve.yaml"):
        images = re.findall(r"image: (\S+)", (DOCKER / name).read_text(encoding="utf-8"))
        assert images == [f"streamscore-server:{version}"]


def test_the_servers_packages_are_the_locks() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (ROOT / "conf" / name).read_text(encoding="utf-8")
        return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))

    known = pins("requirements-onnx.lock") | pins("requirements.lock")
    for package, version in pins("requirements-server.lock").items():
        assert known[package] == version
