"""Settings as a parameter of a flow: a mapping, as `configs/` has it, or the pydantic model itself.

One decision: what deployments of earlier versions hold is read here, at the boundary, and nowhere else: YAML text, ""
for the defaults, and keys that medad has no longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator

from medad_core.config import Settings, stored_settings, without_retired

DEFAULTS = Settings()


def registered(value: object) -> object:
    """YAML text to settings, a mapping without keys that are gone, anything else as it is. Raises ConfigError."""
    if isinstance(value, str):
        return stored_settings(value)
    return without_retired(value) if isinstance(value, Mapping) else value


SettingsParameter = Annotated[Settings, BeforeValidator(registered)]
