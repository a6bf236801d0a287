"""The work pools of medad: their workers run flows of the installed package, and nothing that a run brings along.

One decision: the template of a pool has no variables. In Prefect's own template, who starts a run may give it a
command, an environment and a folder, which the worker then uses. Here a run has its parameters alone: the server
refuses anything else, and a worker would not use it. What flow runs need in their environment is set where the worker
is started.
"""

from __future__ import annotations

from contextlib import suppress

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

TYPE = "process"
TEMPLATE = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}


def ensure_pool(client: SyncPrefectClient, name: str) -> bool:
    """Create the pool if it is missing, and give it our template. False for a pool of another kind, which stays."""
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        description = "Flow runs of medad, each in a process of its own."
        made = WorkPoolCreate(name=name, type=TYPE, base_job_template=TEMPLATE, description=description)
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(made)
            return True
        pool = client.read_work_pool(name)  # somebody else has created it meanwhile
    if pool.type != TYPE:
        return False
    if pool.base_job_template != TEMPLATE:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=TEMPLATE))
    return True
