"""What medad takes every file of a dataset for, and why: `medad inspect`.

One decision: it calls what screening calls. Names are explained by the same layouts, and headers and masks are read by
the same functions, so what is shown is what would be done. One row is one volume, with the columns of `table.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medad_core.data.cases import Case, Discovery, VolumeRef
from medad_core.data.grid import is_sri24
from medad_core.data.names import MASK
from medad_core.data.nifti import read_header
from medad_core.data.nifti_header import Header
from medad_core.data.read import check_slices
from medad_core.data.source import settle_case
from medad_core.data.table import NOT_USED, REFUSED, TUMOUR_MASK, VOLUME, Row
from medad_core.errors import CaseError, InputError
from medad_core.surroundings.memory import keep_freed_memory
from medad_core.surroundings.processes import usable_cores

if TYPE_CHECKING:
    from medad_core.config import DataSettings

USE, WARN, REFUSE = "use", "warn", "refuse"
# Shapes (slices, rows, columns) of the grids of MNI152, with the edges in mm.
_MNI = {(182, 218, 182): 1.0, (193, 229, 193): 1.0, (91, 109, 91): 2.0}


@dataclass(frozen=True)
class Finding:
    """What was found about one volume: a verdict (use, warn, refuse), its reason, and texts for the table."""

    verdict: str
    reason: str
    checks: str = ""


CheckCase = Callable[[Case, "DataSettings"], Finding]


def inspect_cases(
    discovery: Discovery,
    settings: DataSettings,
    root: str,
    check: CheckCase,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Row]:
    """One row a volume or mask, by case; then what was refused; then what is passed over.

    `check` looks at the content of a case; headers are read here. `progress` gets how many cases are done, and of how
    many.
    """
    keep_freed_memory()
    rows: list[Row] = []
    with ThreadPoolExecutor(usable_cores()) as pool:  # inflating releases the GIL
        results = pool.map(lambda case: _case_rows(case, settings, root, check), discovery.cases)
        for number, of_case in enumerate(results, 1):
            rows += of_case
            progress(number, len(discovery.cases))
    for rejection in discovery.rejected:
        for role, path in rejection.files or (("", ""),):
            rows.append(
                {
                    "case_id": rejection.case_id,
                    "modality": "" if role == MASK else role,
                    "role": REFUSED,
                    "path": _below(root, path),
                    "verdict": REFUSE,
                    "reason": rejection.reason,
                }
            )
    for passed in discovery.passed_over:
        rows.append({"role": NOT_USED, "path": _below(root, passed.path), "verdict": "", "reason": passed.reason})
    return rows


def grid_of(header: Header) -> str:
    """SRI24, MNI or native, by shape and spacing."""
    if is_sri24(header):
        return "SRI24"
    spacing = _MNI.get(header.picture_shape, 0.0)
    return "MNI" if all(abs(edge - spacing) < 0.01 for edge in header.spacing_mm) else "native"


def _case_rows(case: Case, settings: DataSettings, root: str, check: CheckCase) -> list[Row]:
    finding = check(case, settings)
    rows = []
    for modality, ref in case.volumes.items():
        of_volume = finding if modality == settings.modality else Finding("", "not screened")
        rows.append(_row(case, root, ref, of_volume, modality=modality, role=VOLUME, max_gib=settings.max_gib))
    if case.mask is not None:
        labels = settings.tumour_labels or case.tumour_labels or ()
        of_mask = Finding(finding.verdict, "")
        row = _row(case, root, case.mask, of_mask, modality="", role=TUMOUR_MASK, max_gib=settings.max_gib)
        rows.append({**row, "tumour_labels": " ".join(map(str, labels))})
    return rows


def _row(case: Case, root: str, ref: VolumeRef, finding: Finding, *, modality: str, role: str, max_gib: float) -> Row:
    row = {
        "case_id": case.case_id,
        "patient": case.patient,
        "visit": case.visit,
        "date": case.date,
        "modality": modality,
        "role": role,
        "path": _below(root, ref.path),
        "channel": "" if ref.channel is None else str(ref.channel),
        "tumour_labels": "",
        "pathology": case.pathology,
        "layout": case.layout,
        "checks": finding.checks,
        "verdict": finding.verdict,
        "reason": finding.reason,
    }
    try:
        header = read_header(case.case_id, ref, max_gib)
    except (CaseError, InputError) as error:
        reason = error.reason if isinstance(error, CaseError) else str(error)
        return {**row, "verdict": finding.verdict and REFUSE, "reason": finding.reason or reason}
    return {
        **row,
        "shape": "x".join(map(str, header.shape)),
        "spacing_mm": "x".join(f"{edge:g}" for edge in _stored_spacing(header)),
        "orientation": header.stored_orientation,
        "grid": grid_of(header),
    }


def _stored_spacing(header: Header) -> Sequence[float]:
    """Edges in the order of the stored shape."""
    rows, columns, slices = header.spacing_mm
    by_axis = dict(zip(header.order, (slices, rows, columns), strict=True))
    return [round(by_axis[axis], 3) for axis in range(3)]


def _below(root: str, path: str) -> str:
    """`path` relative to `root` where it lies below it."""
    return path.removeprefix(f"{root.rstrip('/')}/")


def check_case(case: Case, settings: DataSettings) -> Finding:
    """Read a case as screening does; what screening refuses is refused here, with the same words."""
    try:
        checks = check_slices(settle_case(case, settings), settings)
    except CaseError as error:
        return Finding(REFUSE, error.reason)
    except InputError as error:
        return Finding(WARN, str(error))
    odd = [check for check in checks if check.verdict != USE]
    shown = " ".join(f"{check.name}={check.value:.2f}" for check in checks)
    return Finding(WARN if odd else USE, "; ".join(check.reason for check in odd), shown)
