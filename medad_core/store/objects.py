"""Objects of a bucket (s3://, gs://, az://) as if they were files: whole uploads, ranged reads, listings.

One decision: obstore reads and writes them, not the filesystems of fsspec. It is one wheel for all three clouds, tries
again after time-outs, errors of the server and cut connections (longer each time, with jitter), and can write "only if
nobody has written since", which locks and plans need. What fails is the OSError that a disk would give, so that callers
handle both alike. Credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …), never
from settings. `memory://` lasts as long as the process; it is for tests and notebooks.
"""

from __future__ import annotations

import errno
import io
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from stat import S_IFREG
from typing import TYPE_CHECKING, Any, NamedTuple

from medad_core.errors import UsageError, first_line

if TYPE_CHECKING:
    from obstore import GetOptions, UpdateVersion
    from obstore.store import ObjectStore

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
SCHEMES = ("s3", "gs", "az", "memory")
_PATIENT = {"max_retries": 10, "retry_timeout": timedelta(minutes=2)}
_HASTY = {"max_retries": 3, "retry_timeout": timedelta(seconds=12)}
_CLIENT = {"connect_timeout": "5s", "read_timeout": "20s", "timeout": "10m", "user_agent": "medad"}
_PREFIX = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}  # of the variables of the environment
_SECRETS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")  # the codes of the stores
_ROLES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")  # where a cloud's machine gets credentials
_WINDOW = (1 << 18, 1 << 24)  # bytes of a ranged read, least and most …
_WINDOW_S = 0.05  # … and how long one shall take: about as long as asking for it
_hasty: ContextVar[bool] = ContextVar("hasty", default=False)
_moved = 0  # bytes that this process has read from buckets
_requests: Counter[str] = Counter()  # that it has made


class ObjectFacts(NamedTuple):
    """What a store says of an object, under the names that `os.stat_result` has. The "inode" stands for its content."""

    st_size: int
    st_mtime_ns: int
    st_ino: int
    e_tag: str
    st_ctime_ns: int = 0
    st_dev: int = 0
    st_mode: int = S_IFREG


class ChangedError(OSError):
    """An object is not the one that was read or written before."""


def is_object(uri: str) -> bool:
    """Whether `uri` lies in a bucket. Raises UsageError for a scheme that nobody knows here."""
    scheme = scheme_of(uri)
    if scheme in ("", "file"):
        return False
    _require_known(uri, scheme)
    return True


def scheme_of(uri: str) -> str:
    """Such as "s3"; empty for a plain path, which may have `://` in its middle."""
    match = _SCHEME.match(uri) if "://" in uri else None
    return "" if match is None else match[1]


def _require_known(uri: str, scheme: str) -> None:
    if scheme not in SCHEMES:
        raise UsageError(f"{uri}: {scheme}:// is not known; give a plain path, file://, s3://, gs:// or az://")


@contextmanager
def hasty() -> Iterator[None]:
    """Inside the block a store that does not answer is given up after seconds: for checks before any work."""
    token = _hasty.set(True)
    try:
        yield
    finally:
        _hasty.reset(token)


def forget_stores() -> None:
    """Look at the environment again: for tests, and notebooks that set credentials late."""
    _store.cache_clear()


def bytes_read() -> int:
    """How many bytes this process has read from buckets."""
    return _moved


def requests_made() -> Counter[str]:
    """How many requests of each kind this process has made: get, head, put, list, delete. Retries do not count."""
    return _requests.copy()


def get(uri: str, start: int = 0, end: int | None = None, e_tag: str | None = None) -> bytes:
    """The bytes start..end (exclusive) of an object, or all.

    Raises FileNotFoundError, ChangedError where its tag is not `e_tag`, and OSError.
    """
    import obstore

    options: GetOptions = {}
    if start or end is not None:
        options["range"] = {"offset": start} if end is None else (start, end)
    if e_tag:
        options["if_match"] = e_tag
    with _as_of_a_disk(uri, "get"):
        store, path = _place(uri)
        data = bytes(obstore.get(store, path, options=options).bytes())
    global _moved  # noqa: PLW0603 - one sum of the process
    _moved += len(data)
    return data


def put(uri: str, data: bytes | Path) -> None:
    """Replace an object by bytes or a local file; it appears when it is complete. Raises OSError."""
    import obstore

    with _as_of_a_disk(uri, "put"):
        store, path = _place(uri)
        obstore.put(store, path, data)


def put_new(uri: str, data: bytes) -> str:
    """Make an object that must not exist; returns its tag. Raises FileExistsError and OSError."""
    import obstore

    with _as_of_a_disk(uri, "put"):
        store, path = _place(uri)
        return _tag(obstore.put(store, path, data, mode="create", use_multipart=False))


def put_over(uri: str, data: bytes, e_tag: str) -> str:
    """Replace an object that still has the tag `e_tag`; returns its new one. Raises ChangedError and OSError."""
    import obstore

    with _as_of_a_disk(uri, "put"):
        store, path = _place(uri)
        seen: UpdateVersion = {"e_tag": e_tag}
        if scheme_of(uri) == "gs":  # Google's store has conditions on generations only
            meta = obstore.head(store, path)
            if _tag(meta) != e_tag:
                raise ChangedError(errno.ESTALE, "it was replaced meanwhile", uri)
            seen = {"e_tag": e_tag, "version": meta["version"]}
        return _tag(obstore.put(store, path, data, mode=seen, use_multipart=False))


def delete(uri: str) -> None:
    """Remove an object; some stores raise FileNotFoundError where there is none. Raises OSError."""
    import obstore

    with _as_of_a_disk(uri, "delete"):
        store, path = _place(uri)
        obstore.delete(store, path)


def delete_tree(uri: str) -> None:
    """Remove every object below `uri`. Raises OSError."""
    import obstore

    with _as_of_a_disk(uri, "list"):
        store, path = _place(uri)
        for chunk in obstore.list(store, f"{path}/"):
            obstore.delete(store, [meta["path"] for meta in chunk])


def facts_of(uri: str) -> ObjectFacts:
    """What the store says of an object. Raises FileNotFoundError and OSError."""
    import obstore

    with _as_of_a_disk(uri, "head"):
        store, path = _place(uri)
        return _facts(obstore.head(store, path))


def list_folder(uri: str) -> tuple[set[str], dict[str, ObjectFacts]]:
    """Names of the folders, and names and facts of the objects, directly below `uri`. Raises OSError."""
    import obstore

    with _as_of_a_disk(uri, "list"):
        store, path = _place(uri)
        listed = obstore.list_with_delimiter(store, path or None)
    folders = {prefix.rstrip("/").rsplit("/", 1)[-1] for prefix in listed["common_prefixes"]}
    return folders, {meta["path"].rsplit("/", 1)[-1]: _facts(meta) for meta in listed["objects"]}


def list_tree(uri: str) -> Iterator[tuple[str, ObjectFacts]]:
    """Every object below `uri`: its path below it, and its facts. One request a thousand objects. Raises OSError."""
    import obstore

    with _as_of_a_disk(uri, "list"):
        store, path = _place(uri)
        above = f"{path}/" if path else ""
        for chunk in obstore.list(store, above or None):
            for meta in chunk:
                yield meta["path"].removeprefix(above), _facts(meta)


class ObjectFile(io.RawIOBase):
    """An object that is read front to back, in windows whose length follows the throughput.

    All its bytes are of one version: where it is replaced meanwhile, reading raises ChangedError. `facts` are its
    length and tag when it was opened.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.facts = facts_of(uri)
        self._at = 0
        self._window = _WINDOW[0]
        self._start = 0  # of the bytes at hand
        self._held = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position. Nothing is read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.facts.st_size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, fewer at the end of the object; all that are left where `size` is negative."""
        stop = self.facts.st_size if size < 0 else min(self._at + size, self.facts.st_size)
        if stop <= self._at:
            return b""
        if self._at < self._start or self._at > self._start + len(self._held):
            self._start = self._at
            self._held = b""
        missing = stop - self._start - len(self._held)
        if missing > 0:
            fetched = self._fetched(self._start + len(self._held), missing)
            self._held = self._held[self._at - self._start :] + fetched  # what was read before is forgotten
            self._start = self._at
        data = self._held[self._at - self._start : stop - self._start]
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """All bytes from here on."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; returns the number of bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fetched(self, start: int, least: int) -> bytes:
        stop = min(start + max(least, self._window), self.facts.st_size)
        began = time.perf_counter()
        data = get(self.uri, start, stop, self.facts.e_tag)
        rate = len(data) / max(time.perf_counter() - began, 1e-6)
        self._window = int(min(max(rate * _WINDOW_S, _WINDOW[0]), _WINDOW[1]))
        return data


def open_for_tables(uri: str) -> Any:
    """A buffered reader of an object for pyarrow, which reads what it wants of it. Raises OSError."""
    return io.BufferedReader(ObjectFile(uri), _WINDOW[0])


def _place(uri: str) -> tuple[ObjectStore, str]:
    scheme, _, rest = uri.partition("://")
    _require_known(uri, scheme)
    bucket, _, path = rest.partition("/")
    return _store(scheme, bucket, _hasty.get() and scheme != "memory"), path.strip("/")


@lru_cache(maxsize=32)
def _store(scheme: str, bucket: str, is_hasty: bool) -> ObjectStore:
    from obstore.store import MemoryStore, from_url

    if scheme == "memory":
        return MemoryStore()
    # An option that is given here is not looked up in the environment any more.
    retries = _HASTY if is_hasty else _PATIENT
    allow_http = os.environ.get(f"{_PREFIX[scheme]}_ALLOW_HTTP", "").lower() in ("1", "true")
    options: Any = {"client_options": {**_CLIENT, "allow_http": allow_http}, "retry_config": retries}
    store: ObjectStore = from_url(f"{scheme}://{bucket}", **options)
    return store


def _facts(meta: Mapping[str, Any]) -> ObjectFacts:
    moment_ns = (
        int(meta["last_modified"].timestamp()) * 10**9
    )  # a listing may be finer than what is asked of one object
    tag = _tag(meta)
    known = tag or f"{moment_ns}-{meta['size']}"
    content = int.from_bytes(sha256(known.encode()).digest()[:7])  # fits where an inode does
    return ObjectFacts(int(meta["size"]), moment_ns, content, tag)


def _tag(meta: Mapping[str, Any]) -> str:
    """The tag of an object as HTTP has it: in quotes, which listings of Azure leave out. Empty where there is none."""
    tag = meta["e_tag"] or ""
    return f'"{tag}"' if tag and not tag.endswith('"') else tag


@contextmanager
def _as_of_a_disk(uri: str, kind: str) -> Iterator[None]:
    """Count a request of this kind, and turn errors of obstore into those that a disk gives."""
    from obstore import exceptions

    _requests[kind] += 1
    try:
        yield
    except FileNotFoundError as error:
        missing = "no such bucket" if any(code in str(error) for code in _NO_BUCKET) else os.strerror(errno.ENOENT)
        raise FileNotFoundError(errno.ENOENT, missing, uri) from error
    except exceptions.AlreadyExistsError as error:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), uri) from error
    except exceptions.PreconditionError as error:
        raise ChangedError(errno.ESTALE, "it was replaced meanwhile", uri) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, "the store refuses the credentials of the environment", uri) from error
    except (exceptions.InvalidPathError, ValueError) as error:
        raise OSError(errno.EINVAL, f"no name for an object ({first_line(error)})", uri) from error
    except exceptions.BaseError as error:
        raise OSError(errno.EIO, _reason(str(error), scheme_of(uri)), uri) from error


def _reason(text: str, scheme: str = "s3") -> str:
    """What a store, or the way to it, said; without queries, which may hold a token."""
    if any(code in text for code in _NO_BUCKET):
        return "no such bucket"
    if any(f"//{host}/" in text for host in _ROLES) or "Account must be specified" in text:
        return f"there are no credentials in the environment (such as {_SECRETS[scheme]})"
    if "builder error" in text and " http://" in text:
        return (
            f"the endpoint is http://, which is not encrypted; set {_PREFIX[scheme]}_ALLOW_HTTP=true if that is meant"
        )
    line = re.sub(r"\?\S*", "", text.strip().partition("\n")[0])
    refused = " (nothing listens there)" if "connection refused" in text.lower() else ""
    return line.removeprefix("Generic ") + refused
