"""An experiment on disk: `DIR/study.json` says which cases were encoded, how they are dealt to folds.

One decision: it is written once, after the cases were read and encoded, and everything later opens it. Row files
beside it are of this experiment and of no other; a command with other settings is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from medad_core.config import Settings
from medad_core.data.names import patient_of
from medad_core.data.own_folders import claim_folder
from medad_core.errors import StoreError
from medad_core.models.device import device_of, settle_torch
from medad_core.models.encoder import encoder_fingerprint, load_encoder
from medad_core.progress import ReportProgress
from medad_core.reproduce.folds import Fold, deal
from medad_core.reproduce.schema import PATIENTS, PHANTOMS
from medad_core.run.cohort import settle_cohort
from medad_core.run.fingerprints import shared_fingerprint, speech_fingerprint
from medad_core.run.gather import by_index, find_cohort
from medad_core.store import join, write_text
from medad_core.store.files import read_bytes
from medad_core.training.features import TrainingCase, encode_cohort


class ExperimentCase(BaseModel):
    """One encoded case: where its arrays are (below DIR), which slices they hold."""

    model_config = ConfigDict(frozen=True)
    case_id: str
    phantom: bool
    features: str
    pictures: str
    first_slice: int
    pixel_mm2: float
    window_pixels: int = 0
    mirrored: str | None = None
    patient: str | None = None  # in experiments of earlier versions the case id says it

    @property
    def patient_id(self) -> str:
        """The patient: visits of one share it."""
        return self.patient or patient_of(self.case_id)


class Experiment(BaseModel):
    """What `DIR/study.json` holds. `rejected` are (case_id, reason)."""

    model_config = ConfigDict(frozen=True)
    root: str
    fingerprint: dict[str, str]
    cases: tuple[ExperimentCase, ...]
    rejected: tuple[tuple[str, str], ...]
    folds: tuple[Fold, ...]

    def load(self, out: str | Path) -> dict[str, TrainingCase]:
        """Every case as memory maps, by case_id."""
        return {case.case_id: _load(Path(out), case) for case in self.cases}

    def group_of(self, case_id: str) -> str:
        """patients or phantoms."""
        return self._groups[case_id]

    @cached_property
    def _groups(self) -> dict[str, str]:
        return {case.case_id: PHANTOMS if case.phantom else PATIENTS for case in self.cases}

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that are there, patients first."""
        return tuple(sorted(set(self._groups.values())))

    def patients(self, group: str, fold: int | None = None) -> int:
        """How many patients (or phantoms) of a group there are, or are tested in one fold."""
        tested = self.folds[fold].test if fold is not None else [case.case_id for case in self.cases]
        return len({self.patient_of(case_id) for case_id in tested if self.group_of(case_id) == group})

    def patient_of(self, case_id: str) -> str:
        """The patient of a case."""
        return self._patients[case_id]

    @cached_property
    def _patients(self) -> dict[str, str]:
        return {case.case_id: case.patient_id for case in self.cases}


def open_experiment(out: str) -> Experiment:
    """The experiment of a folder. Raises StoreError where there is none."""
    data = read_bytes(join(out, "study.json"))
    if data is None:
        raise StoreError(f"{out} has no study.json; make one with `medad reproduce DATA --out {out}`")
    return Experiment.model_validate_json(data)


def prepare(data: str, out: str, settings: Settings, progress: ReportProgress = lambda *_: None) -> Experiment:
    """Read, encode and deal the labelled cases below `data`; one that is there already is checked and given back.

    Raises UsageError where `data` is no folder of cases, StoreError where `out` was made of other cases or settings.
    """
    claim_folder(data, out)
    settle_torch(settings)
    fingerprint = experiment_fingerprint(settings)
    check_experiment(out, fingerprint)
    cohort = settle_cohort(out, find_cohort(data, by_index(settings.data), sized=True))
    if read_bytes(join(out, "study.json")) is not None:
        return open_experiment(out)
    encoder = load_encoder(
        settings.models.encoder,
        device_of(settings),
        image_size=settings.train.image_pixels,
        where=settings.models,
    )
    cases, rejected = encode_cohort(
        cohort, cohort.members, settings, encoder, Path(out) / "_work" / "features", progress
    )
    phantoms = {member.case_id for member in cohort.members if member.phantom}
    experiment = Experiment(
        root=cohort.root,
        fingerprint=fingerprint,
        cases=tuple(_note(case, case.case_id in phantoms, Path(out)) for case in cases),
        rejected=tuple((item.case_id, item.reason) for item in rejected),
        folds=deal(
            tumour_free_counts(cases, settings),
            {case.case_id: case.patient for case in cases},
            phantoms,
            settings.reproduce.folds,
            settings.data.split,
        ),
    )
    write_text(join(out, "study.json"), experiment.model_dump_json(indent=1))
    return experiment


def tumour_free_counts(cases: Iterable[TrainingCase], settings: Settings) -> dict[str, int]:
    """Tumour-free slices of each case within the screening range."""
    data = settings.data
    within = {case.case_id: case.has_tumour[case.within(data.first_slice, data.last_slice)] for case in cases}
    return {case_id: int((~has_tumour).sum()) for case_id, has_tumour in within.items()}


def experiment_fingerprint(settings: Settings) -> dict[str, str]:
    """What determines the scores of a unit. Rows and seeds are not among it: more of them may be asked for later."""
    reproduce = settings.reproduce
    return {
        **encoder_fingerprint(settings.models.encoder, settings.train.image_pixels, where=settings.models),
        **shared_fingerprint(settings),
        **speech_fingerprint(settings),
        **({} if settings.llm.template == "auto" else {"llm.template": settings.llm.template}),
        "image_score": settings.models.image_score.model_dump_json(),
        "data": settings.data.model_dump_json(include={"first_slice", "last_slice", "split"}),
        "train": settings.train.model_dump_json(exclude={"seed", "hold_out_test"}),
        "reproduce.baselines": reproduce.baselines.model_dump_json(),
        "reproduce.folds": str(reproduce.folds),
    }


def check_experiment(out: str, fingerprint: dict[str, str]) -> None:
    """Raise StoreError where `out` holds an experiment with another fingerprint, naming what differs."""
    if read_bytes(join(out, "study.json")) is None:
        return
    stored = open_experiment(out).fingerprint
    wrong = [
        f"{key} (there {stored.get(key)}, now {fingerprint.get(key)})"
        for key in sorted(stored.keys() | fingerprint.keys())
        if stored.get(key) != fingerprint.get(key)
    ]
    if wrong:
        raise StoreError(f"{out} was made with other settings: {'; '.join(wrong)}; choose another --out")


def _note(case: TrainingCase, phantom: bool, out: Path) -> ExperimentCase:
    return ExperimentCase(
        case_id=case.case_id,
        phantom=phantom,
        features=_below(out, case.features),
        pictures=_below(out, case.images),
        first_slice=int(case.slice_index[0]),
        pixel_mm2=case.pixel_mm2,
        patient=case.patient,
        window_pixels=case.window_pixels,
        mirrored=None if case.mirrored is None else _below(out, case.mirrored),
    )


def _below(out: Path, array: np.ndarray) -> str:
    """Where a memory map lies, relative to `out`."""
    return str(Path(array.filename).resolve().relative_to(out.resolve()))


def _load(out: Path, case: ExperimentCase) -> TrainingCase:
    features = np.load(out / case.features, mmap_mode="r")
    images, brain, masks = np.load(out / case.pictures, mmap_mode="r")
    index = np.arange(case.first_slice, case.first_slice + len(images), dtype=np.int32)
    return TrainingCase(
        case.case_id,
        index,
        features,
        images,
        brain.view(bool),
        masks.view(bool),
        case.pixel_mm2,
        case.patient_id,
        case.window_pixels,
        None if case.mirrored is None else np.load(out / case.mirrored, mmap_mode="r"),
    )
