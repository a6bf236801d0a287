"""The cases of DATA, whatever DATA is: a folder of any known layout, or a table of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medad_core.data.cases import Discovery
from medad_core.data.discovery import check_folder, discover
from medad_core.data.patients import with_patients
from medad_core.data.table import is_table, read_case_table

if TYPE_CHECKING:
    from medad_core.config import DataSettings


def check_data(data: str | Path, settings: DataSettings) -> None:
    """Raise UsageError where DATA is neither a folder nor a table, or the modality is not known. Nothing is walked."""
    if not is_table(data):
        check_folder(data, settings.modality)


def find_cases(data: str | Path, settings: DataSettings, *, may_be_empty: bool = False) -> Discovery:
    """Every case of DATA with its patient. An inbox `may_be_empty`.

    Raises UsageError where DATA cannot be understood, and for what `settings.patients` leaves unclear.
    """
    if is_table(data):
        return read_case_table(data, settings.modality)
    discovery = discover(data, settings.modality, may_be_empty=may_be_empty)
    return discovery if settings.patients is None else with_patients(discovery, settings.patients)
