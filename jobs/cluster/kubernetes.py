"""A job as a FlinkDeployment of the Flink Kubernetes Operator; linted, never run here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jobs.profiles import section
from jobs.settings import Settings
from jobs.token_urls import java_option

PACKAGE_DIR = "/opt/streamscore"
"""Where the image has the unpacked package; see docker/Dockerfile.job."""

_PORTS = {"rest": 8081, "metrics": 9249}


def manifest(settings: Settings, conf: Path, image: str) -> str:
    """The YAML of a job: settings as a ConfigMap, the FlinkDeployment, a NetworkPolicy.

    Secrets are no part of it: what the settings file takes from the environment comes from a Secret
    named as the job.

    Args:
        settings: The job's.
        conf: Their file, whose text goes along.
        image: The job's image.
    """
    name = settings.name
    parts = [_settings(name, conf), _deployment(settings, image), _policy(name)]
    return "---\n".join(yaml.safe_dump(part, sort_keys=False, width=100) for part in parts)


def _settings(name: str, conf: Path) -> dict[str, Any]:
    text = conf.read_text(encoding="utf-8")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-settings"},
        "data": {"job.yaml": text, "overrides.json": "{}"},
    }


def _deployment(settings: Settings, image: str) -> dict[str, Any]:
    flink = settings.flink
    parallelism = flink.parallelism
    options = {k: str(v) for k, v in section("cluster").items() if ".memory." not in k}
    options |= {
        "taskmanager.numberOfTaskSlots": "1",
        "env.java.opts.all": f"-XX:+ExitOnOutOfMemoryError {java_option(settings)}".strip(),
        "high-availability.type": "kubernetes",
        "high-availability.storageDir": f"{flink.checkpoint_dir}/ha",
        "execution.checkpointing.dir": flink.checkpoint_dir,
        "execution.checkpointing.savepoint-dir": f"{flink.checkpoint_dir}/savepoints",
        "metrics.reporters": "prom",
        "metrics.reporter.prom.factory.class": (
            "org.apache.flink.metrics.prometheus.PrometheusReporterFactory"
        ),
        "metrics.reporter.prom.port": str(_PORTS["metrics"]),
        # A bucket is the unit of rescaling: more subtasks than that would idle.
        "job.autoscaler.enabled": "true",
        "job.autoscaler.stabilization.interval": "5m",
        "job.autoscaler.metrics.window": "10m",
        "job.autoscaler.utilization.target": "0.6",
        "job.autoscaler.vertex.max-parallelism": str(settings.batch.buckets),
        "pipeline.max-parallelism": "128",
    }
    return {
        "apiVersion": "flink.apache.org/v1beta1",
        "kind": "FlinkDeployment",
        "metadata": {"name": settings.name},
        "spec": {
            "image": image,
            "flinkVersion": "v2_0",
            "serviceAccount": "flink",
            "flinkConfiguration": options,
            "podTemplate": _pod(settings.name),
            "jobManager": {"replicas": 1, "resource": {"cpu": 1, "memory": "1600m"}},
            "taskManager": {
                "replicas": parallelism,
                "resource": {"cpu": 2, "memory": "2048m"},
            },
            "job": {
                "jarURI": "local:///opt/flink/opt/flink-python-2.3.0.jar",
                "entryClass": "org.apache.flink.client.python.PythonDriver",
                "args": [
                    "-py",
                    f"{PACKAGE_DIR}/code/jobs/cluster/entry.py",
                    "--packed-job",
                    PACKAGE_DIR,
                ],
                "parallelism": parallelism,
                "upgradeMode": "savepoint",
                "state": "running",
                "allowNonRestoredState": False,
            },
        },
    }


def _pod(name: str) -> dict[str, Any]:
    container = {
        "name": "flink-main-container",
        "envFrom": [{"secretRef": {"name": name, "optional": True}}],
        "volumeMounts": [{"name": "settings", "mountPath": f"{PACKAGE_DIR}/conf"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 9999,
                "fsGroup": 9999,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "settings", "configMap": {"name": f"{name}-settings"}}],
        }
    }


def _policy(name: str) -> dict[str, Any]:
    """Who may reach the job's pods: each other, the operator, and Prometheus."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "podSelector": {"matchLabels": {"app": name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": name}}}]},
                {
                    "from": [_namespace("flink-operator")],
                    "ports": [{"port": _PORTS["rest"]}],
                },
                {
                    "from": [_namespace("monitoring")],
                    "ports": [{"port": _PORTS["metrics"]}],
                },
            ],
        },
    }


def _namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
