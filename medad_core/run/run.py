"""A run, opened once: its settings, its cohort, its models, and its stages.

One decision: the caller that opens a run passes it on, and no function discovers cases, parses plans or hashes models
again. Another process gets only the folder and the settings, and opens the run with `Run.reopen`. Model libraries are
imported only inside the functions that need them, so that importing this module is fast.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

from medad_core.config import Settings
from medad_core.data.cases import Discovery
from medad_core.data.own_folders import claim_folder, mark_folder
from medad_core.data.source import check_data, files_root, find_cases
from medad_core.data.table import dataset_root
from medad_core.environment import package_versions
from medad_core.errors import StoreError
from medad_core.permissions import set_mode
from medad_core.run.cohort import Cohort, cohort_of, find_stored, keep_cohort
from medad_core.run.fields import DEALT_BY, settings_fields
from medad_core.run.gather import open_cohort
from medad_core.run.info import RunInfo, has_run_info, read_run_info, write_run_info
from medad_core.run.inputs import Inputs
from medad_core.run.rejected import Rejected, write_rejected
from medad_core.run.staleness import compare_inputs, forget_cases, named, refuse_changed, warn_unknown
from medad_core.run.warnings import Warned, write_warnings
from medad_core.store import Stage, check_writable, open_stages
from medad_core.store.files import absolute, sweep
from medad_core.store.lock import check_unheld, held
from medad_core.store.objects import hasty

if TYPE_CHECKING:
    from medad_core.run.fingerprints import ResolvedModels

log = logging.getLogger(__name__)


class Run:
    """One pass of a cohort through the stages, in its folder `uri`. Safe for one thread at a time."""

    def __init__(self, uri: str, settings: Settings) -> None:
        set_mode(settings.store.mode)
        self.uri = uri
        self.settings = settings
        self.stages = open_stages(uri)
        self.discovery: Discovery | None = None  # what `open` found below DATA
        self.inputs = Inputs(uri)

    @classmethod
    def open(cls, data: str, out: str, settings: Settings, refresh: bool = False) -> Run:
        """Open the new or existing run of the cases below `data`, or in a table of files, in the folder `out`.

        Everything that can be wrong with the command is checked here, before any work. Raises UsageError, StoreError or
        WeightsError. A case whose volume or mask has changed since the run read it is refused by name; with `refresh`,
        the parts that hold it are forgotten instead, in every stage. A new run gets its `cohort.json` and `run.json`.
        In an existing run, nothing else is written than the stamps of files with the same content, and temporary files
        of killed writers are removed.
        """
        discovery = _prepare(data, out, settings)
        return cls._opened(data, out, settings, refresh, discovery)

    @classmethod
    @contextmanager
    def held(cls, data: str, out: str, settings: Settings, refresh: bool = False) -> Iterator[Run]:
        """`open`, and hold the folder `out` while the block runs: a second command is refused.

        Raises LockedError as well, which names the process that holds it.
        """
        with hasty():
            check_unheld(out)
            discovery = _prepare(data, out, settings)
        with held(out):
            yield cls._opened(data, out, settings, refresh, discovery)

    @classmethod
    def _opened(cls, data: str, out: str, settings: Settings, refresh: bool, discovery: Discovery) -> Run:
        run = cls(out, settings)
        check_models(settings, is_answered=not refresh and run._is_answered())
        _ = run.models
        run.discovery = discovery
        stored = find_stored(out)
        root = files_root(data, settings.data)
        run.cohort = open_cohort(out, stored, root, discovery, settings.data, run._is_dealt())
        run.settle_inputs(refresh)
        keep_cohort(out, stored, run.cohort)
        run.sweep()
        if not has_run_info(out):
            run.note(data)
        return run

    @classmethod
    def reopen(cls, uri: str, settings: Settings | None = None) -> Run:
        """Open an existing run; without settings, with those in `run.json`. Raises StoreError if that is missing."""
        return cls(uri, settings or read_run_info(uri).parsed_settings())

    @cached_property
    def cohort(self) -> Cohort:
        """The cases of the run.

        Raises StoreError if the run was never opened, or they are not those that its slices were planned for.
        """
        cohort = cohort_of(self.uri)
        plan = self.stage("slices").find_plan()
        if plan is not None and plan.fingerprint.get("cohort", cohort.content) != cohort.content:
            raise StoreError(
                f"{self.uri}/cohort.json is damaged: its cases are not those that the stages were made of; "
                "bring it back from a backup, or choose another --out"
            )
        return cohort

    @cached_property
    def models(self) -> ResolvedModels:
        """What determines the rows of every stage.

        Raises UsageError or WeightsError if models are missing or do not fit.
        """
        from medad_core.run.fingerprints import ResolvedModels

        plan = self.stage("maps").find_plan()
        return ResolvedModels.of(self.settings, None if plan is None else plan.fingerprint)

    def _is_answered(self) -> bool:
        """Whether the answers are made, with the LLM, the template and the questions of these settings."""
        answers = self.stage("answers")
        plan = answers.find_plan()
        return plan is not None and self.models.answers.items() <= plan.fingerprint.items() and answers.is_finished()

    def _is_dealt(self) -> bool:
        """Whether the splits of `cohort.json` were dealt by these settings, as the plan of `slices` says."""
        plan = self.stage("slices").find_plan()
        fields = settings_fields(self.settings, *DEALT_BY)
        return plan is not None and all(plan.fingerprint.get(name) == value for name, value in fields.items())

    def settle_inputs(self, refresh: bool) -> None:
        """Compare the files of the cohort with those that the run was made of; refuse or forget changed cases.

        Raises StoreError naming them. Before that nothing is written.
        """
        compared = compare_inputs(self.inputs, self.stages, self.cohort.root)
        if not refresh:
            refuse_changed(self.uri, compared.changed)
        warn_unknown(self.uri, compared.unknown)
        for number, inputs in compared.renewed.items():
            self.inputs.write(number, inputs)
        if compared.changed:
            log.warning("made again, because their volumes or masks changed: %s", named(compared.changed))
            forget_cases(self.stages.values(), compared.changed)

    def stage(self, name: str) -> Stage:
        """One of the stages slices, maps, prompts, answers."""
        return self.stages[name]

    def note(self, data: str) -> None:
        """Write `run.json`: the settings and data of the command.

        For an existing run, call it only after its stages have accepted the settings: a refused command must not
        change `run.json`.
        """
        info = RunInfo.of(self.settings, absolute(data), package_versions())
        write_run_info(self.uri, info)

    def sweep(self) -> None:
        """Remove the temporary files that killed writers left. Raises StoreError."""
        sweep(self.uri)
        self.inputs.sweep()
        for stage in self.stages.values():
            stage.sweep()

    def write_rejected(self) -> list[Rejected]:
        """Write `rejected.csv`; returns its rows. Raises StoreError."""
        return write_rejected(self.uri, self.stages.values())

    def write_warnings(self) -> list[Warned]:
        """Write `warnings.csv`; returns its rows. Raises StoreError."""
        return write_warnings(self.uri, self.stage("slices"), self.inputs)


def _prepare(data: str, out: str, settings: Settings) -> Discovery:
    """The cases below `data`, and a folder `out` that their results can be written to."""
    set_mode(settings.store.mode)
    root = dataset_root(data)
    check_data(data, settings.data)
    claim_folder(root, out)
    discovery = find_cases(data, settings.data)
    check_writable(out)
    mark_folder(out)
    return discovery


def check_models(settings: Settings, is_answered: bool = False) -> None:
    """Raise UsageError or WeightsError if the device, the engine, its servers or the LLM's template cannot be used.

    The last two, which take seconds, are not looked at where `is_answered`: nobody asks the LLM of them again.
    """
    from medad_core.llm.engine import check_engine
    from medad_core.models.device import device_of
    from medad_core.run.fingerprints import check_wording
    from medad_core.run.served import check_served

    device_of(settings)
    workers = settings.flow.ray_workers if settings.flow.runner == "ray" else None
    check_engine(settings.llm, None if workers is None else ceil(workers.answers.gpus))
    if not is_answered:
        check_wording(settings)
        check_served(settings)
