"""Reading volumes and masks: upright, scaled slices in files, by medad and by what people load volumes with.

One decision: everybody makes the same pictures. No library has medad's scaling, by the landmarks of the brain alone, so
each peer finds the landmarks with NumPy, as its user would, and does all else with its own functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal import igzip_lib

from medad_core.benchmark.duel import PAIRS, Act, Contender, Contest, DuelReport, Fact, Result, duel
from medad_core.config import Settings
from medad_core.config.settings import DataSettings
from medad_core.data.cases import Case
from medad_core.data.inflate import GZIP
from medad_core.data.nifti import read_header
from medad_core.data.read import read_slices
from medad_core.data.reads import reads_kept
from medad_core.errors import UsageError
from medad_core.progress import ReportText
from medad_core.run.gather import find_cohort
from medad_core.stages.parts import ignore_part, run_casewise
from medad_core.stages.rows import bits_of, images_of, slice_rows
from medad_core.store import SLICES, Stage, join
from medad_core.surroundings.processes import usable_cores

_READ = "the volume and mask of each case; slices upright, scaled, as 8-bit pictures"


@dataclass(frozen=True)
class Volumes:
    """The cases that are read, and how; a scratch folder for what is written."""

    cases: tuple[Case, ...]
    settings: DataSettings
    folder: str

    def new_folder(self) -> str:
        """An empty folder for one act."""
        return tempfile.mkdtemp(dir=self.folder)

    @property
    def slices(self) -> range:
        """The axial slices that are wanted of every case."""
        return range(self.settings.first_slice, self.settings.last_slice + 1)


def benchmark_read(
    data: str,
    settings: Settings,
    against: Sequence[str] = (),
    pairs: int = PAIRS,
    progress: ReportText = lambda _text: None,
) -> DuelReport:
    """Read the labelled cases of `data`. Raises UsageError where it has none, and as `duel` does.

    Slices are those that the scaling refers to: a loop has no others.
    """
    READ.chosen(against)
    wanted, scaling = settings.data, settings.data.scaling
    if (wanted.first_slice, wanted.last_slice) != (scaling.reference_first, scaling.reference_last):
        raise UsageError(
            f"slices {wanted.first_slice} to {wanted.last_slice} are not those of the scaling's reference; set "
            f"data.scaling.reference_first={wanted.first_slice} data.scaling.reference_last={wanted.last_slice}"
        )
    cohort = find_cohort(data, settings.data)
    usable = [member for member in cohort.members if member.rejected is None and member.mask is not None]
    if not usable:
        raise UsageError(f"{data} has no usable case with a mask; reading is measured with volume and mask")
    cases = tuple(cohort.case(member, settings.data.modality) for member in usable)
    with tempfile.TemporaryDirectory(prefix="medad-benchmark-") as folder:
        given = Volumes(cases, settings.data, folder)
        count = len(given.slices)
        described = f"{len(cases)} cases, slices {given.slices[0]} to {given.slices[-1]}, volume and mask"
        report = duel(READ, given, described, against, pairs, progress)
    return report.with_facts(Fact("slices", len(cases) * count, ""))


def _by_medad(given: Volumes) -> Act:
    size = given.settings.cases_per_part
    cases = {case.case_id: case for case in given.cases}
    names = list(cases)
    parts = [names[start : start + size] for start in range(0, len(names), size)]

    def make(case_id: str) -> pa.Table:
        with reads_kept():
            return slice_rows(read_slices(cases[case_id], given.settings), "screen")

    def act() -> Callable[[], Result]:
        stage = Stage(given.new_folder(), "slices", SLICES)
        stage.prepare({"benchmark": "read"}, parts)
        run_casewise(stage, range(len(parts)), make, ignore_part, threads=usable_cores())
        stage.finish()
        return lambda: _of_stage(stage, given)

    return act


def _of_stage(stage: Stage, given: Volumes) -> Result:
    images, masks = [], []
    for case in given.cases:
        table = stage.read_case(case.case_id)
        images.append(images_of(table))
        masks += [bits_of(row, "mask") for row in table.select(["height", "width", "mask"]).to_pylist()]
    return {"images": np.concatenate(images), "masks": np.stack(masks)}


def _by_nibabel(given: Volumes) -> Act:
    def read(path: str) -> np.ndarray:
        image = nib.as_closest_canonical(nib.load(path))
        return _upright(image.get_fdata())[_of(given.slices)]

    return _to_parquet(given, read)


def _by_dataobj(given: Volumes) -> Act:
    def read(path: str) -> np.ndarray:
        image = nib.load(path)
        orientation = nib.io_orientation(image.affine)
        axis = int(np.flatnonzero(orientation[:, 0] == 2)[0])
        count = image.shape[axis]
        wanted = [slice(None)] * 3
        wanted[axis] = _of(given.slices)
        if orientation[axis, 1] < 0:
            wanted[axis] = slice(count - given.slices.stop, count - given.slices.start)
        return _upright(nib.apply_orientation(image.dataobj[tuple(wanted)], orientation))

    return _to_parquet(given, read)


def _by_torchio(given: Volumes) -> Act:
    import torchio as tio

    canonical = tio.ToCanonical()

    def pictures(case: Case) -> tuple[np.ndarray, np.ndarray]:
        volume, mask = _paths(case, given.settings)
        subject = canonical(tio.Subject(image=tio.ScalarImage(volume), mask=tio.LabelMap(mask)))
        depth = subject.spatial_shape[2]
        subject = tio.Crop((0, 0, 0, 0, given.slices.start, depth - given.slices.stop))(subject)
        values = subject.image.data
        black, white = _landmarks(values.numpy(), given.settings)
        scaled = tio.RescaleIntensity((0, 255), in_min_max=(black, white))(tio.Clamp(black, white)(subject.image))
        images = np.where(values.numpy() != 0, np.rint(scaled.data.numpy()), 0).astype(np.uint8)
        return _upright(images[0]), _upright(subject.mask.data.numpy()[0] != 0)

    def act() -> Callable[[], Result]:
        return _written(given, ((case.case_id, *pictures(case)) for case in given.cases))

    return act


def _by_monai(given: Volumes) -> Act:
    from monai.data import PersistentDataset
    from monai.transforms import (
        AsDiscreted,
        Compose,
        Lambdad,
        LoadImaged,
        Orientationd,
        ScaleIntensityRange,
        SpatialCropd,
    )

    def scale(image: np.ndarray) -> np.ndarray:
        black, white = _landmarks(image.numpy(), given.settings)
        scaled = ScaleIntensityRange(black, white, 0, 255, clip=True)(image)
        scaled[image == 0] = 0
        return scaled.round().byte()

    both = ["image", "mask"]
    wanted = [_of(given.slices), slice(None), slice(None)]
    transform = Compose(
        [
            LoadImaged(both, ensure_channel_first=True),
            Orientationd(both, axcodes="SPL", labels=None),
            SpatialCropd(both, roi_slices=wanted),
            Lambdad("image", scale),
            AsDiscreted("mask", threshold=0.5),
        ]
    )
    pairs = [dict(zip(both, _paths(case, given.settings), strict=True)) for case in given.cases]

    def act() -> Callable[[], Result]:
        kept = PersistentDataset(pairs, transform, given.new_folder())
        for number in range(len(kept)):
            _ = kept[number]
        return lambda: _stacked(
            (item["image"][0].numpy(), item["mask"][0].numpy()) for item in map(kept.__getitem__, range(len(kept)))
        )

    return act


def _by_inflating(given: Volumes) -> Act:
    """The compressed bytes up to the last slice that is wanted, of files that are stored from inferior to superior."""
    ends = []
    for case in given.cases:
        for ref in (case.volumes[given.settings.modality], case.mask):
            assert ref is not None
            header = read_header(case.case_id, ref, given.settings.max_gib)
            plane = header.shape[0] * header.shape[1] * header.dtype.itemsize
            ends.append((ref.path, header.offset + plane * given.slices.stop))

    def act() -> Callable[[], Result]:
        for path, end in ends:
            raw = Path(path).read_bytes()
            if raw.startswith(GZIP):
                igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP).decompress(raw, end)
        return dict

    return act


def _to_parquet(given: Volumes, read: Callable[[str], np.ndarray]) -> Act:
    """An act that scales and writes what `read` gives: the wanted slices of a file, upright."""

    def pictures(case: Case) -> tuple[np.ndarray, np.ndarray]:
        volume, mask = _paths(case, given.settings)
        values = read(volume)
        black, white = _landmarks(values, given.settings)
        images = np.rint(np.clip((values - black) * (255 / (white - black)), 0, 255)).astype(np.uint8)
        images[values == 0] = 0
        return images, read(mask) != 0

    def act() -> Callable[[], Result]:
        return _written(given, ((case.case_id, *pictures(case)) for case in given.cases))

    return act


def _written(given: Volumes, cases: Iterator[tuple[str, np.ndarray, np.ndarray]]) -> Callable[[], Result]:
    """Write the pictures and masks of each case to a file in Parquet; returns what reads them back."""
    folder = given.new_folder()
    shapes = {}
    for case_id, images, masks in cases:
        shapes[case_id] = images.shape
        columns = {
            "case_id": [case_id] * len(images),
            "slice_index": list(given.slices),
            "image": [image.tobytes() for image in images],
            "mask": [np.packbits(mask).tobytes() for mask in masks],
        }
        pq.write_table(pa.table(columns), join(folder, f"{case_id}.parquet"), compression="zstd")

    def pictures(case_id: str) -> tuple[np.ndarray, np.ndarray]:
        count, height, width = shapes[case_id]
        table = pq.read_table(join(folder, f"{case_id}.parquet"))
        images = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8)
        masks = [
            np.unpackbits(np.frombuffer(mask, np.uint8), count=height * width) for mask in table["mask"].to_pylist()
        ]
        return images.reshape(count, height, width), np.stack(masks).reshape(count, height, width)

    return lambda: _stacked(pictures(case.case_id) for case in given.cases)


def _stacked(cases: Iterator[tuple[np.ndarray, np.ndarray]]) -> Result:
    images, masks = zip(*cases, strict=True)
    return {"images": np.concatenate(images), "masks": np.concatenate(masks) != 0}


def _paths(case: Case, settings: DataSettings) -> tuple[str, str]:
    assert case.mask is not None, f"{case.case_id} has no mask"
    return case.volumes[settings.modality].path, case.mask.path


def _upright(canonical: np.ndarray) -> np.ndarray:
    """An array in RAS+ as (S, P, L), which is how pictures lie."""
    return canonical.transpose(2, 1, 0)[:, ::-1, ::-1]


def _of(slices: range) -> slice:
    return slice(slices.start, slices.stop)


def _landmarks(values: np.ndarray, settings: DataSettings) -> tuple[float, float]:
    """What becomes 0 and 255."""
    scaling = settings.scaling
    brain = values[values != 0]
    if scaling.kind == "percentile":
        black, white = np.percentile(brain, (scaling.low, scaling.high))
        return float(black), float(white)
    black, middle = np.percentile(brain, (scaling.low, 50.0))
    return float(black), float(black + scaling.k * (middle - black))


READ: Contest[Volumes] = Contest(
    work="read",
    ours=Contender("medad", "the stage `slices`, with its checks, hashes and records", _by_medad),
    peers=(
        Contender("nibabel", "real: get_fdata of the whole volume", _by_nibabel, ("nibabel",)),
        Contender("nibabel-slices", "real: dataobj, sliced", _by_dataobj, ("nibabel",)),
        Contender(
            "monai", "real: LoadImaged, Orientationd, ScaleIntensityRange, PersistentDataset", _by_monai, ("monai",)
        ),
        Contender("torchio", "real: ToCanonical, Crop, Clamp, RescaleIntensity", _by_torchio, ("torchio",)),
    ),
    tolerance={"images": 1.0, "masks": 0.0},  # a grey level, where a value lies between two
    floors=(Contender("inflating", "ISA-L inflates the same bytes, and nothing else", _by_inflating, ("isal",)),),
)
