"""What ``streamscore cluster status`` shows."""

from __future__ import annotations

from jobs.cluster.standalone import ClusterState, StandaloneCluster
from jobs.flink_rest import FlinkRest


def facts(cluster: StandaloneCluster, state: ClusterState) -> dict[str, str]:
    """Processes, slots and jobs, by name."""
    rest = FlinkRest(state.rest)
    overview = rest.get("/overview")
    free, total = overview["slots-available"], overview["slots-total"]
    found = {name: f"process {started.pid}" for name, started in state.processes.items()}
    for name in state.task_managers:
        found[name] += f", code {cluster.code_of(name)}"
    found["slots"] = f"{free} of {total} are free"
    if missing := len(state.task_managers) - overview["taskmanagers"]:
        found["missing"] = f"{missing} TaskManagers are not known to the JobManager (yet)"
    for job in rest.get("/jobs/overview")["jobs"]:
        found[f"job {job['jid']}"] = f"{job['name']}: {job['state']}"
    return found
