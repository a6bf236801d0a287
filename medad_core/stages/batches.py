"""Puts slices of many cases into full batches for a device, and returns the results case by case.

One decision: a thread reads ahead and fills (pinned) batches with slices of several cases, and while the results of one
batch are split into cases, a GPU has the next one queued and a CPU computes others (`medad_core.models.lanes`). So no
device waits, and a case that cannot be used does not affect the others.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from medad_core import stopping
from medad_core.data.window import brain_windows, cut_windows
from medad_core.errors import CaseError, MedadError
from medad_core.models.lanes import in_lanes
from medad_core.models.view import ALONE, View
from medad_core.stages.rows import brains_of, images_of, pictures_of
from medad_core.store import Stage
from medad_core.store.schemas import CONTEXT

log = logging.getLogger(__name__)
T = TypeVar("T")
Compute = Callable[[Tensor], tuple[Tensor, ...]]  # uint8 (B, H, W) or (B, 3, H, W) to results (B, …), all on one device
COLUMNS = ("case_id", "slice_index", "height", "width", "image")
AHEAD = 2  # batches that are read ahead while others are computed
_END = object()


@dataclass(frozen=True)
class CaseImages:
    """Rows of one case and their pictures, uint8 (N, H, W), or (N, 3, H, W) where the encoder sees neighbours.

    Where it sees windows (N, 3) of the slices, these are the pictures; height and width in `keys` are the slices'. A
    case that cannot be used has an error and no pictures.
    """

    case_id: str
    keys: pa.Table | None
    images: np.ndarray
    windows: np.ndarray | None = None
    error: MedadError | None = None


@dataclass
class ImageBatch:
    """Pictures of one size, uint8 (B, H, W) or (B, 3, H, W), of which the first `filled` are set.

    `owners` has their cases and counts, in order.
    """

    images: Tensor
    owners: list[tuple[CaseImages, int]] = field(default_factory=list)
    filled: int = 0

    def fits(self, case: CaseImages) -> bool:
        """Whether the pictures of `case` have the size of those here."""
        return len(case.images) == 0 or self.images.shape[1:] == case.images.shape[1:]

    def take(self, case: CaseImages, start: int) -> int:
        """Copy as many slices of `case` as fit into the batch, from `start` on; returns their number."""
        count = min(len(case.images) - start, len(self.images) - self.filled)
        if count:
            np.copyto(self.images[self.filled : self.filled + count].numpy(), case.images[start : start + count])
        self.owners.append((case, count))
        self.filled += count
        return count


def columns_of(view: View) -> list[str]:
    """The columns of slices that the encoder's view of them needs."""
    columns = [*COLUMNS]
    columns += [field.name for field in CONTEXT] if view.context_mm else []
    return columns + (["brain"] if view.window_mm else [])


def read_cases(slices: Stage, case_ids: Iterable[str], view: View = ALONE) -> Iterator[CaseImages]:
    """What the encoder sees of the given cases, in order.

    The error of a case is returned in its `error`, not raised.
    """
    columns = columns_of(view)
    for case_id in case_ids:
        try:
            table = slices.read_case(case_id, columns)
            pictures = pictures_of(table) if view.context_mm else images_of(table)
            windows = None
            if view.window_mm:
                windows = brain_windows(brains_of(table), view.window_pixels)
                pictures = cut_windows(pictures, windows, view.window_pixels)
            yield CaseImages(case_id, table.select(COLUMNS[:4]), pictures, windows)
        except MedadError as error:
            yield CaseImages(case_id, None, np.zeros((0, 0, 0), np.uint8), error=error)


def batches_of(cases: Iterable[CaseImages], size: int, pinned: bool = False) -> Iterator[ImageBatch]:
    """Cut cases into batches of `size` slices.

    A batch has fewer slices only at the end, and before the size of the pictures changes.
    """
    batch = None
    for case in cases:
        if batch is not None and not batch.fits(case):
            yield batch
            batch = None
        start, whole = 0, False
        while not whole:
            # torch caches pinned memory, and reuses it only when no copy reads from it any more.
            batch = batch or ImageBatch(
                torch.empty((size, *case.images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
            )
            start += batch.take(case, start)
            whole = start == len(case.images)
            if batch.filled == size:
                yield batch
                batch = None
    if batch is not None:
        yield batch


def made_ahead(items: Iterator[T], count: int = AHEAD) -> Iterator[T]:
    """The same items, made by a separate thread, at most `count` ahead of the consumer.

    An error is raised at the position of its item.
    """
    with ThreadPoolExecutor(1, "reader") as reader:
        made = deque(reader.submit(next, items, _END) for _ in range(count))
        try:
            while (item := made.popleft().result()) is not _END:
                made.append(reader.submit(next, items, _END))
                yield item
        finally:
            reader.shutdown(wait=True, cancel_futures=True)


def compute_batches(
    batches: Iterable[ImageBatch], compute: Compute, device: torch.device, lanes: int = 0
) -> Iterator[tuple[ImageBatch, list[np.ndarray]]]:
    """Every batch with its results, as many computed at once as there are `lanes`.

    Without lanes, the device gets the next batch before this function waits for the results of one.
    """
    if lanes:
        yield from in_lanes(_until_stopped(batches), lambda batch: _launch(batch, compute, device)(), lanes)
        return
    waiting = None
    for batch in _until_stopped(batches):
        launched = _launch(batch, compute, device)
        if waiting is not None:
            yield waiting()
        waiting = launched
    if waiting is not None:
        yield waiting()


def _until_stopped(batches: Iterable[ImageBatch]) -> Iterator[ImageBatch]:
    for batch in batches:
        stopping.check()
        yield batch


def _launch(
    batch: ImageBatch, compute: Compute, device: torch.device
) -> Callable[[], tuple[ImageBatch, list[np.ndarray]]]:
    """Queue a batch on the device; the returned function waits for it."""
    on_gpu = device.type == "cuda"
    results = compute(batch.images[: batch.filled].to(device, non_blocking=on_gpu)) if batch.filled else ()
    here = [
        torch.empty_like(result, device="cpu", pin_memory=on_gpu).copy_(result, non_blocking=on_gpu)
        for result in results
    ]
    done = torch.cuda.current_stream(device).record_event() if on_gpu else None

    def wait() -> tuple[ImageBatch, list[np.ndarray]]:
        if done is not None:
            done.synchronize()
        return batch, [result.numpy() for result in here]

    return wait


def case_results(
    computed: Iterable[tuple[ImageBatch, list[np.ndarray]]],
) -> Iterator[tuple[CaseImages, list[np.ndarray]]]:
    """Every case with its results, joined from all batches that contain its slices."""
    pieces: list[list[np.ndarray]] = []
    for batch, results in computed:
        start = 0
        for case, count in batch.owners:
            pieces.append([result[start : start + count] for result in results])
            start += count
            if sum(len(piece[0]) for piece in pieces if piece) == len(case.images):
                yield case, [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
                pieces = []


class InPieces:
    """`compute` in pieces of at most `size` slices.

    If memory runs out, the size is halved, for all later calls in this process with the same `key`.
    """

    _learnt: ClassVar[dict[str, int]] = {}

    def __init__(self, compute: Compute, size: int, key: str) -> None:
        self.compute = compute
        self.key = key
        self.size = min(size, self._learnt.get(key, size))

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Results of all images, uint8 (B, H, W). Raises OutOfMemoryError if not even one slice fits."""
        pieces = []
        start = 0
        while start < len(images):
            size = self.size
            try:
                pieces.append(self.compute(images[start : start + size]))
                start += size
                continue
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Only after the except block is the memory of the failed attempt released.
            self._halve(size)
        return pieces[0] if len(pieces) == 1 else tuple(map(torch.cat, zip(*pieces, strict=True)))

    def _halve(self, size: int) -> None:
        self.size = min(self.size, size // 2)  # another lane may have halved it
        self._learnt[self.key] = self.size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        log.warning("out of memory on %s: going on with %d slices at once", self.key, self.size)


def refuse_not_finite(case: CaseImages, grids: np.ndarray) -> None:
    """Raise CaseError if half precision cannot represent the map."""
    if not np.isfinite(grids).all():
        raise CaseError(
            case.case_id, "its map is not finite; set models.precision=float32 and choose another output folder"
        )
