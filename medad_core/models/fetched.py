"""Folders of models and weights in a bucket, brought to this machine once.

One decision: a model library reads folders of a disk, so one in a bucket is copied into the cache of converted models,
under a name made of the tags of its objects. A model that is replaced in the bucket is another folder here. Only files
that hold no code are copied: no pickles.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from medad_core.errors import StoreError, WeightsError
from medad_core.models.cache import cache_root
from medad_core.store.files import explained, join, name_of
from medad_core.store.listing import AT_ONCE
from medad_core.store.objects import ObjectFile, hasty, is_object, list_folder

log = logging.getLogger(__name__)
WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt", "*.md")
_BLOCK = 1 << 24  # bytes


def local_folder(source: str, key: str) -> Path:
    """The folder that a setting names, on this machine: the path itself, or a copy of the place in a bucket.

    `key` names the setting in messages. Raises WeightsError where nothing lies in the bucket, or it cannot be copied.
    """
    return _copied(source.rstrip("/"), key) if is_object(source) else Path(source).expanduser()


@lru_cache(maxsize=16)
def _copied(uri: str, key: str) -> Path:
    """Looked at once a process: a model that is replaced while a command runs does not change in its middle."""
    try:
        with hasty(), explained("list", uri):
            found = list_folder(uri)[1]
        files = {name: facts for name, facts in found.items() if any(fnmatch(name, kind) for kind in WANTED)}
        if not files:
            raise WeightsError(f"{key}: {uri} holds no model; name the place that its config.json or card.json lies in")
        text = "\n".join(f"{name} {files[name].e_tag} {files[name].st_size}" for name in sorted(files))
        folder = cache_root() / f"{name_of(uri)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if not folder.is_dir():
            log.info("copying %s once into %s", uri, folder)
            with explained("copy", uri):
                _copy(uri, sorted(files), folder)
    except StoreError as error:
        raise WeightsError(f"{key}: {error}") from error
    return folder


def _copy(uri: str, names: list[str], folder: Path) -> None:
    """The folder appears by one rename, when all its files are whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda name: _copy_file(join(uri, name), scratch / name), names))
        if not folder.is_dir():  # another process may have been faster
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_file(uri: str, path: Path) -> None:
    with ObjectFile(uri) as source, path.open("wb") as target:
        while block := source.read(_BLOCK):
            target.write(block)
