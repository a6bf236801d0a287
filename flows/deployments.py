"""Registers `configs/deploy/prefect.yaml` on a Prefect server: work pools, the GPU's limit, deployments.

One decision: the file has Prefect's own format and is read with Prefect's own model, so `prefect deploy` accepts it.
This module adds what the command line needs: settings, and a check that skips a deployment whose schedule would run
without its folders.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.templating import apply_values, find_placeholders
from pydantic import ValidationError

import medad_core
from flows.gpu import LIMIT
from flows.pools import ensure_pool
from medad_core.config import Settings
from medad_core.config.yaml_reader import StrictLoader
from medad_core.errors import ConfigError

NIGHTLY = "nightly"  # the slug of the schedule that --cron is about
# Beside the package, in a checkout as in an installation.
FILE = Path(medad_core.__file__).parent.parent / "configs" / "deploy" / "prefect.yaml"


@dataclass(frozen=True)
class Entry:
    """A deployment in the file. `missing` lists unset variables without which it cannot be registered."""

    config: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """Pattern FLOW/NAME of the deployments of this entry, for any values of its variables."""
        return f"{self.flow.name}/{_without_placeholders(self.config['name'])}"

    @property
    def flow(self) -> Flow:
        """The flow that the deployment runs."""
        return load_flow_from_entrypoint(self.config["entrypoint"], use_placeholder_flow=False)

    @property
    def pool(self) -> str:
        """Its work pool."""
        return self.config["work_pool"]["name"]

    @property
    def slugs(self) -> set[str]:
        """Names of its schedules."""
        return {schedule["slug"] for schedule in self.config.get("schedules", ())}


def read_entries(
    file: Path = FILE, *, pool: str | None = None, cron: str | None = None, timezone: str | None = None
) -> list[Entry]:
    """The deployments of a file; `pool` applies to all of them, `timezone` to all schedules, `cron` to nightly ones.

    Raises ConfigError.
    """
    try:
        model = PrefectYamlModel.model_validate(yaml.load(file.read_text(encoding="utf-8"), StrictLoader) or {})
    except (OSError, yaml.YAMLError, ValidationError, RecursionError) as error:
        raise ConfigError(f"{file}: no deployments can be read from it: {' '.join(str(error).split())}") from error
    configs = [deployment.model_dump(exclude_unset=True, mode="json") for deployment in model.deployments]
    for config in configs:
        config["work_pool"]["name"] = pool or config["work_pool"]["name"]
        for schedule in config.get("schedules", ()):
            schedule["timezone"] = timezone or schedule["timezone"]
            if cron and schedule["slug"] == NIGHTLY:
                schedule["cron"] = cron
    return [_entry(config) for config in configs]


def _entry(config: dict[str, Any]) -> Entry:
    """A parameter may stay unset if a person starts the run, but not if a schedule starts it."""
    parameters = config.get("parameters", {})
    unset = {key: _unset(value) for key, value in parameters.items()}
    given = {key: value for key, value in parameters.items() if not unset[key]}
    texts = [config["name"], *config.get("tags", ())]
    needed = [name for text in texts for name in _unset(text)]
    if config.get("schedules"):
        needed += [name for names in unset.values() for name in names]
    return Entry({**config, "parameters": given}, tuple(dict.fromkeys(needed)))


def register(
    client: SyncPrefectClient, entries: Sequence[Entry], version: str, settings: Settings | None = None
) -> list[str]:
    """Create missing pools and the limit, and create or update every deployment that has its variables.

    `settings`, if given, are those of their runs. Returns the names of the deployments. Raises ConfigError for a
    deployment with job variables.
    """
    closed = {pool for pool in dict.fromkeys(entry.pool for entry in entries) if ensure_pool(client, pool)}
    _refuse_variables(entries, closed)
    _ensure_limit(client)
    return [_register(entry, version, settings) for entry in entries if not entry.missing]


def _register(entry: Entry, version: str, settings: Settings | None) -> str:
    config = apply_values(dict(entry.config), {})
    chosen = {} if settings is None else {"settings": settings.model_dump(mode="json")}
    limit = config["concurrency_limit"]
    deployment: RunnerDeployment = entry.flow.to_deployment(
        name=config["name"],
        description=config["description"],
        tags=config["tags"],
        parameters={**config["parameters"], **chosen},
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


def _refuse_variables(entries: Sequence[Entry], closed: Collection[str]) -> None:
    """Raise ConfigError for a deployment that gives a pool of ours what it takes from nobody."""
    for entry in entries:
        given = entry.config["work_pool"].get("job_variables")
        if given and entry.pool in closed:
            raise ConfigError(
                f"{entry.pattern}: job_variables: pool {entry.pool} takes none; set the environment of its flow runs "
                "where its worker is started"
            )


def _ensure_limit(client: SyncPrefectClient) -> None:
    try:
        client.read_global_concurrency_limit_by_name(LIMIT)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))


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
