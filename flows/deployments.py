"""What `configs/deploy/prefect.yaml` says, on a Prefect server: work pools, the GPU's limit, deployments, and what is there besides.

One decision: the file is Prefect's own, read by Prefect's own model, so `prefect deploy` takes it too. What it lacks for a command line is added
here: a deployment whose schedule would run without its folders is not registered, and what the server has of us beyond the file is named.
"""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, GlobalConcurrencyLimitCreate, WorkPoolCreate
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
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError

import medad_core
from flows.gpu import LIMIT
from medad_core.config.yaml_reader import StrictLoader
from medad_core.errors import ConfigError

# Beside the package, in a checkout as in an installation.
FILE = Path(medad_core.__file__).parent.parent / "configs" / "deploy" / "prefect.yaml"
TAG = "medad"
SCHEDULER_S = 20.0  # in which a server's scheduler makes the runs of a schedule that is new to it
LOOK_S = 0.5


@dataclass(frozen=True)
class Entry:
    """A deployment of the file. `missing` are the variables without which it cannot be registered."""

    config: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """FLOW/NAME of all deployments that this entry can be, whatever its variables are."""
        return f"{self.flow.name}/{_without_placeholders(self.config['name'])}"

    @property
    def flow(self):
        return load_flow_from_entrypoint(self.config["entrypoint"], use_placeholder_flow=False)

    @property
    def pool(self) -> str:
        return self.config["work_pool"]["name"]

    @property
    def slugs(self) -> set[str]:
        return {schedule["slug"] for schedule in self.config.get("schedules", ())}


@dataclass(frozen=True)
class Standing:
    """A deployment as the server has it, and what is to be said about it."""

    name: str
    pool: str | None
    schedule: str
    next_run: str
    remarks: tuple[str, ...]


def read_entries(
    file: Path = FILE, *, pool: str | None = None, cron: str | None = None, timezone: str | None = None
) -> list[Entry]:
    """The deployments of a file; `pool` is taken by all of them, `cron` and `timezone` by all schedules. Raises ConfigError."""
    try:
        model = PrefectYamlModel.model_validate(yaml.load(file.read_text(encoding="utf-8"), StrictLoader) or {})
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{file}: no deployments can be read from it: {' '.join(str(error).split())}") from error
    configs = [deployment.model_dump(exclude_unset=True, mode="json") for deployment in model.deployments]
    for config in configs:
        config["work_pool"]["name"] = pool or config["work_pool"]["name"]
        for schedule in config.get("schedules", ()):
            schedule.update({key: value for key, value in (("cron", cron), ("timezone", timezone)) if value})
    return [_entry(config) for config in configs]


def _entry(config: dict[str, Any]) -> Entry:
    """A parameter that is not given can be given when a run is started, but not where a schedule starts it. Settings have defaults."""
    unset = {key: names for key, value in config.get("parameters", {}).items() if (names := _unset(value))}
    needed = [
        config["name"],
        *config.get("tags", ()),
        *(unset[key] for key in unset if key != "settings" and config.get("schedules")),
    ]
    missing = dict.fromkeys(name for part in needed for name in (_unset(part) if isinstance(part, str) else part))
    given = {key: value for key, value in config.get("parameters", {}).items() if key not in unset}
    return Entry({**config, "parameters": given}, tuple(missing))


def register(client: SyncPrefectClient, entries: Sequence[Entry], version: str) -> list[str]:
    """Make pools and limit where they are missing, and every deployment that can be made, new or as it is now. Gives their names."""
    for pool in dict.fromkeys(entry.pool for entry in entries):
        _ensure_pool(client, pool)
    _ensure_limit(client)
    return [_register(client, entry, version) for entry in entries if not entry.missing]


def _register(client: SyncPrefectClient, entry: Entry, version: str) -> str:
    config = apply_values(dict(entry.config), {})
    limit = config["concurrency_limit"]
    deployment: RunnerDeployment = entry.flow.to_deployment(
        name=config["name"],
        description=config["description"],
        tags=config["tags"],
        parameters=config["parameters"],
        schedules=[_schedule(schedule) for schedule in config.get("schedules", ())],
        concurrency_limit=ConcurrencyLimitConfig(
            limit=limit["limit"], collision_strategy=ConcurrencyLimitStrategy(limit["collision_strategy"])
        ),
        version=version,
        work_pool_name=config["work_pool"]["name"],
        job_variables=config["work_pool"].get("job_variables", {}),
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.apply()
    return f"{deployment.flow_name}/{deployment.name}"


def _schedule(config: Mapping[str, Any]) -> DeploymentScheduleCreate:
    try:
        return DeploymentScheduleCreate(
            schedule=CronSchedule(cron=config["cron"], timezone=config["timezone"]), slug=config["slug"]
        )
    except ValidationError as error:
        raise ConfigError(
            f"cron {config['cron']!r} in timezone {config['timezone']!r}: {error.errors()[0]['msg']}"
        ) from error


def _ensure_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        with suppress(ObjectAlreadyExists):  # a worker that starts makes its pool too
            client.create_work_pool(
                WorkPoolCreate(
                    name=name,
                    type="process",
                    base_job_template=template,
                    description="Flow runs of medad, each in a process of its own.",
                )
            )


def _ensure_limit(client: SyncPrefectClient) -> None:
    try:
        client.read_global_concurrency_limit_by_name(LIMIT)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))


def standing(client: SyncPrefectClient, entries: Sequence[Entry], file: Path = FILE) -> list[Standing]:
    """All deployments of the server that carry our tag, the orphaned ones too, by name."""
    found = client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])))
    names = {deployment.id: f"{client.read_flow(deployment.flow_id).name}/{deployment.name}" for deployment in found}
    soon, by_pattern = _next_runs(client, found), {entry.pattern: entry for entry in entries}
    rows = []
    for deployment in found:
        name = names[deployment.id]
        entry = next((entry for pattern, entry in by_pattern.items() if fnmatch.fnmatchcase(name, pattern)), None)
        remarks = (*_orphaned(deployment, name, entry, file), *_idle(client, deployment))
        rows.append(Standing(name, deployment.work_pool_name, _schedules(deployment), _when(deployment, soon), remarks))
    return sorted(rows, key=lambda row: row.name)


def _next_runs(client: SyncPrefectClient, found: Sequence[DeploymentResponse]) -> dict[UUID, datetime]:
    """When the server will start each next. Its scheduler looks at new schedules every few seconds, so it is waited for."""
    due = {
        deployment.id
        for deployment in found
        if not deployment.paused and any(schedule.active for schedule in deployment.schedules)
    }
    soon, until = {}, time.monotonic() + SCHEDULER_S
    while due - set(soon) and time.monotonic() < until:
        for deployment in due - set(soon):
            runs = client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
                ),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
                limit=1,
            )
            if runs:
                soon[deployment] = runs[0].expected_start_time
        time.sleep(LOOK_S if due - set(soon) else 0)
    return soon


def _orphaned(deployment: DeploymentResponse, name: str, entry: Entry | None, file: Path) -> Iterator[str]:
    if entry is None:
        yield f"orphaned, {file.name} does not have it: prefect deployment delete '{name}'"
        return
    for schedule in deployment.schedules:
        if schedule.slug not in entry.slugs:
            yield f"schedule {schedule.slug or schedule.id} is orphaned, {file.name} does not have it: prefect deployment schedule delete '{name}' {schedule.id}"


def _idle(client: SyncPrefectClient, deployment: DeploymentResponse) -> Iterator[str]:
    pool = deployment.work_pool_name
    if deployment.paused:
        yield f"paused: prefect deployment schedule resume '{deployment.name}'"
    if pool is None or not client.read_workers_for_work_pool(
        pool, worker_filter=WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    ):
        yield f"no worker is online for it: medad serve --pool {pool}, or prefect worker start --pool {pool}"


def _schedules(deployment: DeploymentResponse) -> str:
    return ", ".join(
        f"{schedule.schedule.cron} {schedule.schedule.timezone}{'' if schedule.active else ' (off)'}"
        for schedule in deployment.schedules
    )


def _when(deployment: DeploymentResponse, soon: Mapping[UUID, datetime]) -> str:
    """In the zone of the deployment's first schedule."""
    if deployment.id not in soon:
        return "–"
    zone = deployment.schedules[0].schedule.timezone if deployment.schedules else None
    return f"{soon[deployment.id].astimezone(ZoneInfo(zone or 'UTC')):%Y-%m-%d %H:%M %Z}"


def _unset(text: str) -> list[str]:
    """Names of the environment variables in a template that are not set."""
    names = [
        placeholder.name.lstrip("$") for placeholder in find_placeholders(text) if placeholder.name.startswith("$")
    ]
    return [name for name in names if name not in os.environ]


def _without_placeholders(text: str) -> str:
    for placeholder in find_placeholders(text):
        text = text.replace(placeholder.full_match, "*")
    return text
