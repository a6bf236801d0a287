"""Pseudonyms for a dataset whose names say who somebody is (`data.pseudonyms`).

One decision: names end where cases are found. Every case gets a pseudonym and links to its files with no name in them,
before anything else sees it. So rows, records, pages, logs and the messages of the Prefect server cannot hold a name:
nothing after this room knows one. The links lie beside the key, in a folder for its owner alone.

A pseudonym is a keyed hash (HMAC-SHA256, RFC 2104) of a name, cut to 60 bits. The same key gives the same pseudonym,
in every dataset. Without the key, nobody can tell or try out which name it stands for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date as Day
from pathlib import Path

from medad_core.data.cases import Case, Discovery, PassedOver, Rejection, VolumeRef
from medad_core.data.names import MASK, stem
from medad_core.data.own_folders import mark_folder
from medad_core.errors import UsageError
from medad_core.store.files import explained, make_folder
from medad_core.store.regular import read_utf8

NAMES = ("pseudonym", "patient_pseudonym", "case_id", "patient", "visit", "reason")  # columns of `names_of`
_BITS = 256
_LARGEST_SHIFT = 3650  # days
_LENGTH = 12  # letters and digits of base 32: 60 bits; among 100,000 cases two are equal with a chance of 4 in 10^9


@dataclass(frozen=True)
class Pseudonyms:
    """Names to pseudonyms, with the key of the file `path`."""

    path: Path
    _key: bytes

    @classmethod
    def read(cls, path: str | Path) -> Pseudonyms:
        """Read a key file. Raises UsageError where there is none, it is no key, or others may read it."""
        file = Path(os.path.abspath(path))
        try:
            text = read_utf8(file).strip()
            mode = file.stat().st_mode
        except FileNotFoundError as error:
            raise UsageError(
                f"data.pseudonyms={path}: no such file; give the key that the results were made with, or make a new "
                f"one with `medad pseudonyms {path} --new`"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"data.pseudonyms={path}: cannot be read ({error})") from error
        if not re.fullmatch(rf"[0-9a-f]{{{_BITS // 4}}}", text):
            raise UsageError(
                f"data.pseudonyms={path}: is no key of `medad pseudonyms --new`; bring it back from a backup"
            )
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(f"data.pseudonyms={path}: other users may read it; run `chmod 600 {path}`")
        return cls(file, bytes.fromhex(text))

    @property
    def fingerprint(self) -> str:
        """Which key it is, without saying it: results of two keys must not be mixed."""
        return self._of("key", "")

    def case(self, case_id: str) -> str:
        """The pseudonym of a case."""
        return f"c-{self._of('case', case_id)}"

    def patient(self, patient: str) -> str:
        """The pseudonym of a patient; names that differ only by upper and lower case are one patient."""
        return f"p-{self._of('patient', patient.casefold())}"

    def visit(self, visit: str) -> str:
        """The pseudonym of a visit, which may be a date; empty for none."""
        return f"v-{self._of('visit', visit)}" if visit else ""

    def date(self, date: str, patient: str) -> str:
        """A date (ISO) moved back by up to ten years: all of a patient by as many days, which only the key tells.

        So the days between examinations stay. Empty for none.
        """
        if not date:
            return ""
        days = 1 + int.from_bytes(self._of("days", patient.casefold()).encode()) % _LARGEST_SHIFT
        moved = max(Day.fromisoformat(date).toordinal() - days, 1)
        return Day.fromordinal(moved).isoformat()

    def links_folder(self, data: str | Path) -> Path:
        """Where the links to the files of DATA are: beside the key, under a name that does not tell DATA's."""
        return self.path.with_name(f"{self.path.name}.links") / self._of("data", os.path.abspath(data))

    def _of(self, kind: str, name: str) -> str:
        message = f"{kind}\0{name}".encode("utf-8", "surrogateescape")
        return base64.b32encode(hmac.digest(self._key, message, hashlib.sha256)).decode()[:_LENGTH].lower()


def make_key(path: str | Path) -> None:
    """Make a key file (0600) of random bits. Raises UsageError where there is a file: its pseudonyms would be lost."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{path}: is there already, and stays; give the name of a new file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(f"{secrets.token_hex(_BITS // 8)}\n")
        stream.flush()
        os.fsync(stream.fileno())


def with_pseudonyms(discovery: Discovery, data: str | Path, pseudonyms: Pseudonyms) -> Discovery:
    """The same cases under pseudonyms, and their files under links that are made here.

    Reasons of what is refused or passed over name files, so they are not given: `medad pseudonyms` shows them. Raises
    StoreError where no link can be made, and UsageError where two names have one pseudonym.
    """
    folder = pseudonyms.links_folder(data)
    with explained("link the files of a dataset in", str(folder)):
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.parent.chmod(0o700)
        mark_folder(str(folder.parent))  # where it lies inside DATA, it is passed over
        make_folder(str(folder))
        cases = [_hidden(case, folder, pseudonyms) for case in discovery.cases]
    _check_distinct(case.case_id for case in cases)
    reason = f"the reason names files; `medad pseudonyms {pseudonyms.path} DATA` shows it"
    rejected = [Rejection(pseudonyms.case(item.case_id), reason) for item in discovery.rejected]
    passed = [
        PassedOver(str(folder / f"file-{number}"), reason, item.is_explained)
        for number, item in enumerate(discovery.passed_over, 1)
    ]
    return Discovery(
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        rejected=tuple(sorted(rejected, key=lambda item: item.case_id)),
        passed_over=tuple(passed),
    )


def names_of(discovery: Discovery, pseudonyms: Pseudonyms) -> list[dict[str, str]]:
    """One row a case, by pseudonym: whom it stands for, and why it is refused where it is; then files passed over."""
    rows = [
        {
            "pseudonym": pseudonyms.case(case.case_id),
            "patient_pseudonym": pseudonyms.patient(case.patient),
            "case_id": case.case_id,
            "patient": case.patient,
            "visit": case.visit,
        }
        for case in discovery.cases
    ]
    rows += [
        {"pseudonym": pseudonyms.case(item.case_id), "case_id": item.case_id, "reason": f"refused: {item.reason}"}
        for item in discovery.rejected
    ]
    rows.sort(key=lambda row: row["pseudonym"])
    return rows + [{"reason": f"not used: {item.path}: {item.reason}"} for item in discovery.passed_over]


def _hidden(case: Case, folder: Path, pseudonyms: Pseudonyms) -> Case:
    case_id = pseudonyms.case(case.case_id)
    place = folder / case_id
    place.mkdir(exist_ok=True)
    return replace(
        case,
        case_id=case_id,
        patient=pseudonyms.patient(case.patient),
        visit=pseudonyms.visit(case.visit),
        date=pseudonyms.date(case.date, case.patient),
        volumes={kind: _linked(place, kind, ref) for kind, ref in case.volumes.items()},
        mask=None if case.mask is None else _linked(place, MASK, case.mask),
    )


def _linked(place: Path, kind: str, ref: VolumeRef) -> VolumeRef:
    """The volume under a link. The ending stays, because it says how the file is read."""
    name = os.path.basename(ref.path)
    link = place / f"{kind}{name[len(stem(name)) :].lower()}"
    target = os.path.abspath(ref.path)
    if not link.is_symlink() or os.readlink(link) != target:
        scratch = place / f".{kind}-{os.getpid()}"
        scratch.unlink(missing_ok=True)
        os.symlink(target, scratch)
        os.replace(scratch, link)
    return VolumeRef(str(link), ref.channel)


def _check_distinct(pseudonyms: Iterable[str]) -> None:
    seen: set[str] = set()
    for pseudonym in pseudonyms:
        if pseudonym in seen:
            raise UsageError(f"two cases have the pseudonym {pseudonym}; screen them as two datasets, with two keys")
        seen.add(pseudonym)
