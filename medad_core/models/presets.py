"""Presets: models that are named rather than shipped, as data in `configs/models/NAME.yaml`.

One decision: a preset says what a model is, where it is published and under which licence. It holds no path, so one
file serves every machine. `medad_core.models.resolve` finds its folder, `medad_core.llm.sizing` how its engine runs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import medad_core
from medad_core.config.yaml_reader import StrictLoader
from medad_core.errors import ConfigError
from medad_core.models.pack import Role

# Beside the package, in a checkout as in an installation: `configs` has no code that could be imported.
FOLDER = Path(medad_core.__file__).parent.parent / "configs" / "models"


class Preset(BaseModel):
    """One model that can be named."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    roles: list[Role] = Field(min_length=1)
    licence: str
    hub: str | None = Field(
        pattern=r"^[\w.-]+/[\w.-]+$", description="repository of the Hugging Face hub; null where there is none"
    )
    revision: str | None = Field(pattern=r"^[\w./-]+$", description="commit, tag or branch; null takes the newest")
    get: str | None = Field(None, description="command that makes the folder, where the hub alone does not")
    note: str = ""
    misnomers: list[str] = Field([], description="names people use for it although nothing of that name was released")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.hub is None and self.get is None:
            raise ValueError("get: needed where there is no hub")
        return self


@cache
def presets() -> dict[str, Preset]:
    """All presets by name. Raises ConfigError naming the file and key that is wrong."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.yaml"))}


def preset_of(name: str) -> Preset | None:
    """The preset of this name; None where there is none.

    Raises ConfigError for a name that nothing was released under.
    """
    for preset in presets().values():
        if name in preset.misnomers:
            raise ConfigError(
                f"{name}: no model of that name was released; "
                f"the one meant is probably {preset.name} ({preset.hub}), name that"
            )
    return presets().get(name)


def _read(path: Path) -> Preset:
    try:
        facts = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
        return Preset.model_validate({"name": path.stem, **facts})
    except (OSError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"preset {path}: cannot be read ({error})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "preset"
        raise ConfigError(f"preset {path}: {key}: {first['msg']}") from error
