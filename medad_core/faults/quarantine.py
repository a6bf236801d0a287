"""Records a part that is given up: all its cases failed, none has rows, and later stages continue without them.

One decision: a quarantined part has an ordinary record, so all cases are counted. If you delete the record, the same
command tries the part again.
"""

from __future__ import annotations

import logging

from medad_core.run.rejected import QUARANTINED
from medad_core.store import Item, PartRecord, Stage

log = logging.getLogger(__name__)


def quarantine(stage: Stage, number: int, attempts: int, why: str) -> PartRecord:
    """Record a part that could not be made in `attempts` attempts. Raises StoreError."""
    reason = f"{QUARANTINED}{attempts} attempts: {why}"
    log.warning("%s part %d is %s", stage.name, number, reason)
    failed = [Item(key=case_id, reason=reason) for case_id in stage.plan().parts[number].inputs]
    stage.begin(number)
    try:
        return stage.write_part(number, [], failed=failed)
    finally:
        stage.leave(number)
