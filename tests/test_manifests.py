"""The files that start medad on clusters say what medad understands; `make manifests` asks outside tools."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows.cli.app import app
from flows.pools import ensure_pool
from medad_core.config import known_keys

pytest_plugins = ("prefect_harness",)
ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "configs" / "deploy"
SLURM = (DEPLOY / "slurm.sbatch").read_text(encoding="utf-8")
CONTAINER = (ROOT / "Containerfile").read_text(encoding="utf-8")
KUBERAY = {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text("utf-8"))}
POOL = json.loads((DEPLOY / "kubernetes-pool.json").read_text(encoding="utf-8"))
# Of the types of ray.io/v1 in KubeRay 1.4: what is required, and what else is used here.
FIELDS = {
    "RayJob": (
        set(),
        {"submissionMode", "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"},
    ),
    "RayCluster": ({"headGroupSpec"}, {"rayVersion", "workerGroupSpecs"}),
    "head": ({"rayStartParams", "template"}, set()),
    "workers": ({"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"}, {"replicas"}),
}


def command_in(text: str) -> list[str]:
    """The words of `medad screen` in a script, without what stands in arrays and variables alone."""
    start = text.index('medad screen "$')
    line = re.sub(r"\\\n", " ", text[start:]).split("\n\n")[0].split(" &\n")[0]
    return [word for word in shlex.split(line) if word != "$@" and not word.startswith("${")]


@pytest.mark.parametrize("text", [KUBERAY["RayJob"]["spec"]["entrypoint"], SLURM], ids=["kuberay", "slurm"])
def test_the_command_of_a_job_is_one_of_medad(text):
    name, command, *words = command_in(text)
    parsed = typer.main.get_command(app).commands[command]
    parsed.make_parser(parsed.make_context(command, ["DATA", "--out", "RUN"], resilient_parsing=True))
    assert name == "medad" and words[1] == "--out"
    settings = [word.split("=")[0] for word in words if "=" in word]
    settings += [f"flow.ray_workers.{stage}.gpus" for stage in ("maps", "prompts", "answers") if text is SLURM]
    assert {"flow.runner", "flow.ray_address", "flow.max_workers"} <= set(settings)
    known = set(known_keys())
    assert [key for key in settings if key not in known] == []


def test_fields_of_a_ray_job_are_those_of_kuberay():
    job = dict(KUBERAY["RayJob"]["spec"])
    cluster = dict(job.pop("rayClusterSpec"))
    groups = [("RayJob", job), ("RayCluster", cluster), ("head", cluster["headGroupSpec"])]
    groups += [("workers", group) for group in cluster["workerGroupSpecs"]]
    for kind, group in groups:
        required, others = FIELDS[kind]
        assert required <= set(group) <= required | others, kind
    assert all(type(value) is str for _, group in groups[2:] for value in group["rayStartParams"].values())
    workers = cluster["workerGroupSpecs"][0]
    assert f"flow.max_workers={workers['replicas']}" in job["entrypoint"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def secrets_in(value: Any) -> list[str]:
    """Values of what is named like a secret."""
    if isinstance(value, dict):
        named = [str(each) for key, each in value.items() if re.search("(?i)secret_access|password|_token$", str(key))]
        return named + [found for each in value.values() for found in secrets_in(each)]
    return [found for each in value for found in secrets_in(each)] if isinstance(value, list) else []


def test_pods_have_no_rights_and_no_secrets_of_their_own():
    job = POOL["job_configuration"]["job_manifest"]
    cluster = KUBERAY["RayJob"]["spec"]["rayClusterSpec"]
    pods = [job["spec"]["template"], cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and not pod["spec"]["automountServiceAccountToken"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert {"secretRef": {"name": "medad-store"}} in container["envFrom"]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert secrets_in([POOL, *KUBERAY.values()]) == []


def test_a_server_of_prefect_takes_the_pool_and_medad_leaves_it_as_it_is(server):
    from prefect.client.orchestration import get_client

    words = ["work-pool", "create", "medad-kubernetes", "--type", "kubernetes"]
    words += ["--base-job-template", str(DEPLOY / "kubernetes-pool.json")]
    environment = {**os.environ, "PREFECT_API_URL": server}
    subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", *words], env=environment, check=True)
    with get_client(sync_client=True) as client:
        assert not ensure_pool(client, "medad-kubernetes")  # medad's own pools are of another kind
        pool = client.read_work_pool("medad-kubernetes")
    assert (pool.type, pool.base_job_template) == ("kubernetes", POOL)


def test_who_starts_a_run_gives_the_pod_nothing():
    from jsonschema import ValidationError, validate
    from prefect.utilities.templating import find_placeholders

    assert find_placeholders(POOL["job_configuration"]) == set()
    validate({}, POOL["variables"])
    with pytest.raises(ValidationError):
        validate({"command": "sh"}, POOL["variables"])


def test_the_image_holds_what_the_project_pins():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {name.rstrip("*") for name in packages["find"]["include"]}
    assert folders == set(re.findall(r"COPY --chown=medad (\w+) \1\n", CONTAINER))
    torch = re.search(r"^TORCH \?= (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    assert f'ARG TORCH="{torch} ' in CONTAINER
    versions = {KUBERAY["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"], re.search(r"ARG RAY=(\S+)", CONTAINER)[1]}
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements-cpu.lock").read_text(encoding="utf-8"), re.M)
    assert len(versions) == 1 and (locked is None or versions == {locked[1]})


def test_the_slurm_job_is_a_script_and_wants_data_and_run():
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sbatch"], check=True)
    without = subprocess.run(["bash", DEPLOY / "slurm.sbatch", "DATA"], capture_output=True, text=True, check=False)
    assert without.returncode == 2 and "usage: sbatch" in without.stderr
