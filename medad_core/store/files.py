"""Reads and writes files at a URI; a file is written completely or not at all.

One decision: a reader sees either the old file, or no file, or the complete new one, even after a power cut. Locally
this needs a temporary name in the target folder, fsync of the file, rename, and fsync of the folder. In a bucket
(s3://, gs://, az://) an upload appears when it is complete (`medad_core.store.objects`).

Every failure of the disk raises StoreError with the path and the system's message.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medad_core.errors import StoreError, UsageError, first_line
from medad_core.permissions import file_mode
from medad_core.store import objects
from medad_core.store.regular import open_regular

_TEMPORARY = ".tmp"
_BLOCK = 1 << 20  # bytes hashed at a time
_own: set[Path] = set()  # temporary files that this process is writing


def join(uri: str, *names: str) -> str:
    """`uri` followed by `names`, separated by slashes."""
    return "/".join([uri.rstrip("/"), *names])


def resolved(uri: str | Path) -> str:
    """`absolute`, without links; a bucket has none."""
    text = str(uri)
    name = local_name(text)
    return absolute(text) if name is None else os.path.realpath(name)


def name_of(uri: str) -> str:
    """What stands after the last slash."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def name_parts(run: str) -> tuple[str, ...]:
    """The name of a run's folder; for a batch of a cohort, the cohort's name and the batch number."""
    words = run.rstrip("/").split("/")
    return (words[-3], words[-1]) if words[-2:-1] == ["batches"] and len(words) > 2 else (words[-1],)


def parent_of(uri: str) -> str:
    """What stands before the last slash."""
    return uri.rstrip("/").rsplit("/", 1)[0]


def local_path(uri: str) -> Path | None:
    """The path behind a plain path or file:// URI, None for any other filesystem."""
    name = local_name(uri)
    return None if name is None else Path(name)


def local_name(uri: str) -> str | None:
    """`local_path` as text. Where 100,000 files are opened, making a Path of each takes longer than opening it."""
    scheme = objects.scheme_of(uri)
    if not scheme:
        return uri
    return uri.removeprefix("file://") if scheme == "file" else None


def absolute(uri: str | Path) -> str:
    """The same place by a name that holds in every folder and process: an absolute path, or the URI of an object."""
    text = str(uri)
    name = local_name(text)
    return text.rstrip("/") if name is None else os.path.abspath(name)


@contextmanager
def explained(action: str, uri: str) -> Iterator[None]:
    """Turn an OSError inside into a StoreError: "cannot <action> <uri>: <the system's message>"."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {action} {uri}: {_words(error)}") from error


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or first_line(error)


@contextmanager
def new_file(uri: str) -> Iterator[Path]:
    """A temporary local path to write to. When the block ends without an error, the file becomes `uri`, durably.

    If the block raises, nothing is left. The folder of `uri` must exist. `medad_core.permissions` says who may read the
    file. Raises StoreError.
    """
    target = local_path(uri)
    folder = target.parent if target is not None else Path(tempfile.gettempdir())
    temporary = folder / f".{uri.rsplit('/', 1)[-1]}.{uuid.uuid4().hex}{_TEMPORARY}"
    _own.add(temporary)
    try:
        yield temporary
        with explained("write", uri):
            if target is None:
                objects.put(uri, temporary)
            else:
                mode = file_mode()
                if mode is not None:
                    temporary.chmod(mode)
                _sync(temporary)
                os.replace(temporary, target)
                _sync(folder)
    finally:
        with suppress(OSError):  # on a disk that became read-only: the first error is the one to report
            temporary.unlink(missing_ok=True)
        _own.discard(temporary)


def write_bytes(uri: str, data: bytes) -> None:
    """Replace `uri` by `data`, durably. Raises StoreError."""
    if local_name(uri) is None:
        with explained("write", uri):
            objects.put(uri, data)
        return
    with new_file(uri) as temporary, explained("write", uri):
        temporary.write_bytes(data)


def write_new(uri: str, data: bytes) -> bool:
    """Write a file that must not exist, durably; returns False where there is one. Raises StoreError.

    In a bucket the store decides, whoever else writes; a local folder must be held (`medad_core.store.lock`).
    """
    name = local_name(uri)
    if name is not None:
        if os.path.lexists(name):
            return False
        write_bytes(uri, data)
        return True
    with explained("write", uri):
        try:
            objects.put_new(uri, data)
        except FileExistsError:
            return False
    return True


def write_text(uri: str, text: str) -> None:
    """Replace `uri` by `text` in UTF-8, durably. Raises StoreError."""
    write_bytes(uri, text.encode())


def read_bytes(uri: str) -> bytes | None:
    """All bytes of `uri`, None if there is no such file. Raises StoreError."""
    name = local_name(uri)
    with explained("read", uri):
        try:
            if name is not None:
                with open(name, "rb", buffering=0) as stream:
                    return stream.read()
            return objects.get(uri)
        except (FileNotFoundError, NotADirectoryError):
            return None


def sha256_file(uri: str) -> str:
    """SHA-256 of the file at `uri` as hex, read in blocks. Raises StoreError."""
    with explained("read", uri), open_regular(local_name(uri) or uri) as stream:
        digest = hashlib.sha256()
        while block := stream.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()


def remove(uri: str) -> None:
    """Remove the file at `uri`, durably; nothing happens if there is none. Raises StoreError."""
    path = local_path(uri)
    with explained("remove", uri):
        try:
            if path is not None:
                os.unlink(path)
                _sync(path.parent)
            else:
                objects.delete(uri)
        except (FileNotFoundError, NotADirectoryError):
            pass


def make_folder(uri: str) -> None:
    """Make the folder and its parents, durably; a bucket has none. Raises StoreError."""
    path = local_path(uri)
    if path is None:
        return
    with explained("make", uri):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            _sync(folder.parent)


def remove_tree(uri: str) -> None:
    """Remove a folder and all below it; nothing happens if there is none. Raises StoreError."""
    path = local_path(uri)
    with explained("remove", uri):
        if path is None:
            objects.delete_tree(uri)
        elif path.exists():
            shutil.rmtree(path)


def sweep(uri: str) -> None:
    """Remove the temporary files of killed writers directly in the folder `uri`."""
    path = local_path(uri)
    if path is not None and path.is_dir():
        with explained("clean", uri):
            for leftover in path.glob(f".*{_TEMPORARY}"):
                leftover.unlink(missing_ok=True)


def sweep_own() -> None:
    """Remove the temporary files that this process is writing.

    For a process that is about to end and cannot wait for its threads.
    """
    for temporary in list(_own):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    """Make the folder `uri` and try to write in it, before any work is done. Raises UsageError that says what to do."""
    try:
        with objects.hasty():
            make_folder(uri)
            write_bytes(join(uri, ".writable"), b"medad")
            remove(join(uri, ".writable"))
    except StoreError as error:
        raise UsageError(
            f"cannot write results to {uri}: {_words(error.__cause__ or error)}; choose another output folder"
        ) from error


def _sync(path: Path) -> None:
    """fsync a file or a folder; a rename is durable only after the folder's own fsync."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
