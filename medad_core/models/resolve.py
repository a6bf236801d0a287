"""From the name of a model to its folder: packaged name, preset, local folder, in this order.

One decision: nothing is fetched unless `models.offline` is false. A preset is looked for in `models.folder`/NAME, then
in the hub's cache on this machine, and only then, if allowed, at the hub. Only safetensors, json and tokenizer files
are ever fetched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medad_core.config import ModelSettings
from medad_core.errors import ConfigError, UsageError, WeightsError, first_line
from medad_core.models.cache import sha256_of
from medad_core.models.fetched import local_folder
from medad_core.models.loading import VOCABULARIES
from medad_core.models.pack import PACK, Role, packaged
from medad_core.models.presets import Preset, preset_of, presets
from medad_core.store.files import explained, join, name_of
from medad_core.store.listing import list_names
from medad_core.store.objects import is_object

log = logging.getLogger(__name__)
LOCAL = ModelSettings()  # presets are looked for in $MEDAD_MODELS and the hub's cache; nothing is fetched
KEYS: dict[Role, str] = {
    "image encoder": "models.encoder",
    "text encoder": "models.text_encoder",
    "language model": "llm.model",
}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FETCHED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt"]
# Folders (Meta's own format), and the same weights once more for OpenCLIP's or Mistral's code.
NOT_FETCHED = ["*/*", "open_clip*", "consolidated*"]
# Keys of a config.json that change nothing in what the model computes; the type follows from the settings.
NOT_HASHED = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash"})


@dataclass(frozen=True)
class ModelFolder:
    """A `transformers` folder, and what to call it."""

    label: str
    folder: Path
    packaged: bool = False


def model_folder(name: str, role: Role, where: ModelSettings = LOCAL) -> ModelFolder:
    """The folder of a model that settings name. `where` gives `models.folder` and `models.offline`.

    Raises UsageError or WeightsError, one line with the way out, where there is no such model, or its folder lacks a
    config.json or safetensors.
    """
    preset = preset_of(name)
    if name in PACK:
        _check_role(name, role, [PACK[name].role])
        return ModelFolder(name, packaged(name).folder, packaged=True)
    if preset is not None:
        _check_role(name, role, preset.roles)
        model = ModelFolder(name, find_preset(preset, where) or _fetch(preset, where))
    else:
        folder = local_folder(name, KEYS[role])
        model = ModelFolder(name_of(name) if is_object(name) else folder.absolute().name, folder)
    _check_folder(model.folder, name, role)
    return model


def models_root(where: ModelSettings) -> str | None:
    """The folder of presets, or their place in a bucket: `models.folder`, else `$MEDAD_MODELS`, else none."""
    root = where.folder or os.environ.get("MEDAD_MODELS")
    return (root if is_object(root) else os.path.expanduser(root)) if root else None


def find_preset(preset: Preset, where: ModelSettings) -> Path | None:
    """Where a preset lies on this machine, None where it does not; looks at no network but that of `models.folder`.

    Raises WeightsError where that is in a bucket that does not answer.
    """
    root = models_root(where)
    if root is not None and is_object(root):
        with explained("look for models in", root):
            has_it = "config.json" in list_names(join(root, preset.name))
        return local_folder(join(root, preset.name), "models.folder") if has_it else None
    if root is not None and Path(root, preset.name, "config.json").is_file():
        return Path(root, preset.name)
    return _snapshot(preset, local_files_only=True) if preset.hub else None


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the shards that its index names, in order. Raises WeightsError where one is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        kept = "; pickles are not read, save the model as safetensors" if any(folder.glob("*.bin")) else ""
        raise WeightsError(f"{folder}: no {WEIGHTS} here{kept}")
    try:
        shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / shard for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder / INDEX}: is damaged ({error}); get the model again") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise WeightsError(
            f"{folder}: {len(missing)} of {len(files)} weight files are missing ({', '.join(missing[:3])}); "
            "get the model again"
        )
    return files


def model_sha256(model: ModelFolder, *, tokenizer: bool = False) -> str:
    """Hashes of all that determines what a model computes: its weights, shard for shard, and its configuration.

    `tokenizer` adds its tokenizer, for a model that takes texts. A packaged model is converted by us, so its weights
    suffice.
    """
    folder = model.folder
    hashes = [sha256_of(file) for file in weight_files(folder)]
    if model.packaged:
        return " ".join(hashes)
    hashes.append("config " + _config_sha256(folder / "config.json"))
    if tokenizer:
        hashes += [f"{name} {sha256_of(folder / name)}" for name in VOCABULARIES if (folder / name).is_file()]
    return " ".join(hashes)


def _config_sha256(path: Path) -> str:
    """Hash of a config.json, without the keys of `NOT_HASHED`."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        facts = {key: value for key, value in config.items() if key not in NOT_HASHED}
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: is damaged ({error}); get the model again") from error
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_role(name: str, role: Role, roles: Sequence[Role]) -> None:
    if role not in roles:
        raise ConfigError(f"{KEYS[role]}: {name} is no {role} but {' and '.join(roles)}; see `medad models`")


def _check_folder(folder: Path, name: str, role: Role) -> None:
    """Raise WeightsError where a folder holds no model of `transformers`."""
    if not (folder / "config.json").is_file():
        known = [packaged for packaged, model in PACK.items() if role == model.role]
        known += [preset for preset, facts in presets().items() if role in facts.roles]
        raise WeightsError(
            f"{KEYS[role]}: {name} is neither a known {role} ({', '.join(known)}) "
            "nor a transformers folder with a config.json"
        )
    weight_files(folder)


def _fetch(preset: Preset, where: ModelSettings) -> Path:
    """Download a preset into the hub's cache.

    Raises WeightsError or UsageError where that is not allowed or possible.
    """
    if where.offline or preset.hub is None:
        raise WeightsError(_absent(preset, where))
    log.info("downloading %s (%s)", preset.hub, preset.licence)
    folder = _snapshot(preset, local_files_only=False)
    if folder is None:
        revision = preset.revision or "main"
        raise WeightsError(
            f"{preset.name}: {preset.hub} has no safetensors weights at revision {revision}; {preset.note}"
        )
    return folder


def _absent(preset: Preset, where: ModelSettings) -> str:
    root = models_root(where)
    folder = f"{root or 'FOLDER'}/{preset.name}"
    ways = [f"put it into {folder}" + ("" if root else " and set models.folder=FOLDER (or $MEDAD_MODELS)")]
    if preset.get:
        ways.append(f"make that folder with `{preset.get.format(folder=folder)}`")
    elif where.offline:
        ways.append(f"set models.offline=false to download {preset.hub}")
    message = f"{preset.name} is not on this machine: {'; or '.join(ways)} (licence: {preset.licence}). {preset.note}"
    return message.strip()


def _snapshot(preset: Preset, local_files_only: bool) -> Path | None:
    """The preset in the hub's cache, fetched unless `local_files_only`; None where it or one of its files is absent."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    files = {"allow_patterns": FETCHED, "ignore_patterns": NOT_FETCHED}
    try:
        folder = Path(
            snapshot_download(preset.hub, revision=preset.revision, local_files_only=local_files_only, **files)
        )
        return folder if weight_files(folder) else None
    except (WeightsError, LocalEntryNotFoundError) as error:
        if local_files_only or isinstance(error, WeightsError):
            return None
        raise UsageError(_refused(preset, error)) from error
    except Exception as error:  # of the hub, of its network library, of the disk: each has its own hierarchy
        raise UsageError(_refused(preset, error)) from error


def _refused(preset: Preset, error: Exception) -> str:
    message = (
        f"{preset.name}: {preset.hub} could not be downloaded ({first_line(error)}); "
        f"check the network, HF_HUB_OFFLINE and your access to it. {preset.note}"
    )
    return message.strip()
