"""The volumes and masks that each part of `slices` was made of: `RUN/slices/_inputs/00007.json`.

One decision: they are beside the records of the parts, not in them. So a part that is made again, or was lost, still
knows what later stages were made of, and `medad status` and the workers of other stages never read them.

Invariant: where a later stage has a record of a case, the inputs of its part of `slices` are those that the record
comes from. RUNs of earlier versions have no inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from medad_core.data.place import Place
from medad_core.data.reads import FileRead
from medad_core.errors import StoreError, first_line
from medad_core.store import join
from medad_core.store.files import make_folder, read_bytes, sweep, write_bytes
from medad_core.store.listing import list_names, read_many
from medad_core.store.records import Record, record_name

FOLDER = "_inputs"


class PartInputs(Record, frozen=True):
    """What was read for the cases of a part. Paths are relative to the cohort's root.

    `plan_sha256` is the hash of the plan that the part belongs to. A case that was rejected without opening a file has
    no files. `warnings` has what the content of a case makes doubtful, `places` where its pictures lie.
    """

    plan_sha256: str
    cases: dict[str, tuple[FileRead, ...]]
    warnings: dict[str, str] = msgspec.field(default_factory=dict)
    places: dict[str, Place] = msgspec.field(default_factory=dict)

    def body(self) -> bytes:
        """One line: there may be 25,000 of these files."""
        return msgspec.json.encode(self)[:-1] + b"\n}\n"


class Inputs:
    """The inputs of the parts of `slices` of the run in the folder `run`."""

    def __init__(self, run: str) -> None:
        self.uri = join(run, "slices", FOLDER)

    def read(self, number: int, plan_sha256: str) -> PartInputs | None:
        """The inputs of a part, None if they are not recorded. Raises StoreError."""
        return _parsed(self._at(number), read_bytes(self._at(number)), plan_sha256)

    def read_all(self, numbers: Sequence[int], plan_sha256: str) -> Iterator[tuple[int, PartInputs]]:
        """The inputs of all those of the given parts that have them, one after another. Raises StoreError."""
        present = list_names(self.uri)
        names = {record_name(number): number for number in numbers}
        for name, data in read_many(self.uri, (name for name in names if name in present)):
            inputs = _parsed(join(self.uri, name), data, plan_sha256)
            if inputs is not None:
                yield names[name], inputs

    def write(self, number: int, inputs: PartInputs) -> None:
        """Write the inputs of a part, replacing earlier ones. Raises StoreError."""
        make_folder(self.uri)
        write_bytes(self._at(number), inputs.to_json())

    def sweep(self) -> None:
        """Remove the temporary files that killed writers left. Raises StoreError."""
        sweep(self.uri)

    def _at(self, number: int) -> str:
        return join(self.uri, record_name(number))


def _parsed(where: str, data: bytes | None, plan_sha256: str) -> PartInputs | None:
    """None for inputs that are missing or of another plan: then nothing is known of them. Raises StoreError."""
    try:
        inputs = None if data is None else PartInputs.from_json(data)
    except ValueError as error:
        raise StoreError(
            f"{where} is damaged ({first_line(error)}); delete it and {where.replace(FOLDER, '_parts')}, "
            "and run the same command again, which makes both again"
        ) from error
    return inputs if inputs is not None and inputs.plan_sha256 == plan_sha256 else None
