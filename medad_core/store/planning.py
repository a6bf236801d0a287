"""Makes a plan, compares two plans, and checks a result against its plan.

One decision: the fingerprint contains what the rows are, never how they are made. This module adds the schema and the
set of inputs to it. A key about batch sizes, devices or paths is a mistake of the caller and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from medad_core.errors import RowsError
from medad_core.store.records import Item, PartPlan, Plan, fingerprint_of
from medad_core.store.schemas import with_view

# Last words of keys that say how rows are made. With one of them in the fingerprint, no other machine could resume.
HOW_MADE = frozenset(
    [
        "batch_size",
        "device",
        "runner",
        "max_workers",
        "threads",
        "retries",
        "retry_delay_s",
        "ray_address",
        "cases_per_part",
        "max_gib",
        "path",
        "root",
        "out",
        "run",
        "mode",
    ]
)


def make_plan(stage: str, fingerprint: Mapping[str, str], schema: pa.Schema, parts: Sequence[Sequence[str]]) -> Plan:
    """A plan with the complete fingerprint. Raises ValueError for a key of HOW_MADE or an input planned twice."""
    complete = complete_fingerprint(stage, fingerprint, schema, parts)
    numbered = tuple(PartPlan(number=number, inputs=tuple(keys)) for number, keys in enumerate(parts))
    return Plan(stage=stage, fingerprint=complete, parts=numbered)


def complete_fingerprint(
    stage: str, fingerprint: Mapping[str, str], schema: pa.Schema, parts: Sequence[Sequence[str]]
) -> dict[str, str]:
    """`fingerprint` with the schema and the inputs, sorted by key. Raises ValueError for a key of HOW_MADE."""
    how = sorted(key for key in fingerprint if key.rsplit(".", 1)[-1] in HOW_MADE)
    if how:
        raise ValueError(f"fingerprint of {stage} says how rows are made, not what they are: {', '.join(how)}")
    inputs = sorted(key for part in parts for key in part)
    fields = [f"{field.name}: {field.type}{'?' if field.nullable else ''}" for field in with_view(schema, fingerprint)]
    complete = {
        **fingerprint,
        "schema": fingerprint_of({"fields": fields}),
        # The fingerprint contains which inputs there are, not how they are cut into parts.
        "inputs": f"{len(inputs)} cases, {fingerprint_of({'keys': inputs})}",
    }
    return dict(sorted(complete.items()))


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """The fields in which two fingerprints differ, with both values."""
    fields = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return "with other content: " + ", ".join(
        f"{name} ({_short(old.get(name))} there, {_short(new.get(name))} now)" for name in fields
    )


def account(where: str, part: PartPlan, cases: Sequence[str], skipped: Sequence[Item], failed: Sequence[Item]) -> None:
    """Compare the cases of a part with its plan. Raises RowsError naming the cases that do not match."""
    named = [*cases, *(item.key for item in (*skipped, *failed))]
    for problem, keys in {
        "planned but neither done, skipped nor failed": set(part.inputs) - set(named),
        "not planned": set(named) - set(part.inputs),
        "accounted for twice": {key for key in named if named.count(key) > 1},
    }.items():
        if keys:
            raise RowsError(f"{where}: {problem}: {', '.join(sorted(keys))}")
    # The rows must always be the same, so a resumed run must not depend on the order in which cases became ready.
    if [key for key in part.inputs if key in cases] != list(cases):
        raise RowsError(f"{where}: cases are not in the planned order")


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= 24 else value[:21] + "…"
