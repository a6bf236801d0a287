"""Settings as a parameter of a flow: a mapping, as `configs/` has it, or the pydantic model itself.

One decision: deployments that version 0.1.0 registered hold YAML text, "" for the defaults; it is read here, at the
boundary, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from medad_core.config import Settings, settings_from_yaml

DEFAULTS = Settings()


def settings_of_text(value: object) -> object:
    """YAML text to settings, anything else as it is. Raises ConfigError."""
    return settings_from_yaml(value) if isinstance(value, str) else value


SettingsParameter = Annotated[Settings, BeforeValidator(settings_of_text)]
