"""From the name of a model to its folder: packaged name, preset, local folder, in this order.

One decision: nothing is fetched unless `models.offline` is false. A preset is looked for in `models.folder`/NAME, then in the hub's cache
on this machine, and only then, if allowed, at the hub; only safetensors, json and tokenizer files are ever fetched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from medad_core.config import ModelSettings
from medad_core.errors import ConfigError, UsageError, WeightsError
from medad_core.models.cache import sha256_of
from medad_core.models.loading import VOCABULARIES
from medad_core.models.pack import PACK, Role, packaged
from medad_core.models.presets import Preset, preset_of, presets

log = logging.getLogger(__name__)
LOCAL = ModelSettings()  # presets are looked for in $MEDAD_MODELS and the hub's cache; nothing is fetched
KEYS: dict[Role, str] = {
    "image encoder": "models.encoder",
    "text encoder": "models.text_encoder",
    "language model": "llm.model",
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FETCHED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt"]
# Folders (Meta's own format), and the same weights once more for OpenCLIP's or Mistral's code.
NOT_SAID = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash"}
)  # settings decide the type
NOT_FETCHED = ["*/*", "open_clip*", "consolidated*"]


@dataclass(frozen=True)
class ModelFolder:
    """A `transformers` folder, and what to call it."""

    label: str
    folder: Path
    packaged: bool = False


def model_folder(name: str, role: Role, where: ModelSettings = LOCAL) -> ModelFolder:
    """The folder of a model that settings name. `where` gives `models.folder` and `models.offline`.

    Raises UsageError or WeightsError, one line with the way out, where there is none, or none with a config.json and safetensors.
    """
    preset = preset_of(name)
    roles = (PACK[name].role,) if name in PACK else preset.roles if preset else (role,)
    if role not in roles:
        raise ConfigError(f"{KEYS[role]}: {name} is no {role} but {' and '.join(roles)}; see `medad models`")
    if name in PACK:
        return ModelFolder(name, packaged(name).folder, packaged=True)
    if preset is not None:
        return _checked(ModelFolder(name, find_preset(preset, where) or _fetch(preset, where)), name, role)
    folder = Path(name).expanduser()
    return _checked(ModelFolder(folder.absolute().name, folder), name, role)


def models_root(where: ModelSettings) -> Path | None:
    """The folder of presets: `models.folder`, else `$MEDAD_MODELS`, else none."""
    root = where.folder or os.environ.get("MEDAD_MODELS")
    return Path(root).expanduser() if root else None


def find_preset(preset: Preset, where: ModelSettings) -> Path | None:
    """Where a preset lies on this machine, None where it does not; looks at no network."""
    root = models_root(where)
    if root is not None and (root / preset.name / "config.json").is_file():
        return root / preset.name
    return _snapshot(preset, local_files_only=True) if preset.hub else None


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the shards that its index names, in order. Raises WeightsError where one is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        kept = "; pickles are not read, save the model as safetensors" if any(folder.glob("*.bin")) else ""
        raise WeightsError(f"{folder}: no {WEIGHTS} here{kept}")
    try:
        shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        files = [folder / shard for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{folder / INDEX}: is damaged ({error}); get the model again") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise WeightsError(
            f"{folder}: {len(missing)} of {len(files)} weight files are missing ({', '.join(missing[:3])}); get the model again"
        )
    return files


def model_sha256(found: ModelFolder, *, tokenizer: bool = False) -> str:
    """Hash of all that a model computes by: its weights, shard for shard, and its configuration; where texts go into it, its tokenizer too.

    A packaged model is converted by us, so its weights say it all.
    """
    hashes = [sha256_of(file) for file in weight_files(found.folder)]
    if found.packaged:
        return " ".join(hashes)
    hashes.append("config " + _config_sha256(found.folder / "config.json"))
    if tokenizer:
        hashes += [
            f"{name} {sha256_of(found.folder / name)}" for name in VOCABULARIES if (found.folder / name).is_file()
        ]
    return " ".join(hashes)


def _config_sha256(path: Path) -> str:
    """Hash of what a config.json says, without who wrote it where."""
    try:
        facts = json.loads(path.read_text())
        said = {key: value for key, value in facts.items() if key not in NOT_SAID}
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: is damaged ({error}); get the model again") from error
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _checked(found: ModelFolder, name: str, role: Role) -> ModelFolder:
    if not (found.folder / "config.json").is_file():
        known = [each for each, model in PACK.items() if role == model.role] + [
            each for each, preset in presets().items() if role in preset.roles
        ]
        raise WeightsError(
            f"{KEYS[role]}: {name} is neither a known {role} ({', '.join(known)}) nor a transformers folder with a config.json"
        )
    weight_files(found.folder)
    return found


def _fetch(preset: Preset, where: ModelSettings) -> Path:
    """Download a preset into the hub's cache, where that is allowed and possible; otherwise the error that says what to do."""
    if where.offline or preset.hub is None:
        raise WeightsError(_absent(preset, where))
    log.info("downloading %s (%s)", preset.hub, preset.licence)
    folder = _snapshot(preset, local_files_only=False)
    if folder is None:
        raise WeightsError(
            f"{preset.name}: {preset.hub} has no safetensors weights at revision {preset.revision or 'main'}; {preset.note}"
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
    return (
        f"{preset.name} is not on this machine: {'; or '.join(ways)} (licence: {preset.licence}). {preset.note}".strip()
    )


def _snapshot(preset: Preset, local_files_only: bool) -> Path | None:
    """The preset in the hub's cache, fetched unless `local_files_only`; None where it is not there, or not with all weights."""
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
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{preset.name}: {preset.hub} could not be downloaded ({reason}); check the network, HF_HUB_OFFLINE and your access to it. {preset.note}".strip()
