"""Measures the limits of `medad_core.data.content` and how often they err: `python tests/measure_content.py DATA`.

DATA is a folder of cases whose files end in _flair, _t1, _t1ce, _t2, _seg (or as in BraTS 2023), beside other cases
with a FLAIR and a mask. It prints one line per check and kind: n, least, median and largest value, and the verdicts.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from content_corruptions import add_head, add_noise, crop, move, on_zero, ring, segment

from medad_core.data.cases import VolumeRef
from medad_core.data.content import Check, check_mask, check_volume, spread_slices
from medad_core.data.content_mask import measure_mask
from medad_core.data.intensity import find_background
from medad_core.data.nifti import NiftiFile, open_nifti
from medad_core.data.phantom import draw_phantom

SPACING = (1.0, 1.0, 1.0)
SLICES = spread_slices(60, 100)
ENDINGS = {"_t1ce": "t1ce", "-t1c": "t1ce", "_t1": "t1", "-t1n": "t1", "_t2": "t2", "-t2w": "t2", "-t2W": "t2"}
ENDINGS |= {"_flair": "flair", "-t2f": "flair", "_seg": "seg", "-seg": "seg"}
ENDINGS |= {"Flair_subtrMeanDivStd": "flair", "OTMultiClass": "seg"}
PHANTOMS = 24
HEADS: dict[str, dict[str, float]] = {
    "head": {},
    "head, bone 0": {"zero_bone": True},
    "head, scalp 0.2": {"scalp": 0.2},
    "half a head": {"part": 0.5},
    "quarter of a head": {"part": 0.25},
}


@dataclass(frozen=True)
class Group:
    """The volumes of one patient, (S, H, W) at `slices`, by modality."""

    patient: str
    volumes: dict[str, np.ndarray]


def read_groups(data: Path, slices: list[int]) -> Iterator[Group]:
    """Every patient's folder that has a FLAIR."""
    for folder in sorted({path.parent for path in data.rglob("*.nii.gz")}):
        volumes = {}
        for path in sorted(folder.glob("*.nii.gz")):
            name = path.name.removesuffix(".nii.gz")
            modality = next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)
            if modality:
                volumes[modality] = pick(open_nifti(folder.name, VolumeRef(str(path)), 4), slices)
        if "flair" in volumes:
            yield Group(folder.name, volumes)


def pick(file: NiftiFile, slices: list[int]) -> np.ndarray:
    block = file.slices(slices[0], slices[-1])
    return np.ascontiguousarray(block[[index - slices[0] for index in slices]])


def draw_groups(count: int, slices: list[int]) -> Iterator[Group]:
    for number in range(count):
        phantom = draw_phantom(np.random.default_rng([7, number]), lesion=number % 8 != 3)
        arrays = {"flair": phantom.flair, "seg": phantom.labels}
        yield Group(f"phantom{number}", {key: array.transpose(2, 1, 0)[slices] for key, array in arrays.items()})


class Results:
    """Checks by their name and kind, with their patient."""

    def __init__(self) -> None:
        self.checks: dict[tuple[str, str], list[tuple[str, Check]]] = defaultdict(list)

    def add(self, kind: str, patient: str, checks: tuple[Check, ...]) -> None:
        for check in checks:
            self.checks[check.name, kind].append((patient, check))

    def print_table(self) -> None:
        for (name, kind), found in sorted(self.checks.items()):
            values = np.array([check.value for _, check in found])
            verdicts = [check.verdict for _, check in found]
            counts = " ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in ("use", "warn", "refuse"))
            spread = f"{np.nanmin(values):7.3f} {np.nanmedian(values):7.3f} {np.nanmax(values):7.3f}"
            print(f"{name:14}{kind:28} n {len(values):3}  {spread}  {counts}")

    def leave_one_out(self, name: str, good: str, bad: list[str]) -> None:
        """Errors on each patient at the limit that errs least on the others."""
        rows = [(patient, check.value, False) for patient, check in self.checks[name, good]]
        rows += [(patient, check.value, True) for kind in bad for patient, check in self.checks[name, kind]]
        patients, values, is_bad = map(np.array, zip(*rows, strict=True))
        sign = 1 if np.median(values[is_bad]) > np.median(values[~is_bad]) else -1
        values = sign * values
        wrong = np.zeros(len(values), bool)
        limits = []
        for patient in set(patients):
            rest = patients != patient
            limits.append(best_limit(values[rest], is_bad[rest]))
            wrong[~rest] = (values[~rest] >= limits[-1]) != is_bad[~rest]
        false, missed = wrong[~is_bad].sum(), wrong[is_bad].sum()
        ends = sorted((sign * min(limits), sign * max(limits)))
        print(
            f"leave one patient out: {name}, {good} against {', '.join(bad)}: limit {ends[0]:.3f} to {ends[1]:.3f}, "
            f"false alarms {false} of {(~is_bad).sum()}, misses {missed} of {is_bad.sum()}"
        )


def best_limit(values: np.ndarray, is_bad: np.ndarray) -> float:
    """The middle of the widest gap among those limits with the least sum of error rates."""
    ordered = np.unique(values)
    middles = (ordered[:-1] + ordered[1:]) / 2
    errors = np.array([(values[~is_bad] >= m).mean() + (values[is_bad] < m).mean() for m in middles])
    best = np.flatnonzero(errors == errors.min())
    return float(middles[best[np.diff(ordered)[best].argmax()]])


def measure_volumes(group: Group, results: Results, source: str) -> None:
    for modality in ("flair", "t1", "t1ce", "t2"):
        if modality not in group.volumes:
            continue
        volume = group.volumes[modality]
        background = find_background(volume)
        kind = f"{source} {modality}"
        results.add(kind, group.patient, check_volume(volume, volume != background, SPACING, "flair"))
        if source == "phantom":
            continue
        clean = on_zero(volume, volume != background)
        seed = sum(map(ord, group.patient + modality))
        spoilt = list(corrupt(clean, seed)) if modality == "flair" else []
        for number in range(2):
            for name, options in HEADS.items():
                spoilt.append((name, add_head(clean, np.random.default_rng([seed, number]), **options)))
        for name, wrong in spoilt:
            results.add(f"{name} {modality}", group.patient, check_volume(wrong, wrong != 0, SPACING, "t1"))
            if name.startswith(("motion", "ringing")):
                directions[name].append(direction(wrong))
        if modality == "flair":
            directions["good"].append(direction(clean))


def corrupt(clean: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    for share in (0.05, 0.1, 0.15, 0.2, 0.3):
        yield f"noise {share}", add_noise(clean, np.random.default_rng(seed), share)
    for size in (2, 8):
        yield f"motion {size}", move(clean, np.random.default_rng(seed), size)
    for kept in (0.25, 0.5):
        yield f"ringing {kept}", ring(clean, kept)
    for pixels in (5, 10, 20):
        for side in range(4):
            yield f"crop {pixels}", crop(clean, pixels, side)
            yield f"crop {pixels}, padded", crop(clean, pixels, side, pad=True)


directions: dict[str, list[float]] = defaultdict(list)


def direction(volume: np.ndarray) -> float:
    """A check that was dropped: |log| of second differences along rows by those along columns, deep in the brain."""
    deep = np.ones(volume.shape, bool)
    for step in (6, 3):
        for axis in (1, 2):
            for sign in (-1, 1):
                deep &= np.roll(volume != 0, sign * step, axis)
    sizes = [
        np.abs(np.diff(volume, 2, axis))[deep[:, 1:-1] if axis == 1 else deep[:, :, 1:-1]].mean() for axis in (1, 2)
    ]
    return abs(float(np.log(sizes[0] / sizes[1])))


def measure_masks(group: Group, results: Results, source: str) -> None:
    if "seg" not in group.volumes:
        return
    volume = group.volumes["flair"]
    brain = volume != find_background(volume)
    expert = group.volumes["seg"] > 0
    classes = segment(volume, brain)
    masks = [("expert", expert), ("brain mask", brain)]
    masks += [(f"tissue class {number}", classes == number) for number in (1, 2, 3)]
    masks += [("tissue classes 2+3", classes >= 2)]
    masks += [("flipped left-right", expert[:, :, ::-1]), ("flipped front-back", expert[:, ::-1])]
    masks += [("turned by 180°", expert[:, ::-1, ::-1])]
    for pixels in (5, 10, 20, 40):
        for axis in (1, 2):
            masks += [(f"shifted {pixels:2} mm", np.roll(expert, sign * pixels, axis)) for sign in (-1, 1)]
    for name, mask in masks:
        results.add(f"{source} {name}", group.patient, check_mask(volume, brain, mask, SPACING))
    if expert.any():
        found = measure_mask(volume, brain, expert)
        symmetry["expert"].append(np.count_nonzero(expert & expert[:, :, ::-1]) / np.count_nonzero(expert))
        symmetry["outside"].append(found.outside)


symmetry: dict[str, list[float]] = defaultdict(list)


def main(data: Path) -> None:
    results = Results()
    for group in read_groups(data, SLICES):
        measure_volumes(group, results, "real")
        measure_masks(group, results, "real")
    for group in draw_groups(PHANTOMS, SLICES):
        measure_volumes(group, results, "phantom")
        measure_masks(group, results, "phantom")
    results.print_table()
    results.leave_one_out("fluid", "real flair", ["real t2"])
    results.leave_one_out("grey_white", "real flair", ["real t1", "real t1ce"])
    results.leave_one_out("skull", "real flair", ["head flair"])
    results.leave_one_out("mask_mirrored", "real expert", ["real flipped left-right"])
    results.leave_one_out("mask_span", "real expert", [f"real tissue class {number}" for number in (1, 2, 3)])
    for name, values in directions.items():
        spread = f"{min(values):.3f} {np.median(values):.3f} {max(values):.3f}"
        print(f"dropped: direction of detail, {name}: n {len(values)} {spread}")
    print(f"dropped: symmetry of expert masks: {min(symmetry['expert']):.3f} to {max(symmetry['expert']):.3f}")
    print(f"largest share of an expert mask outside the brain: {max(symmetry['outside']):.4f}")
    measure_time(data)


def measure_time(data: Path) -> None:
    """Milliseconds of processor time a case, of the checks and of reading what they need."""
    reading, volumes, masks = [], [], []
    for folder in sorted(path.parent for path in data.rglob("*_flair.nii.gz")):
        flair, seg = (next(folder.glob(f"*_{kind}.nii.gz")) for kind in ("flair", "seg"))
        start = time.process_time()
        volume, mask = (pick(open_nifti("", VolumeRef(str(path)), 4), SLICES) for path in (flair, seg))
        read = time.process_time()
        brain = volume != find_background(volume)
        check_volume(volume, brain, SPACING, "flair")
        checked = time.process_time()
        check_mask(volume, brain, mask > 0, SPACING)
        reading.append(read - start)
        volumes.append(checked - read)
        masks.append(time.process_time() - checked)
    for name, seconds in (("reading both files", reading), ("check_volume", volumes), ("check_mask", masks)):
        middle, least = 1e3 * np.median(seconds), 1e3 * min(seconds)
        print(f"{name}: median {middle:.1f} ms, least {least:.1f} ms a case, n {len(seconds)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
