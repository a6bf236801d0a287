"""Whom the weights of a run were trained on."""

from __future__ import annotations

from medad_core.config import Settings
from medad_core.data.names import patient_of
from medad_core.data.pseudonyms import Pseudonyms
from medad_core.models.weights import trained_on, weights_folder
from medad_core.run.cohort import Member


def learned_patients(settings: Settings) -> frozenset[str]:
    """Patients that the weights were trained on, by their names and by the pseudonyms of the settings.

    Raises WeightsError where the weights are lost or damaged, UsageError where the key of the pseudonyms cannot be
    read.
    """
    learned = trained_on(weights_folder(settings.models.weights))
    if settings.data.pseudonyms is None:
        return learned
    pseudonyms = Pseudonyms.read(settings.data.pseudonyms)
    return learned | {known for name in learned for known in (pseudonyms.patient(name), pseudonyms.case(name))}


def has_learned(member: Member, learned: frozenset[str]) -> bool:
    """Whether a case is of one of the patients `learned`."""
    return bool(learned & {member.patient_id, patient_of(member.case_id)})
