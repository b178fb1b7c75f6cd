"""What Prometheus would see of a cluster, and what is asked of it."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

DOCKER = Path(__file__).parents[2] / "docker"
_FLINKS = re.compile(r"\bflink_\w+")


def reporter(ports: list[int]) -> dict[str, Any]:
    """Flink's options of the Prometheus reporter; each process takes one of the ports."""
    return {
        "metrics.reporters": "prom",
        "metrics.reporter.prom.factory.class": (
            "org.apache.flink.metrics.prometheus.PrometheusReporterFactory"
        ),
        "metrics.reporter.prom.port": ",".join(map(str, ports)),
    }


def reported(ports: list[int]) -> set[str]:
    """Names of the metrics at those of the ports that answer."""
    names: set[str] = set()
    for port in ports:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            continue
        names |= {family.name for family in text_string_to_metric_families(text)}
    return names


def alert_expressions() -> list[str]:
    """Of docker/alerts.yaml."""
    rules = yaml.safe_load((DOCKER / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    """Of the dashboard for Grafana."""
    path = DOCKER / "grafana" / "dashboards" / "streamscore.json"
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def flinks_metrics() -> set[str]:
    """Flink's metrics that alerts and the dashboard need."""
    return {
        name
        for text in (*alert_expressions(), *dashboard_expressions())
        for name in _FLINKS.findall(text)
    }
