"""A job's tables and look-ups, as the processes need them that use them.

Their files are named from the root: a TaskManager runs in another folder than the command line.
"""

from __future__ import annotations

from jobs.settings import Settings
from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.table_readers import KafkaAccess, Tables


def tables_of(settings: Settings) -> Tables:
    """The tables that the settings declare."""
    kafka = settings.kafka
    properties = tuple(sorted(kafka.python_properties().items()))
    specs = tuple(
        spec.model_copy(update={"file": spec.file.absolute()}) if spec.file else spec
        for spec in settings.tables
    )
    return Tables(specs, KafkaAccess(kafka.bootstrap_servers, properties))


def lookups_of(settings: Settings) -> tuple[LookupSpec, ...]:
    """The look-ups that the settings declare."""
    found = []
    for spec in settings.lookups:
        feast = spec.feast
        if feast is not None:
            feast = feast.model_copy(update={"repo": feast.repo.absolute()})
        found.append(spec.model_copy(update={"feast": feast}))
    return tuple(found)
