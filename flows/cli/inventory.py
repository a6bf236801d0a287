"""What models are on this machine: the packaged ones, the presets, the project's own weights, the cache.

One decision: looking never loads, converts or imports a model library, so it takes a second on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

from medad_core.models.cache import RECORD, cache_root
from medad_core.models.pack import PACK
from medad_core.models.presets import Preset, presets
from medad_core.models.resolve import LOCAL, find_preset
from medad_core.store import sha256_file

WEIGHTS = ("decoder.safetensors", "converter.safetensors")


@dataclass(frozen=True)
class Packaged:
    """A model of the offline pack.

    `source` is None where its package is not installed, `converted` where it was not used yet.
    """

    name: str
    role: str
    distribution: str
    licence: str
    source: Path | None
    converted: Path | None


@dataclass(frozen=True)
class Known:
    """A preset, and its folder where it is on this machine ($MEDAD_MODELS, or the hub's cache)."""

    preset: Preset
    folder: Path | None


def known_presets() -> list[Known]:
    """Every preset, by name."""
    return [Known(preset, find_preset(preset, LOCAL)) for preset in presets().values()]


def packaged_models() -> list[Packaged]:
    """Every packaged model, in the order it is used."""
    return [_packaged(name) for name in PACK]


def _packaged(name: str) -> Packaged:
    model = PACK[name]
    try:
        source = Path(str(distribution(model.distribution).locate_file(model.file)))
    except PackageNotFoundError:
        source = None
    if source is not None and not source.is_file():
        source = None
    converted = cache_root() / f"{name}-{sha256_file(str(source))[:12]}" if source else None
    if converted is not None and not (converted / RECORD).is_file():
        converted = None
    return Packaged(name, model.role, model.distribution, model.licence, source, converted)


def embedded_weights() -> Path | None:
    """Folder of the project's own decoder and converter, None where they are not there."""
    folder = Path(str(files("medad_core.models") / "embedded"))
    return folder if all((folder / name).is_file() for name in WEIGHTS) else None
