"""What several worker processes say, as if they were one: states of models, and metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from model_server.backends.base import Arrays, Signature
from model_server.errors import AskedElsewhere
from model_server.servables import Servable, Servables, ServableState, VersionStatus

__all__ = ["Counts", "Merged", "ModelReport", "report"]

_CALLS = "streamscore_server_calls"
_OWN = ("streamscore_server_model_version", "process_start_time_seconds")
_GAUGE = "gauge"


@dataclass(frozen=True)
class _Described:
    """A model that answers in the workers; a ``Model`` of which only the description is here."""

    platform: str
    signatures: Mapping[str, Signature]

    def warm_up(self) -> None:
        """Nothing is here to be warmed."""

    def is_quick(self, signature_name: str, rows: int) -> bool:
        return True

    def run(self, signature_name: str, inputs: Arrays, wanted: Sequence[str]) -> Arrays:
        raise AskedElsewhere("with several workers, models answer on the server's other ports")

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class ModelReport:
    """One model in one worker.

    Attributes:
        labels: Version by label.
        statuses: Every version that it knows.
        loaded: The versions that answer, with what they take and return.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    statuses: Mapping[int, VersionStatus] = field(default_factory=dict)
    loaded: Mapping[int, _Described] = field(default_factory=dict)


def report(servables: Servables) -> dict[str, ModelReport]:
    """Describe the models of this process."""
    found = {}
    for name, entry in servables.entries():
        loaded = {
            version: _Described(servable.model.platform, dict(servable.model.signatures))
            for version, (servable, _users) in entry.loaded.items()
        }
        found[name] = ModelReport(entry.labels, dict(entry.statuses), loaded)
    return found


class Merged(Servables):
    """The models of all workers: a version answers if it does in every one of them."""

    def show(self, reports: Sequence[Mapping[str, ModelReport]], wanted: Iterable[str]) -> None:
        """Take what the workers say now.

        Args:
            reports: One of each worker; an empty one of a worker that is not there.
            wanted: Names of the models that ought to be there.
        """
        self._entries.clear()
        for name in dict.fromkeys([*wanted, *(name for one in reports for name in one)]):
            models = [one.get(name, ModelReport()) for one in reports]
            self.declare(name, next((one[name].labels for one in reports if name in one), {}))
            for version in sorted({v for model in models for v in model.statuses}):
                self._show_version(name, version, models)

    def _show_version(self, name: str, version: int, models: Sequence[ModelReport]) -> None:
        if all(version in model.loaded for model in models):
            self.publish(Servable(name, version, models[0].loaded[version]))
            return
        absent = VersionStatus(ServableState.LOADING)
        states = [model.statuses.get(version, absent) for model in models]
        least = max(
            (status for status in states if status.state is not ServableState.AVAILABLE),
            key=lambda status: (bool(status.error), status.state is ServableState.LOADING),
            default=VersionStatus(ServableState.UNLOADING),
        )
        self.note(name, version, least.state, least.error)


class Counts:
    """Sums of the workers' metrics; what a worker has counted stays when it has ended."""

    def __init__(self) -> None:
        """Start from zero."""
        self._kept: list[Metric] = []

    def keep(self, exposed: bytes) -> None:
        """Go on counting from what a worker that ended said last: a counter never goes back."""
        families = _families(exposed)
        self._kept = _summed([self._kept, [f for f in families if f.type != _GAUGE]])

    def merged(self, exposed: Mapping[int, bytes], own: bytes) -> bytes:
        """Return the sums of every series, and how many calls each worker had.

        Of the versions' states and of the time of the start there is no sum: they are the
        supervisor's.

        Args:
            exposed: Each worker's metrics, by its number, in Prometheus's text format.
            own: The supervisor's.
        """
        workers = {number: _families(one) for number, one in exposed.items()}
        calls = CounterMetricFamily(
            "streamscore_server_worker_calls", "Calls since this worker started", labels=["worker"]
        )
        for number, families in workers.items():
            had = (f.samples for f in families if f.name == _CALLS)
            calls.add_metric([str(number)], sum(s.value for samples in had for s in samples))
        summed = [[f for f in families if f.name not in _OWN] for families in workers.values()]
        registry = CollectorRegistry()
        registry.register(_Collected([*_summed([_families(own), *summed, self._kept]), calls]))
        return generate_latest(registry)


@dataclass(frozen=True, eq=False)
class _Collected(Collector):
    """Metrics as the client library's writer takes them."""

    families: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


def _families(exposed: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(exposed.decode()))


def _summed(sources: Iterable[Iterable[Metric]]) -> list[Metric]:
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = defaultdict(dict)
    for family in (family for source in sources for family in source):
        families.setdefault(family.name, family)
        found = values[family.name]
        for sample in family.samples:
            key = sample.name, tuple(sample.labels.items())
            found[key] = found.get(key, 0.0) + sample.value
    summed = []
    for name, family in families.items():
        whole = Metric(name, family.documentation, family.type)
        for (sample_name, labels), value in values[name].items():
            whole.add_sample(sample_name, dict(labels), value)
        summed.append(whole)
    return summed
