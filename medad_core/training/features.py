"""Training slices: read once, encoded once, kept as arrays in the folder of the training.

One decision: two files a case (features, pictures), memory-mapped, so a cohort larger than memory trains, and a killed
run encodes nothing twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medad_core.config import DataSettings, Settings
from medad_core.config.train import TrainSettings
from medad_core.data.cases import Case, Rejection
from medad_core.data.read import CaseSlices, read_slices
from medad_core.data.window import brain_windows, cut_windows, frames_of, whole_square
from medad_core.errors import CaseError
from medad_core.models.decoder import render_maps
from medad_core.models.device import batch_size_of
from medad_core.models.encoder import Encoder
from medad_core.models.lanes import in_lanes, lane_count
from medad_core.models.view import View
from medad_core.models.weights import AnyConverter
from medad_core.run.cohort import Cohort, Member
from medad_core.store.files import new_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingCase:
    """One labelled case.

    slice_index (N,); features (N, taps, gh, gw, width) float16; images (N, H, W) uint8; brain and masks (N, H, W) bool.
    All but slice_index are memory maps. `pixel_mm2` is the area of a pixel. Visits of one `patient` share it.
    `window_pixels` is the side of the windows that the features are of, 0 for whole pictures. `mirrored` are the same
    slices' features with left and right exchanged, None where nobody learns from them.
    """

    case_id: str
    slice_index: np.ndarray
    features: np.ndarray
    images: np.ndarray
    brain: np.ndarray
    masks: np.ndarray
    pixel_mm2: float
    patient: str
    window_pixels: int = 0
    mirrored: np.ndarray | None = None

    @cached_property
    def twin(self) -> TrainingCase | None:
        """The case with left and right exchanged, where its features are there."""
        if self.mirrored is None:
            return None
        images, brain, masks = (mirror(own) for own in (self.images, self.brain, self.masks))  # views, no copies
        return replace(self, features=self.mirrored, images=images, brain=brain, masks=masks, mirrored=None)

    @cached_property
    def windows(self) -> np.ndarray:
        """The squares that the features are of, (N, 3) int32: top, left and side in pixels of the picture."""
        if self.window_pixels:
            return brain_windows(self.brain, self.window_pixels)
        return whole_square(len(self.masks), *self.masks.shape[1:])

    @property
    def frames(self) -> np.ndarray:
        """The windows (N, 3) float32 as shares of the square around the picture."""
        return frames_of(self.windows, *self.masks.shape[1:])

    def seen(self, pictures: np.ndarray, first: int = 0) -> np.ndarray:
        """What the windows show of pictures (n, …, H, W) of the slices from `first` on: (n, …, S, S), squares."""
        side = self.window_pixels or max(self.masks.shape[1:])
        return cut_windows(pictures, self.windows[first : first + len(pictures)], side)

    def cover(self, size: int) -> np.ndarray:
        """The tumour's share of each of size × size parts of the windows, (N, size, size) float16."""
        seen = torch.from_numpy(self.seen(self.masks).astype(np.float32)).unsqueeze(1)
        return F.interpolate(seen, size=(size, size), mode="area")[:, 0].half().numpy()

    def render(self, grids: np.ndarray, number: int) -> Tensor:
        """The map (1, H, W) of slice `number`, from the grids (N, taps, gh, gw) of the case."""
        one = slice(number, number + 1)
        return render_maps(torch.from_numpy(grids[one]), *self.masks.shape[1:], self.windows[one])

    def scored_map(self, grids: np.ndarray, number: int) -> Tensor:
        """The map that the score of slice `number` is taken from, as in screening: that of its window."""
        if not self.window_pixels:
            return self.render(grids, number)
        return render_maps(torch.from_numpy(grids[number : number + 1]), self.window_pixels, self.window_pixels)

    @property
    def has_tumour(self) -> np.ndarray:
        """(N,) bool."""
        return self.masks.any(axis=(1, 2))

    def within(self, first: int, last: int) -> np.ndarray:
        """Positions of the slices first..last, inclusive."""
        return np.flatnonzero((self.slice_index >= first) & (self.slice_index <= last))


def encode_cohort(
    cohort: Cohort,
    members: Iterable[Member],
    settings: Settings,
    encoder: Encoder,
    folder: Path,
    progress: Callable[[int, int], None],
) -> tuple[list[TrainingCase], list[Rejection]]:
    """Encode the members that can be used; the others, and those that fail here, come back with their reason.

    `folder` keeps what is encoded; `progress` gets how many members are done, and of how many.
    """
    members = list(members)
    cases = []
    rejected = [Rejection(member.case_id, member.rejected) for member in members if member.rejected]
    usable = [member for member in members if not member.rejected]
    for number, member in enumerate(usable, 1):
        try:
            cases.append(encode_case(cohort.case(member, settings.data.modality), settings, encoder, folder))
        except CaseError as error:
            log.warning("%s", error)
            rejected.append(Rejection(error.case_id, error.reason))
        progress(number, len(usable))
    return cases, rejected


def encode_case(case: Case, settings: Settings, encoder: Encoder, folder: Path) -> TrainingCase:
    """Read and encode one case for training, or take it from `folder` if it was encoded there before.

    Raises CaseError for an unlabelled case and for whatever `read_slices` refuses.
    """
    if case.mask is None:
        raise CaseError(case.case_id, "no segmentation; training needs one, leave the case out or add it")
    train_range = {"first_slice": settings.train.first_slice, "last_slice": settings.train.last_slice}
    view = view_to_train(settings.train)
    data = settings.data.model_copy(update={**train_range, "context_mm": view.context_mm})
    slices = read_slices(case, data)
    stem = folder / _key(case.case_id, slices, data, encoder, view.window_pixels)
    pictures = stem.with_suffix(".pictures.npy")
    folder.mkdir(parents=True, exist_ok=True)
    if not pictures.is_file():
        _save(pictures, np.stack([slices.images, slices.brain.view(np.uint8), slices.masks.view(np.uint8)]))
    size = batch_size_of(settings, encoder.device)
    features = [stem.with_suffix(".npy")]
    if settings.train.mirrored:
        features.append(stem.with_suffix(".mirrored.npy"))
    for file, arrange in zip(features, (np.asarray, mirror), strict=False):
        if not file.is_file():
            shown = _windows_of(arrange(slices.pictures), arrange(slices.brain), view.window_pixels)
            _save(file, _encode(encoder, shown, size, lane_count(settings, encoder.device)))
            log.info("encoded %s, %d slices", case.case_id, len(slices.images))
    images, brain, masks = np.load(pictures, mmap_mode="r")
    return TrainingCase(
        case.case_id,
        slices.slice_index,
        np.load(features[0], mmap_mode="r"),
        images,
        brain.view(bool),
        masks.view(bool),
        slices.spacing_mm[0] * slices.spacing_mm[1],
        case.patient,
        view.window_pixels,
        np.load(features[1], mmap_mode="r") if settings.train.mirrored else None,
    )


def mirror(pictures: np.ndarray) -> np.ndarray:
    """Pictures (…, H, W) with left and right exchanged."""
    return np.flip(pictures, axis=-1)


def _windows_of(pictures: np.ndarray, brain: np.ndarray, side: int) -> np.ndarray:
    """What the encoder sees of pictures (N, …, H, W): all, or windows of `side` pixels."""
    return cut_windows(pictures, brain_windows(brain, side), side) if side else np.ascontiguousarray(pictures)


def view_to_train(settings: TrainSettings) -> View:
    """What the encoder shall see of a slice."""
    return View(settings.context_mm, settings.window_mm, settings.image_pixels)


def _key(case_id: str, slices: CaseSlices, data: DataSettings, encoder: Encoder, window_pixels: int) -> str:
    """The name of a case's files: another one for other pictures, masks, scaling, encoder or windows."""
    facts = (case_id, data.scaling, data.modality, sorted(encoder.fingerprint.items()), slices.images.shape)
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(slices.images.tobytes())
    digest.update(slices.masks.tobytes())
    if slices.step:
        digest.update(slices.around.tobytes())
        digest.update(bytes([slices.step]))
    if window_pixels:
        digest.update(f"windows of {window_pixels}".encode())
    return digest.hexdigest()[:24]


def _encode(encoder: Encoder, images: np.ndarray, size: int, lanes: int) -> np.ndarray:
    """Patch features float16 of slices, `size` in a batch."""

    def encode(start: int) -> torch.Tensor:
        return encoder.encode(images[start : start + size]).half()

    return torch.cat(list(in_lanes(range(0, len(images), size), encode, lanes))).cpu().numpy()


def _save(path: Path, array: np.ndarray) -> None:
    with new_file(str(path)) as scratch, scratch.open("wb") as stream:
        np.save(stream, array)


@torch.inference_mode()
def map_tokens(
    converter: AnyConverter, picks: Sequence[tuple[TrainingCase, int]], grids: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Map tokens float16 (n, T, width) of slices (case, number), from the grids of their cases."""
    maps = np.stack([grids[case.case_id][number] for case, number in picks])
    frames = np.stack([case.frames[number] for case, number in picks])
    return converter(torch.from_numpy(maps).float(), torch.from_numpy(frames)).half().numpy()
