"""The cases of DATA, whatever DATA is: a folder of any known layout, or a table of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medad_core.data.cases import Case, Discovery
from medad_core.data.discovery import check_folder, discover
from medad_core.data.grid import levels_for
from medad_core.data.nifti import read_header
from medad_core.data.patients import with_patients
from medad_core.data.pseudonyms import Pseudonyms, with_pseudonyms
from medad_core.data.table import dataset_root, is_table, read_case_table
from medad_core.errors import CaseError, UsageError
from medad_core.store.objects import is_object

if TYPE_CHECKING:
    from medad_core.config import DataSettings


def settle_case(case: Case, settings: DataSettings) -> Case:
    """A case as it will be read: with the labels that mean tumour, and how its slices are counted.

    Opens the header of its volume, unless `settings.levels` says how.
    """
    labels = settings.tumour_labels or case.tumour_labels
    levels = settings.levels
    if levels == "auto":
        try:
            levels = levels_for(read_header(case.case_id, case.volumes[settings.modality], settings.max_gib))
        except CaseError:  # it is rejected with its reason when it is read
            levels = "index"
    return replace(case, tumour_labels=labels, levels=levels)


def check_data(data: str | Path, settings: DataSettings) -> None:
    """Raise UsageError where DATA is neither a folder nor a table, or the modality is not known. Nothing is walked."""
    if not is_table(data):
        check_folder(data, settings.modality)


def files_root(data: str | Path, settings: DataSettings) -> str:
    """The folder that the files of `find_cases` are relative to: that of DATA, or with pseudonyms that of its links."""
    if settings.pseudonyms is None:
        return dataset_root(data)
    return str(Pseudonyms.read(settings.pseudonyms).links_folder(data))


def find_cases(data: str | Path, settings: DataSettings, *, may_be_empty: bool = False) -> Discovery:
    """Every case of DATA with its patient. An inbox `may_be_empty`.

    With `settings.pseudonyms`, cases, patients and files have pseudonyms, and links to the files are made. Raises
    UsageError where DATA cannot be understood, and for what `settings.patients` leaves unclear.
    """
    if settings.pseudonyms is None:
        return find_named_cases(data, settings, may_be_empty=may_be_empty)
    if is_object(str(data)):
        raise UsageError(
            f"data.pseudonyms: files of {data} get no pseudonyms, because no link leads into a bucket; copy the data"
        )
    pseudonyms = Pseudonyms.read(settings.pseudonyms)
    check_data(data, settings)
    try:
        discovery = find_named_cases(data, settings, may_be_empty=may_be_empty)
    except UsageError:  # whose words name files
        raise UsageError(
            f"the cases of DATA cannot be listed; `medad pseudonyms {pseudonyms.path} DATA` says why"
        ) from None
    return with_pseudonyms(discovery, data, pseudonyms)


def find_named_cases(data: str | Path, settings: DataSettings, *, may_be_empty: bool = False) -> Discovery:
    """`find_cases`, without pseudonyms."""
    if is_table(data):
        if settings.patients is not None:
            raise UsageError(f"data.patients={settings.patients}: {data} is a table, which says the patients itself")
        return _one_spelling(read_case_table(data, settings.modality))
    discovery = discover(data, settings.modality, may_be_empty=may_be_empty)
    return _one_spelling(discovery if settings.patients is None else with_patients(discovery, settings.patients))


def _one_spelling(discovery: Discovery) -> Discovery:
    """The same cases, where patients that differ only by upper and lower case are one, in the first spelling."""
    first: dict[str, str] = {}
    names = {case.patient: first.setdefault(case.patient.casefold(), case.patient) for case in discovery.cases}
    if all(name == patient for patient, name in names.items()):
        return discovery
    return replace(discovery, cases=tuple(replace(case, patient=names[case.patient]) for case in discovery.cases))
