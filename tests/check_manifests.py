"""Checks the files of `configs/deploy` and the Containerfile with the tools of their own kind: `make manifests`.

One decision: the tools are no part of the environment; `uv run` brings them for this one command. Schemas of Kubernetes
check what is its own, also the pods that the operators make of our templates. KubeRay's schema is not on PyPI, so
`tests/test_manifests.py` checks its fields.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "configs" / "deploy"
COMMANDS = (
    ["bash", "-n", str(DEPLOY / "slurm.sbatch")],
    ["shellcheck", str(DEPLOY / "slurm.sbatch")],
    ["hadolint", str(ROOT / "Containerfile")],
)


def resources() -> Iterator[dict[str, Any]]:
    """What Kubernetes is given, by us or by the operators."""
    for document in yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8")):
        if document["kind"] != "RayJob":
            yield document
            continue
        cluster = document["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
    pool = json.loads((DEPLOY / "kubernetes-pool.json").read_text(encoding="utf-8"))
    job = pool["job_configuration"]["job_manifest"]
    # Prefect asks for these two where Kubernetes does not know them, and its API server drops them.
    for name in ("parallelism", "completions"):
        del job["spec"]["template"]["spec"][name]
    yield job


def main() -> None:
    """Check everything; ends with 1 and what is wrong."""
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    for resource in resources():
        kubernetes_validate.validate(resource, version, strict=True)
        print(f"{resource['kind']}: valid in Kubernetes {version}")
    for command in COMMANDS:
        if subprocess.run(command, check=False).returncode:
            sys.exit(1)
        print(f"{command[0]}: nothing to say")


if __name__ == "__main__":
    main()
