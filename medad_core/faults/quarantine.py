"""A part that is given up: all of its cases failed, none has rows, and the stages after it go on without them.

One decision: a quarantined part is an ordinary record, so everything is accounted for; deleting the record lets the
same command try the part again.
"""

from __future__ import annotations

import logging

from medad_core.run.rejected import QUARANTINED
from medad_core.store import Item, PartRecord, Stage

log = logging.getLogger(__name__)


def quarantine(stage: Stage, number: int, attempts: int, why: str) -> PartRecord:
    """Record a part that could not be made in so many attempts. Raises StoreError."""
    reason = f"{QUARANTINED}{attempts} attempts: {why}"
    log.warning("%s part %d is %s", stage.name, number, reason)
    failed = [Item(key=case_id, reason=reason) for case_id in stage.plan().parts[number].inputs]
    stage.begin(number)
    try:
        return stage.write_part(number, [], failed=failed)
    finally:
        stage.leave(number)
