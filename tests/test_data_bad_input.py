"""Bad volumes and masks: each is a CaseError whose one line names the file, what is wrong and the way out."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import pickle
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from test_data_read import AFFINE, SHAPE, brain_array, mask_array, read, save

from medad_core.data import inflate, nifti
from medad_core.data.cases import VolumeRef
from medad_core.data.nifti import hash_whole, open_nifti, read_header
from medad_core.errors import CaseError, StoreError, TruncatedError


def refused(match: str, volume: VolumeRef, mask: VolumeRef | None = None, **changes) -> CaseError:
    with pytest.raises(CaseError, match=match) as caught:
        read(volume, mask, **changes)
    assert caught.value.case_id == "case" and "\n" not in caught.value.reason
    return caught.value


@pytest.fixture
def good(tmp_path) -> VolumeRef:
    return save(brain_array(), tmp_path / "good_flair.nii.gz")


def write(path, content: bytes) -> VolumeRef:
    path.write_bytes(content)
    return VolumeRef(str(path))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_gzip_file_is_refused_wherever_it_ends(tmp_path, share):
    save(np.random.default_rng(0).integers(0, 999, (30, 30, 9)).astype(np.int16), tmp_path / "x.nii.gz")
    content = (tmp_path / "x.nii.gz").read_bytes()
    refused(
        r"y\.nii\.gz: (truncated|damaged|not a NIfTI)",
        write(tmp_path / "y.nii.gz", content[: int(len(content) * share)]),
    )


def test_a_truncated_plain_file_is_refused(tmp_path):
    save(brain_array(), tmp_path / "x.nii")
    refused("truncated", write(tmp_path / "y.nii", (tmp_path / "x.nii").read_bytes()[:-2]))


def test_a_damaged_gzip_stream_is_refused(tmp_path, good):
    content = bytearray(Path(good.path).read_bytes())
    content[40:60] = b"\xff" * 20
    refused("damaged gzip|not a NIfTI|truncated", write(tmp_path / "y.nii.gz", bytes(content)))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x1f\x8b", b"<html>" * 200, b"\x00" * 1000, bytes(range(256)) * 4]
)
def test_what_is_no_nifti_is_refused(tmp_path, content):
    refused(r"y\.nii\.gz: (not a NIfTI|truncated|damaged)", write(tmp_path / "y.nii.gz", content))


@pytest.mark.parametrize("offset", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_header_whose_voxels_begin_nowhere_is_refused(tmp_path, offset, pack):
    header = nib.Nifti1Image(brain_array(), AFFINE).header
    header["magic"], header["vox_offset"] = b"n+1", offset
    refused("not a NIfTI", write(tmp_path / "x.nii", pack(header.binaryblock + bytes(40_000))))


@pytest.mark.parametrize("shape", [(32767, 32767, 32767), (32767, 32767, 32767, 32767)])
def test_a_shape_that_no_memory_holds_is_refused(tmp_path, shape):
    header = nib.Nifti1Image(brain_array(), AFFINE).header
    header.set_data_shape(shape)
    header["magic"] = b"n+1"
    refused(
        r"its header speaks of .* GiB, more than data\.max_gib=4",
        write(tmp_path / "x.nii", header.binaryblock + bytes(1000)),
    )


def test_of_a_file_that_goes_on_for_ever_only_the_volume_is_read(tmp_path, good):
    endless = save(brain_array(), tmp_path / "x.nii")
    os.truncate(endless.path, 1 << 40)
    assert np.array_equal(read(endless).images, read(good).images)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, good):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "pipe")
    (tmp_path / "zero.nii.gz").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("link.nii.gz", "a pipe"), ("zero.nii.gz", "a device")):
        volume = VolumeRef(str(tmp_path / name))
        refused(f"{name}: cannot be read .it is {kind}, no regular file", volume)
        refused(f"{name}: cannot be read .it is {kind}, no regular file", good, volume)
        with pytest.raises(CaseError, match=kind):
            read_header("case", volume, 4)
        with pytest.raises(OSError, match=kind):
            hash_whole("case", tmp_path / name, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_header_that_claims_more_than_the_setting_is_refused_before_it_is_read(tmp_path, good, pack):
    claims = save(brain_array(np.float64), tmp_path / "x.nii")
    raw = Path(claims.path).read_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    header.set_data_shape((1024, 1024, 1024))
    large = write(tmp_path / "large.nii", pack(header.binaryblock + raw[348:]))
    for volume, mask in ((large, None), (good, large)):
        refused(
            r"large\.nii: its header speaks of 8 GiB, more than data\.max_gib=4; .*raise data\.max_gib", volume, mask
        )
    refused(r"max_gib=1e-06", good, max_gib=1e-6)
    with pytest.raises(CaseError, match="max_gib"):
        hash_whole("case", Path(large.path), 4)


def test_a_compressed_file_of_1_tb_and_content_that_goes_on_are_bounded(tmp_path, good):
    content = Path(good.path).read_bytes()
    endless = write(tmp_path / "endless.nii.gz", content)
    os.truncate(endless.path, 1 << 40)
    refused("bytes long, compressed, for", endless)
    with pytest.raises(CaseError, match=r"it has 1\.02e\+03 GiB, more than data\.max_gib=4"):
        hash_whole("case", Path(endless.path), 4)
    bomb = write(tmp_path / "bomb.nii.gz", gzip.compress(gzip.decompress(content) + bytes(1 << 24)))
    assert np.array_equal(read(bomb).images, read(good).images)
    with pytest.raises(CaseError, match=r"more than .* GiB of content"):
        hash_whole("case", Path(bomb.path), 1 / 1024)


def test_many_empty_gzip_members_take_linear_time(tmp_path, good):
    """Quadratic, 8 MiB of them took minutes."""
    content = gzip.decompress(Path(good.path).read_bytes())
    empty = gzip.compress(b"")
    many = gzip.compress(content[:600]) + empty * ((1 << 18) // len(empty)) + gzip.compress(content[600:])
    assert np.array_equal(read(write(tmp_path / "x.nii.gz", many)).images, read(good).images)
    times = []
    for size in (1 << 19, 1 << 21):
        started = time.process_time()
        inflate.check_gzip([empty * (size // len(empty))], 1, "case", "x")
        times.append(time.process_time() - started)
    assert times[1] < 10 * times[0], "4 times the members took 16 times the time, or more"


@pytest.mark.parametrize("block", [1, 7, 1000, 1 << 22])
def test_a_file_is_hashed_and_held_against_its_checksums_wherever_its_blocks_end(tmp_path, good, monkeypatch, block):
    """bgzip writes many gzip members; what follows the last is padding."""
    for module in (nifti, inflate):
        monkeypatch.setattr(module, "BLOCK", block)
    content = gzip.decompress(Path(good.path).read_bytes())
    members = b"".join(gzip.compress(content[start : start + 900], 1) for start in range(0, 9000, 900))
    path = tmp_path / "x.nii.gz"
    for whole in (members, members + bytes(3000)):
        path.write_bytes(whole)
        assert hash_whole("case", path, 4) == hashlib.sha256(whole).hexdigest()
    path.write_bytes(members[:-30])
    with pytest.raises(TruncatedError, match="truncated"):
        hash_whole("case", path, 4)
    path.write_bytes(members[:-5] + bytes([members[-5] ^ 1]) + members[-4:])
    with pytest.raises(CaseError, match="damaged gzip"):
        hash_whole("case", path, 4)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(nifti.UNREADABLE, VolumeRef(str(tmp_path / "gone.nii.gz")))
    (tmp_path / "folder.nii.gz").mkdir()
    refused(nifti.UNREADABLE, VolumeRef(str(tmp_path / "folder.nii.gz")))


@pytest.mark.parametrize("shape", [(20, 20), (13, 11, 9, 4), (13, 11, 9, 1, 3)])
def test_a_wrong_shape_is_refused(tmp_path, shape):
    refused("wrong shape", save(np.ones(shape, np.int16), tmp_path / "x.nii.gz"))


def test_a_channel_that_the_file_lacks_is_refused(tmp_path):
    stack = save(np.stack([brain_array()] * 2, axis=-1), tmp_path / "x.nii.gz")
    refused(r"has 2 channel\(s\), number 3", VolumeRef(stack.path, 3))


def test_a_fourth_axis_of_one_is_accepted(tmp_path, good):
    assert np.array_equal(read(save(brain_array()[..., None], tmp_path / "x.nii.gz")).images, read(good).images)


def test_colour_voxels_are_refused(tmp_path):
    colour = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    refused("voxels of type", save(colour, tmp_path / "x.nii.gz"))


def test_an_empty_brain_is_refused(tmp_path):
    refused("empty brain", save(np.zeros(SHAPE, np.int16), tmp_path / "x.nii.gz"))


def test_a_brain_without_contrast_is_refused(tmp_path):
    refused("no contrast", save((brain_array() > 0).astype(np.int16), tmp_path / "x.nii.gz"))


def test_a_volume_that_is_not_skull_stripped_is_refused(tmp_path):
    noise = np.random.default_rng(0).normal(300, 50, SHAPE).astype(np.float32)
    refused("skull-stripped", save(noise, tmp_path / "x.nii.gz"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    array = brain_array(np.float32)
    array[5, 5, 4] = bad
    refused("1 voxels of slices 2 to 6 are NaN or infinite", save(array, tmp_path / "x.nii.gz"))


@pytest.mark.parametrize(
    ("dtype", "factor", "offset", "match"),
    [
        (np.float64, 1e300, 0, r"beyond 3\.4e\+38"),
        (np.float64, -1e300, 0, r"beyond 3\.4e\+38"),
        (np.float64, 1e305, 0, r"beyond 3\.4e\+38"),  # their sum is infinite
        (np.float64, 1e-300, 0, "cannot be distinguished in 32 bits"),
        (np.float64, 1, 1e12, "cannot be distinguished in 32 bits"),
        (np.float32, 1e-42, 0, "cannot be distinguished in 32 bits"),
        (np.int64, 1, 1 << 55, "cannot be distinguished in 32 bits"),
        (np.uint64, 1, 1 << 60, "cannot be distinguished in 32 bits|no contrast"),
        (np.int32, 1, 1 << 30, "cannot be distinguished in 32 bits"),
    ],
)
def test_values_that_32_bits_cannot_hold_are_refused_and_make_no_black_picture(tmp_path, dtype, factor, offset, match):
    array = brain_array(np.float64).astype(dtype)
    array = np.where(array > 0, array * dtype(factor) + dtype(offset), dtype(0)).astype(dtype)
    refused(match, save(array, tmp_path / "x.nii.gz"))


@pytest.mark.parametrize(("dtype", "factor"), [(np.int64, 1 << 50), (np.uint64, 1 << 52), (np.float32, 1e35)])
def test_large_values_of_which_32_bits_keep_the_contrast_give_the_same_picture(tmp_path, good, dtype, factor):
    large = save(brain_array().astype(dtype) * dtype(factor), tmp_path / "x.nii.gz")
    assert np.array_equal(read(large).images, read(good).images)


def test_nan_outside_the_slices_read_does_no_harm(tmp_path, good):
    array = brain_array(np.float32)
    array[5, 5, 8] = np.nan
    assert np.array_equal(read(save(array, tmp_path / "x.nii.gz")).images, read(good).images)


def test_a_volume_shorter_than_the_range_is_refused_naming_its_slices_and_the_setting(good):
    for first in (5, 20):
        error = refused("has axial slices 0 to 8, not all of", good, first_slice=first, last_slice=30)
        assert "data.first_slice" in error.reason and "data.last_slice" in error.reason


def test_a_volume_below_the_scaling_reference_is_refused_naming_the_setting(good):
    refused(r"data\.scaling\.reference_first", good, scaling={"reference_first": 60, "reference_last": 100})


def test_a_volume_without_orientation_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(brain_array(), None), tmp_path / "x.nii.gz")
    refused("no orientation", VolumeRef(str(tmp_path / "x.nii.gz")))


def test_an_affine_that_is_no_orientation_is_refused(tmp_path):
    image = nib.Nifti1Image(brain_array(), AFFINE)
    image.header["srow_x"] = np.nan
    raw = image.header.binaryblock + b"\x00" * 4 + brain_array().tobytes(order="F")
    refused("affine", write(tmp_path / "x.nii", raw))


def test_a_mask_of_another_shape_is_refused(tmp_path, good):
    half = np.diag([2.0, 2.0, 2.0, 1.0])
    refused(
        r"seg\.nii\.gz: mask of shape \(7, 6, 5\) for a volume of \(13, 11, 9\)",
        good,
        save(mask_array()[::2, ::2, ::2], tmp_path / "seg.nii.gz", AFFINE @ half),
    )


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path, good):
    refused("places it", good, save(mask_array(), tmp_path / "seg.nii.gz", np.diag([1.0, 1.5, 4.0, 1.0])))


@pytest.mark.parametrize("value", [-1, 0.5, np.nan])
def test_mask_values_that_are_no_labels_are_refused(tmp_path, good, value):
    labels = mask_array().astype(np.float32)
    labels[4, 4, 4] = value
    refused("no labels", good, save(labels, tmp_path / "seg.nii.gz"))


def test_a_truncated_mask_is_refused_naming_the_mask(tmp_path, good):
    save(np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8), tmp_path / "x.nii.gz")
    refused(r"seg\.nii\.gz", good, write(tmp_path / "seg.nii.gz", (tmp_path / "x.nii.gz").read_bytes()[:-50]))


def test_the_error_survives_a_process_boundary(good):
    error = refused("axial", good, first_slice=5, last_slice=30)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_filesystem_that_fails_for_a_moment_does_not_reject_the_case(good, monkeypatch):
    """An I/O error cannot be had from a sound disk on demand, so the read itself is made to fail."""

    def fail(_path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(nifti, "open_regular", fail)
    with pytest.raises(StoreError, match="run the same command again") as raised:
        open_nifti("case", good, 4)
    assert isinstance(raised.value.__cause__, OSError)
