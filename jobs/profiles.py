"""conf/flink.yaml: Flink's options of clusters, and the profiles that a job may take."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from jobs.environment import ROOT

FLINK_CONF = ROOT / "conf" / "flink.yaml"


def section(name: str, path: Path = FLINK_CONF) -> dict[str, Any]:
    """A section of conf/flink.yaml."""
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))[name]
    return found


def with_profile(document: Mapping[str, Any], path: Path = FLINK_CONF) -> dict[str, Any]:
    """A settings file's content with what its ``flink.profile`` says, where it says nothing itself.

    Args:
        document: The file as it was read.
        path: Where the profiles are.

    Returns:
        Another document; the same if there is no profile, or an unknown one.
    """
    filled = deepcopy(dict(document))
    flink = filled.get("flink")
    chosen = flink.get("profile") if isinstance(flink, dict) else None
    if not isinstance(chosen, str) or chosen not in (profiles := section("profiles", path)):
        return filled
    profile = profiles[chosen]
    for dotted, value in profile["settings"].items():
        part, _, name = dotted.partition(".")
        if isinstance(own := filled.setdefault(part, {}), dict):
            own.setdefault(name, value)
    options = filled["flink"].get("options", {})
    if isinstance(options, dict):
        filled["flink"]["options"] = {**profile["options"], **options}
    return filled
