"""Checks before Prefect starts anything, in addition to those of `medad_core.run.run.Run.open`.

One decision: for a wrong folder, key, runner or weights file the user gets one line within seconds, never a failed flow
run.
"""

from __future__ import annotations

from flows.orchestrator import check_orchestration
from medad_core.config import Settings
from medad_core.errors import ConfigError
from medad_core.store import check_writable
from medad_core.store.files import resolved


def check_cohort(inbox: str, cohort: str, settings: Settings, wait: bool) -> None:
    """Check what can be wrong with a `screen --cohort` command, but for what `check_asking` does.

    Raises UsageError, StoreError, WeightsError or LockedError.
    """
    from flows.ray_cluster import check_cluster
    from medad_core.data.discovery import check_folder
    from medad_core.data.own_folders import check_name
    from medad_core.inbox.folder import CohortFolder
    from medad_core.run.fingerprints import run_fingerprint
    from medad_core.run.run import check_models
    from medad_core.store.lock import check_free

    check_folder(inbox, settings.data.modality)
    check_name(resolved(inbox))
    check_name(cohort)
    folder = CohortFolder(cohort, inbox)
    check_writable(cohort)
    if not wait:
        check_free(cohort)
    check_orchestration(settings)
    check_models(settings, is_answered=True)
    folder.check_fingerprint(run_fingerprint(settings, folder.fingerprint()))
    check_cluster(settings, cohort, inbox)


def check_asking(settings: Settings) -> None:
    """Check whether the LLM can be asked, which takes seconds: where nothing is new nobody asks it.

    Raises UsageError or WeightsError.
    """
    from medad_core.run.run import check_models

    check_models(settings)


def check_reproducing(out: str, settings: Settings) -> None:
    """Check everything that can be wrong with a `reproduce` command.

    Raises UsageError, ConfigError, StoreError or WeightsError.
    """
    from medad_core.llm.engine import check_engine
    from medad_core.models.device import device_of
    from medad_core.reproduce.experiment import check_experiment, experiment_fingerprint
    from medad_core.run.fingerprints import check_llm

    check_orchestration(settings)
    device_of(settings)
    check_engine(settings.llm)
    check_llm(settings, settings.llm.template)
    if settings.flow.runner != "process" and settings.flow.max_workers > 1:
        raise ConfigError(
            "flow.max_workers: threads share torch's random numbers, so no seed would mean anything; "
            "set flow.runner=process, or flow.max_workers=1"
        )
    trained = range(settings.train.first_slice, settings.train.last_slice + 1)
    outside = {settings.data.first_slice, settings.data.last_slice} - set(trained)
    if outside:
        raise ConfigError(
            f"train.first_slice..train.last_slice leaves out slices {sorted(outside)} of "
            "data.first_slice..data.last_slice; widen it, or test fewer slices"
        )
    check_experiment(out, experiment_fingerprint(settings))


def check_training(settings: Settings) -> None:
    """Check everything that can be wrong with a `train` command, except the cohort.

    Raises UsageError, ConfigError or WeightsError.
    """
    from medad_core.llm.engine import llm_fingerprint
    from medad_core.models.device import device_of
    from medad_core.models.encoder import encoder_fingerprint
    from medad_core.run.fingerprints import check_llm, shared_fingerprint

    check_orchestration(settings)
    device_of(settings)
    encoder_fingerprint(settings.models.encoder, settings.train.image_pixels, where=settings.models)
    shared_fingerprint(settings)
    llm_fingerprint(settings.llm.model, settings.llm.lora, where=settings.models)
    check_llm(settings, settings.llm.template)
