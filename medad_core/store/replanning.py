"""Plans a stage again for other inputs, and keeps the records of the parts that stay as they are.

One decision: the inputs of a stage are the cases that the stage before it has rows of. If one of them cannot be used
any more, or can be used now, only its part is planned anew. Everything else in the fingerprint must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from medad_core.store.records import Plan


class Planned(Protocol):
    """What is needed of a `Stage`."""

    name: str

    def plan(self) -> Plan:
        """The stored plan."""

    def find_plan(self) -> Plan | None:
        """The stored plan, None if there is none."""

    def replace_plan(self, plan: Plan) -> None:
        """Replace the stored plan."""


def differ_in_inputs_only(stored: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether the complete fingerprints of two plans of a stage differ, and only in their inputs."""
    return {name for name in {*stored, *wanted} if stored.get(name) != wanted.get(name)} == {"inputs"}


def replan(stage: Planned, plan: Plan, after: Sequence[Planned]) -> None:
    """Replace the plan of `stage`. The plans of the stages `after` it, which name it, follow.

    The last plan is written first: a command that is killed in between does the rest when it is run again. Raises
    StoreError.
    """
    plans: list[tuple[Planned, Plan]] = [(stage, plan)]
    before = {stage.plan().fingerprint_sha256, plan.fingerprint_sha256}
    for later in after:
        stored = later.find_plan()
        upstream, new = plans[-1]
        if stored is None or stored.fingerprint.get(upstream.name) not in before:
            break
        fingerprint = {**stored.fingerprint, upstream.name: new.fingerprint_sha256}
        plans.append((later, Plan(stage=stored.stage, fingerprint=fingerprint, parts=stored.parts)))
        before = {stored.fingerprint_sha256, plans[-1][1].fingerprint_sha256}
    for later, following in reversed(plans):
        later.replace_plan(following)
