"""The deployments of medad on a Prefect server: what is registered, when it runs next, and what is orphaned or idle."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort

from flows.deployments import FILE, Entry

TAG = "medad"
SCHEDULER_S = 20.0  # the time in which a server's scheduler creates the runs of a new schedule
LOOK_S = 0.5


@dataclass(frozen=True)
class Standing:
    """A deployment on the server, with remarks for the user."""

    name: str
    pool: str | None
    schedule: str
    next_run: str
    remarks: tuple[str, ...]


def standing(client: SyncPrefectClient, entries: Sequence[Entry], file: Path = FILE) -> list[Standing]:
    """All deployments on the server with our tag, including orphaned ones, sorted by name."""
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    deployments = client.read_deployments(deployment_filter=tagged)
    next_runs = _next_runs(client, deployments)
    patterns = {entry.pattern: entry for entry in entries}
    rows = []
    for deployment in deployments:
        name = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
        entry = next((entry for pattern, entry in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)
        rows.append(
            Standing(
                name=name,
                pool=deployment.work_pool_name,
                schedule=_schedules(deployment),
                next_run=_when(deployment, next_runs),
                remarks=(*_orphaned(deployment, name, entry, file), *_idle(client, deployment)),
            )
        )
    return sorted(rows, key=lambda row: row.name)


def _next_runs(client: SyncPrefectClient, deployments: Sequence[DeploymentResponse]) -> dict[UUID, datetime]:
    """The time of the next run of each deployment.

    The server's scheduler reads new schedules every few seconds, so this function waits for it.
    """
    due = {deployment.id for deployment in deployments if _is_due(deployment)}
    next_runs: dict[UUID, datetime] = {}
    until = time.monotonic() + SCHEDULER_S
    while due - set(next_runs) and time.monotonic() < until:
        for deployment in due - set(next_runs):
            start = _next_start(client, deployment)
            if start is not None:
                next_runs[deployment] = start
        time.sleep(LOOK_S if due - set(next_runs) else 0)
    return next_runs


def _is_due(deployment: DeploymentResponse) -> bool:
    return not deployment.paused and any(schedule.active for schedule in deployment.schedules)


def _next_start(client: SyncPrefectClient, deployment: UUID) -> datetime | None:
    scheduled = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        flow_run_filter=FlowRunFilter(state=scheduled),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    return runs[0].expected_start_time if runs else None


def _orphaned(deployment: DeploymentResponse, name: str, entry: Entry | None, file: Path) -> Iterator[str]:
    if entry is None:
        yield f"orphaned, {file.name} does not have it: prefect deployment delete '{name}'"
        return
    for schedule in deployment.schedules:
        if schedule.slug not in entry.slugs:
            yield (
                f"schedule {schedule.slug or schedule.id} is orphaned, {file.name} does not have it: "
                f"prefect deployment schedule delete '{name}' {schedule.id}"
            )


def _idle(client: SyncPrefectClient, deployment: DeploymentResponse) -> Iterator[str]:
    pool = deployment.work_pool_name
    if deployment.paused:
        yield f"paused: prefect deployment schedule resume '{deployment.name}'"
    if pool is None or not client.read_workers_for_work_pool(
        pool, worker_filter=WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    ):
        yield f"no worker is online for it: medad serve --pool {pool}, or prefect worker start --pool {pool}"


def _schedules(deployment: DeploymentResponse) -> str:
    texts = []
    for schedule in deployment.schedules:
        off = "" if schedule.active else " (off)"
        texts.append(f"{schedule.schedule.cron} {schedule.schedule.timezone}{off}")
    return ", ".join(texts)


def _when(deployment: DeploymentResponse, next_runs: Mapping[UUID, datetime]) -> str:
    """The next run, in the time zone of the deployment's first schedule."""
    if deployment.id not in next_runs:
        return "–"
    zone = deployment.schedules[0].schedule.timezone if deployment.schedules else None
    return f"{next_runs[deployment.id].astimezone(ZoneInfo(zone or 'UTC')):%Y-%m-%d %H:%M %Z}"
