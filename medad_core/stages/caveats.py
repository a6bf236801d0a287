"""What a reader must know of the weights before believing a number: what they miss, and whom they learned from.

One decision: weights speak for themselves, by their card. Where it is lost, or the key of pseudonyms cannot be read,
the reader is told that medad cannot tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medad_core.config import Settings
from medad_core.data.names import patient_of
from medad_core.data.pseudonyms import Pseudonyms
from medad_core.errors import UsageError, WeightsError
from medad_core.models.weights import limits_of, trained_on, weights_folder
from medad_core.run.cohort import Cohort, Member

LOST = "The weights are lost or damaged, so medad cannot tell whether they were trained on these cases."
NO_KEY = "The key of the pseudonyms cannot be read, so medad cannot tell whom the weights were trained on."


@dataclass(frozen=True)
class Learned:
    """The patients that weights learned from, and what they miss; `unknown` says why medad cannot tell, or is ""."""

    patients: frozenset[str]
    limits: str
    unknown: str = ""

    def has_seen(self, member: Member) -> bool | None:
        """Whether the weights learned from this patient; None where medad cannot tell."""
        if self.unknown:
            return None
        return bool(self.patients & {member.patient_id, patient_of(member.case_id)})

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences on the weights, in the words of their card."""
        return tuple(text for text in (self.unknown, self.limits) if text)


def learned(settings: Settings) -> Learned:
    """What the weights of a run say of themselves."""
    try:
        folder = weights_folder(settings.models.weights)
        patients = trained_on(folder)
        limits = limits_of(folder)
        if settings.data.pseudonyms is not None:
            pseudonyms = Pseudonyms.read(settings.data.pseudonyms)
            patients |= {known for name in patients for known in (pseudonyms.patient(name), pseudonyms.case(name))}
    except WeightsError:
        return Learned(frozenset(), "", LOST)
    except UsageError:
        return Learned(frozenset(), "", NO_KEY)
    return Learned(patients, limits)


def caveats(cohort: Cohort, settings: Settings) -> tuple[str, ...]:
    """Sentences on the numbers of a cohort."""
    known = learned(settings)
    seen = [member for member in cohort.members if known.has_seen(member)]
    if not seen:
        return known.caveats
    count = f"{len(seen)} of the {len(cohort.members)} cases"
    return (
        *known.caveats,
        f"{count} were used to train these weights, so the numbers are too good{_of_the_test_split(cohort, seen)}. "
        "The weights' card has the scores of held-out patients.",
    )


def _of_the_test_split(cohort: Cohort, seen: Sequence[Member]) -> str:
    tested = {member for member in cohort.members if member.split == "test"}
    if not tested:
        return ""
    in_both = tested & set(seen)
    return ", in the split test too" if in_both else "; not those of the split test, none of which was used"
