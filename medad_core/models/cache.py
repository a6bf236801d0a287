"""A cache of converted models, each beside a record of the file it came from.

One decision: a converted folder appears by one rename, after everything in it is written, so a folder that exists is
whole. Its `source.json` holds the sha256 of the source and of every converted file.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from medad_core.errors import WeightsError
from medad_core.store.files import sha256_file

log = logging.getLogger(__name__)
RECORD = "source.json"


def cache_root() -> Path:
    """Folder of converted models: `$MEDAD_CACHE`, else `$XDG_CACHE_HOME/medad`, else `~/.cache/medad`."""
    if explicit := os.environ.get("MEDAD_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medad"


@lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _modified_ns: int) -> str:
    return sha256_file(path)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file; remembered within the process while size and modification time stay the same.

    Raises OSError where there is no such file, StoreError where it cannot be read.
    """
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class ConvertedModel:
    """A folder that `transformers` loads, and where it came from; `files` maps the name of a file to its sha256."""

    name: str
    folder: Path
    source: str
    source_sha256: str
    licence: str
    files: dict[str, str]


def converted(name: str, source: Path, licence: str, convert: Callable[[Path, Path], None]) -> ConvertedModel:
    """Return the converted folder of `source`, converting it on first use.

    `convert(source, folder)` writes `model.safetensors` and its configuration into an empty folder.
    Raises WeightsError when the source is absent or the cache cannot be written.
    """
    if not source.is_file():
        raise WeightsError(
            f"{name}: {source.name} is not installed; run `make setup`, or name a local model folder instead"
        )
    source_sha256 = sha256_of(source)
    folder = cache_root() / f"{name}-{source_sha256[:12]}"
    if not (folder / RECORD).is_file():
        _convert_once(name, source, source_sha256, licence, convert, folder)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return ConvertedModel(folder=folder, **record)


def _convert_once(name: str, source: Path, source_sha256: str, licence: str, convert: Callable, folder: Path) -> None:
    log.info("converting %s once into %s", name, folder)
    _check_writable(name, folder.parent)
    model = ConvertedModel(name, folder, source.name, source_sha256, licence, {})
    try:
        # A folder without a record is what a killed conversion of an older medad left.
        shutil.rmtree(folder, ignore_errors=True)
        write_converted(model, lambda scratch: convert(source, scratch))
    except OSError as error:
        if not (folder / RECORD).is_file():  # otherwise another process was faster
            raise WeightsError(f"{name}: converting {source.name} failed: {error}") from error


def _check_writable(name: str, root: Path) -> None:
    """Make the folder of converted models and try to write in it. Raises WeightsError with the way out."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot write the model cache {root} ({error.strerror}); set MEDAD_CACHE to a writable folder"
        ) from error


def write_converted(model: ConvertedModel, convert: Callable[[Path], None]) -> ConvertedModel:
    """Run `convert(scratch)`, add the record, and make `model.folder` of it by one rename: complete or not at all.

    Returns the model with the sha256 of every file. Raises OSError where the folder cannot be written, or exists and is
    not empty.
    """
    parent = Path(tempfile.mkdtemp(prefix=f".{model.folder.name}-", dir=model.folder.parent))
    scratch = parent / "model"  # a folder of its own, because mkdtemp's is closed to everyone else
    try:
        scratch.mkdir()
        convert(scratch)
        files = {path.name: sha256_of(path) for path in sorted(scratch.iterdir()) if path.is_file()}
        for name in files:  # safetensors writes files that nobody else may read
            (scratch / name).chmod(scratch.stat().st_mode & 0o666)
        model = replace(model, files=files)
        record = asdict(model)
        del record["folder"]
        (scratch / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
        os.replace(scratch, model.folder)
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    return model
