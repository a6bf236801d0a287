"""Content checks: heads, other modalities, cut and noisy brains, and masks that are no lesion's are noticed."""

from __future__ import annotations

import numpy as np
import pytest
from content_corruptions import add_head, add_noise, crop, on_zero, segment
from measure_content import SLICES, SPACING, draw_groups, read_groups

from medad_core.data.content import check_mask, check_volume, spread_slices
from medad_core.data.content_mask import measure_mask
from medad_core.data.content_volume import measure_outline, scale_by_tissue
from medad_core.data.intensity import find_background

MASK_CHECKS = {"mask_outside", "mask_share", "mask_span", "mask_bright", "mask_mirrored"}


@pytest.fixture(scope="module")
def phantom():
    """A phantom's slices, its brain and its lesion."""
    (group,) = draw_groups(1, SLICES)
    volume = group.volumes["flair"]
    return volume, volume != 0, group.volumes["seg"] > 0


@pytest.fixture(scope="module")
def real(shared_data):
    """Slices of every real patient that has a FLAIR."""
    return list(read_groups(shared_data, SLICES))


def verdicts(checks):
    return {check.name: check.verdict for check in checks}


def verdicts_of(volume, modality="flair"):
    background = find_background(volume)
    brain = None if background is None else volume != background
    return verdicts(check_volume(volume, brain, SPACING, modality))


def big_lesion(shape, brain, volume):
    """A bright ellipse on one side of the brain, and the volume with it."""
    rows, columns = np.indices(shape[1:])
    lesion = np.broadcast_to(((rows - 100) / 25) ** 2 + ((columns - 90) / 18) ** 2 < 1, shape) & brain
    return lesion, np.where(lesion, 1.8 * np.median(volume[brain]), volume)


def test_slices_are_spread_over_the_range():
    assert spread_slices(60, 100) == [60, 70, 80, 90, 100]
    assert spread_slices(60, 61) == [60, 61]
    assert spread_slices(7, 7) == [7]


def test_a_good_phantom_passes_every_check(phantom):
    volume, brain, lesion = phantom
    checks = check_volume(volume, brain, SPACING, "flair")
    assert verdicts(checks) == dict.fromkeys(("skull", "cut_off", "noise", "fluid", "grey_white"), "use")
    assert {check.reason for check in checks} == {""}
    assert verdicts(check_mask(volume, brain, lesion, SPACING)) == dict.fromkeys(MASK_CHECKS, "use")


def test_a_scaled_and_shifted_volume_has_the_same_values(phantom):
    volume, brain, lesion = phantom
    moved = volume.astype(np.float64) * 0.013 - 3.2
    for check, arguments in ((check_volume, (brain, SPACING, "flair")), (check_mask, (brain, lesion, SPACING))):
        before = [found.value for found in check(volume, *arguments)]
        assert [found.value for found in check(moved, *arguments)] == pytest.approx(before, abs=2e-3)


def test_a_head_on_zero_air_is_refused(phantom):
    for seed, options in enumerate(({}, {"zero_bone": True}, {"scalp": 0.5}, {"scalp": 2.2})):
        head = add_head(phantom[0], np.random.default_rng(seed), **options)
        checks = check_volume(head, head != 0, SPACING, "flair")
        assert verdicts(checks)["skull"] == "refuse"
        assert "skull-stripped" in checks[0].reason and f"{checks[0].value:.2f}" in checks[0].reason
        assert {check.name for check in checks} == {"skull", "cut_off"}  # a head has no brain to judge yet


def test_half_a_head_is_noticed(phantom):
    head = add_head(phantom[0], np.random.default_rng(1), scalp=1.5, part=0.5)
    assert verdicts_of(head)["skull"] != "use"


def test_no_constant_background_is_refused(phantom):
    (check,) = check_volume(phantom[0], None, SPACING, "flair")
    assert (check.name, check.verdict) == ("background", "refuse") and "skull-stripped" in check.reason


def test_depth_of_the_ring_is_worked_out_by_hand():
    # A square of 80: 6 mm of 1.5, 6 mm of 0.3, then 1. Black is 0, the median 1. Edge 1, valley 0.3: 0.7 / 1.1.
    picture = np.ones((1, 80, 80), np.float32)
    distance = np.minimum.reduce(np.indices((80, 80)).tolist() + (79 - np.indices((80, 80))).tolist())
    picture[0, distance < 12] = 0.3
    picture[0, distance < 6] = 1.5
    tissue = scale_by_tissue(picture, np.ones((1, 80, 80), bool))
    depth = measure_outline(tissue, SPACING).ring_depth
    black = np.percentile(picture[0].ravel()[::4], 1)
    valley = (0.3 - black) / (1 - black)
    assert depth == pytest.approx((1 - valley) / 1.1, abs=1e-6)


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("pad", [False, True])
def test_a_brain_that_is_cut_off_is_a_warning(phantom, side, pad):
    assert verdicts_of(crop(phantom[0], 15, side, pad))["cut_off"] == "warn"


def test_noise_is_measured_and_is_a_warning(phantom):
    noisy = add_noise(phantom[0], np.random.default_rng(0), 0.2)
    (check,) = (found for found in check_volume(noisy, noisy != 0, SPACING, "flair") if found.name == "noise")
    assert check.verdict == "warn" and check.value == pytest.approx(0.2, abs=0.03)


def test_inverted_contrast_is_no_flair(phantom):
    volume, brain, _ = phantom
    inverted = np.where(brain, volume.max() + 1 - volume, 0)  # fluid bright, as in T2; grey darker than white, as in T1
    found = verdicts_of(inverted)
    assert (found["fluid"], found["grey_white"]) == ("warn", "warn")


def test_other_modalities_are_not_held_against_flair(phantom):
    volume, brain, _ = phantom
    inverted = np.where(brain, volume.max() + 1 - volume, 0)
    assert set(verdicts_of(inverted, "t2")) == {"skull", "cut_off", "noise"}


def test_what_cannot_be_measured_is_a_warning(phantom):
    _, brain, _ = phantom
    checks = check_volume(np.where(brain, 7, 0), brain, SPACING, "flair")
    assert {check.verdict for check in checks if np.isnan(check.value)} == {"warn"}
    assert verdicts(checks)["noise"] == "warn"
    coarse = check_volume(phantom[0][:, ::3, ::3], brain[:, ::3, ::3], (3.0, 3.0, 1.0), "flair")
    assert verdicts(coarse)["fluid"] == "warn"


def test_no_brain_and_no_mask_say_nothing(phantom):
    volume, brain, lesion = phantom
    nothing = np.zeros_like(brain)
    assert check_volume(volume, nothing, SPACING, "flair") == ()
    assert check_mask(volume, brain, nothing, SPACING) == ()
    assert check_mask(volume, nothing, lesion, SPACING) == ()


@pytest.mark.parametrize("classes", [(1,), (2,), (2, 3), (1, 2, 3)])
def test_tissue_and_brain_masks_are_noticed(phantom, classes):
    volume, brain, _ = phantom
    mask = np.isin(segment(volume, brain), classes)
    found = verdicts(check_mask(volume, brain, mask, SPACING))
    assert {found["mask_share"], found["mask_span"]} & {"warn", "refuse"}
    if len(classes) > 1:
        assert "refuse" in found.values()


def test_a_brain_mask_is_refused_for_its_share_and_for_its_span(phantom):
    volume, brain, _ = phantom
    found = verdicts(check_mask(volume, brain, brain, SPACING))
    assert (found["mask_share"], found["mask_span"]) == ("refuse", "refuse")
    assert "mask_bright" not in found  # nothing is left to compare with


def test_half_a_brain_is_a_warning_for_its_share_alone(phantom):
    volume, brain, _ = phantom
    half = brain.copy()
    half[:, :, 120:] = False
    found = verdicts(check_mask(volume, brain, half, SPACING))
    assert (found["mask_share"], found["mask_span"]) == ("warn", "use")


def test_a_mask_of_fluid_is_dark(phantom):
    volume, brain, _ = phantom
    assert verdicts(check_mask(volume, brain, segment(volume, brain) == 1, SPACING))["mask_bright"] == "warn"


def test_mirrored_masks_are_a_warning(phantom):
    volume, brain, _ = phantom
    lesion, volume = big_lesion(volume.shape, brain, volume)
    assert verdicts(check_mask(volume, brain, lesion, SPACING))["mask_mirrored"] == "use"
    for copy in (lesion[:, :, ::-1], lesion[:, ::-1], lesion[:, ::-1, ::-1]):
        assert verdicts(check_mask(volume, brain, copy, SPACING))["mask_mirrored"] == "warn"


def test_a_mask_outside_the_brain_is_noticed(phantom):
    volume, brain, _ = phantom
    lesion, volume = big_lesion(volume.shape, brain, volume)
    assert verdicts(check_mask(volume, brain, np.roll(lesion, -60, 1), SPACING))["mask_outside"] == "refuse"
    edge = np.roll(lesion, -15, 2)
    share = np.count_nonzero(edge & ~brain) / np.count_nonzero(edge)
    assert measure_mask(volume, brain, edge).outside == pytest.approx(share)


def test_brightness_is_the_area_under_the_roc_curve():
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 50, (2, 30, 30))
    brain = np.ones(volume.shape, bool)
    mask = rng.random(volume.shape) < 0.3
    volume[mask] += 8
    found = measure_mask(volume, brain, mask)
    pairs = volume[mask][:, None] - volume[~mask]
    assert found.brightness == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2, abs=1e-9)
    assert found.share == pytest.approx(mask.mean()) and found.outside == 0


def test_span_leaves_out_stray_voxels():
    brain = np.ones((1, 100, 100), bool)
    mask = np.zeros_like(brain)
    mask[0, 20:50, 20:60] = True
    assert measure_mask(np.zeros(brain.shape), brain, mask).span == pytest.approx(0.30, abs=0.02)
    mask[0, 95, 95] = True
    assert measure_mask(np.zeros(brain.shape), brain, mask).span == pytest.approx(0.30, abs=0.02)


def test_views_of_turned_files_give_the_same_values(phantom):
    volume, brain, lesion = phantom
    turned = [np.asfortranarray(array[:, ::-1])[:, ::-1] for array in (volume, brain, lesion)]
    assert check_volume(*turned[:2], SPACING, "flair") == check_volume(volume, brain, SPACING, "flair")
    assert check_mask(*turned, SPACING) == check_mask(volume, brain, lesion, SPACING)


def test_real_flair_and_expert_masks_pass_every_check(real):
    for group in real:
        volume = group.volumes["flair"]
        brain = volume != find_background(volume)
        assert set(verdicts(check_volume(volume, brain, SPACING, "flair")).values()) == {"use"}, group.patient
        if "seg" in group.volumes:
            found = verdicts(check_mask(volume, brain, group.volumes["seg"] > 0, SPACING))
            assert set(found.values()) == {"use"}, group.patient


def test_real_t1_t1ce_and_t2_are_no_flair_and_never_refused(real):
    for group in real:
        for modality in set(group.volumes) - {"flair", "seg"}:
            found = verdicts_of(group.volumes[modality])
            expected = "fluid" if modality == "t2" else "grey_white"
            assert found[expected] == "warn", (group.patient, modality)
            assert "refuse" not in found.values(), (group.patient, modality)


def test_real_brains_in_a_head_are_refused(real):
    for number, group in enumerate(real):
        volume = group.volumes["flair"]
        clean = on_zero(volume, volume != find_background(volume))
        assert verdicts_of(add_head(clean, np.random.default_rng(number)))["skull"] == "refuse", group.patient


def test_real_masks_that_are_flipped_are_a_warning(real):
    for group in real:
        if "seg" in group.volumes:
            volume = group.volumes["flair"]
            mask = group.volumes["seg"][:, :, ::-1] > 0
            found = verdicts(check_mask(volume, volume != find_background(volume), mask, SPACING))
            assert found["mask_mirrored"] == "warn", group.patient
