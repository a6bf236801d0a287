"""Headers: nibabel's affine wherever every reader has the same, a refusal that says why wherever they differ."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_read import brain_array, read, save

from medad_core.data.cases import VolumeRef
from medad_core.data.nifti_header import Header, parse_header
from medad_core.errors import CaseError

SHAPE = (13, 11, 9)
REAL_FILES = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

edges = st.floats(0.25, 6, width=32)
quaternions = st.tuples(*[st.floats(-1, 1, width=32)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1)
origins = st.tuples(*[st.floats(-200, 200, width=32)] * 3)


@st.composite
def qforms(draw) -> np.ndarray:
    """A rotation, mirrored or not, with edges and an origin: what a qform can say."""
    quaternion = np.array(draw(quaternions))
    affine = np.eye(4)
    affine[:3, :3] = nib.quaternions.quat2mat(quaternion / np.linalg.norm(quaternion)) * draw(
        st.tuples(edges, edges, edges)
    )
    affine[:3, 2] *= draw(st.sampled_from((1, -1)))
    affine[:3, 3] = draw(origins)
    return affine


def header_with(qform=None, sform=None, qform_code=1, sform_code=1, version=nib.Nifti1Header) -> nib.Nifti1Header:
    header = version()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    if qform is not None:
        header.set_qform(qform, 1)
        header["qform_code"] = qform_code
    if sform is not None:
        header.set_sform(sform, 1)
        header["sform_code"] = sform_code
    return header


def parse(header: nib.Nifti1Header) -> Header:
    return parse_header(header.binaryblock, "case", "x.nii")


def affine_of_nibabel(header: nib.Nifti1Header, folder: Path) -> np.ndarray:
    """As `nibabel.load` gives it for a real file. Raises what nibabel raises."""
    path = folder / "x.nii"
    path.write_bytes(header.binaryblock + bytes(4 + 2 * int(np.prod(SHAPE))))
    return nib.load(path).affine


@REAL_FILES
@given(
    qform=qforms(),
    signs=st.tuples(*[st.sampled_from((1, 1, 1, -1))] * 3),
    qfac=st.sampled_from((1.0, -1.0, 0.0, 0.5, 3.0, np.nan, np.inf)),
    stretch=st.floats(0.9999997, 1.0000005),
    qform_code=st.integers(1, 5),
    version=st.sampled_from((nib.Nifti1Header, nib.Nifti2Header)),
)
def test_a_qform_alone_gives_nibabels_affine(tmp_path, qform, signs, qfac, stretch, qform_code, version):
    header = header_with(qform, qform_code=qform_code, version=version)
    header["pixdim"][0] = qfac
    header["pixdim"][1:4] *= signs
    for name in ("quatern_b", "quatern_c", "quatern_d"):
        header[name] = header[name] * stretch
    try:
        expected = affine_of_nibabel(header, tmp_path)
    except ValueError:  # a quaternion that is too long for it
        with pytest.raises(CaseError, match="longer than 1"):
            parse(header)
        return
    parsed = parse(header)
    assert np.array_equal(parsed.affine, expected)
    assert parsed.affine_source == "qform"


@REAL_FILES
@given(
    sform=qforms(),
    qform=qforms(),
    same=st.booleans(),
    codes=st.tuples(st.integers(-1, 7), st.integers(-1, 7)),
    qfac=st.sampled_from((None, None, 0.0, -2.0)),
)
def test_any_header_gives_nibabels_affine_or_is_refused_for_a_reason_that_holds(
    tmp_path, sform, qform, same, codes, qfac
):
    sform_code, qform_code = codes
    header = header_with(qform, qform if same else sform, qform_code, sform_code)
    if qfac is not None:
        header["pixdim"][0] = qfac
    expected = affine_of_nibabel(header, tmp_path)
    known = {code for code in codes if 1 <= code <= 5}
    try:
        parsed = parse(header)
    except CaseError as error:
        if "readers take for" in error.reason:
            assert qfac == -2
        else:
            assert "sform" in error.reason and "qform" in error.reason and min(codes) > 0
            assert not same or qfac is not None
    else:
        assert np.array_equal(parsed.affine, expected)
        assert parsed.has_orientation == bool(known)


@REAL_FILES
@given(affine=qforms(), axis=st.integers(0, 2), millimetres=st.floats(-3, 3), degrees=st.floats(-3, 3))
def test_two_affines_may_differ_by_1_mm_at_a_corner_and_by_1_degree(affine, axis, millimetres, degrees):
    turned = affine.copy()
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turned[:3, :3] = turn @ affine[:3, :3]
    turned[axis, 3] += millimetres
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in SHAPE], [1], indexing="ij")).reshape(4, -1)
    distance = np.linalg.norm(((affine - turned) @ corners)[:3], axis=0).max()
    header = header_with(turned, affine)
    if distance < 0.999 and abs(degrees) < 0.999 - 1e-3:
        assert parse(header).affine_source == "sform"
    elif distance > 1.001:
        with pytest.raises(CaseError, match=r"sform \(.+\) and its qform \(.+\) disagree by \d.*; make them equal"):
            parse(header)


def test_two_affines_that_differ_by_an_angle_alone_are_refused():
    """Thin voxels: a turn by 2 degrees moves no corner of 1 mm by a whole one."""
    affine = np.diag([-0.2, -0.2, 0.2, 1.0])
    turned = affine.copy()
    turned[:2, :2] = 0.2 * np.array([[-np.cos(0.035), np.sin(0.035)], [-np.sin(0.035), -np.cos(0.035)]])
    with pytest.raises(CaseError, match=r"disagree by 0\.1 mm at a corner and 2\.0 degrees"):
        parse(header_with(turned, affine))


def test_a_mirrored_qform_is_refused_naming_both():
    with pytest.raises(CaseError) as caught:
        parse(header_with(np.diag([1.0, -1, 1, 1]), np.diag([-1.0, -1, 1, 1])))
    assert "sform (LPS, 1 x 1 x 1 mm" in caught.value.reason and "qform (RPS, 1 x 1 x 1 mm" in caught.value.reason
    assert "\n" not in caught.value.reason


@pytest.mark.parametrize("qfac", [-2.0, -0.5, -np.inf])
def test_a_qfac_that_readers_take_differently_is_refused_only_where_the_qform_counts(qfac):
    header = header_with(np.diag([-1.0, -1, 1, 1]))
    header["pixdim"][0] = qfac
    with pytest.raises(CaseError, match="qfac"):
        parse(header)
    header.set_sform(np.diag([-1.0, -1, 1, 1]), 1)
    assert parse(header).affine_source == "sform"


def test_an_edge_of_zero_is_refused_unless_its_axis_has_one_voxel(tmp_path):
    header = header_with(np.diag([-1.0, -1, 1, 1]))
    header["pixdim"][3] = 0
    with pytest.raises(CaseError, match="affine does not give an orientation"):
        parse(header)
    header["dim"][3] = 1
    assert np.array_equal(parse(header).affine, affine_of_nibabel(header, tmp_path))


@pytest.mark.parametrize("codes", [(0, 0), (-1, 0), (0, 9), (7, 7)])
def test_a_volume_whose_codes_mean_nothing_is_refused(tmp_path, codes):
    image = nib.Nifti1Image(brain_array(), np.diag([-1.0, -1, 4, 1]))
    image.header["sform_code"], image.header["qform_code"] = codes
    path = tmp_path / "x.nii"
    path.write_bytes(header_block(image) + bytes(4) + brain_array().tobytes(order="F"))
    with pytest.raises(CaseError, match="no orientation"):
        read(VolumeRef(str(path)))


@pytest.mark.parametrize("change", ["qfac 0", "qform alone", "sform alone", "negative edges", "five axes"])
def test_headers_that_every_reader_mends_give_the_same_pictures(tmp_path, change):
    affine = np.diag([-1.0, -1, 4, 1])
    plain = read(save(brain_array(), tmp_path / "plain.nii", affine))
    image = nib.Nifti1Image(brain_array(), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    if change != "sform alone":
        image.header["sform_code"] = 0
    else:
        image.header["qform_code"] = 0
    if change == "qfac 0":
        assert image.header["pixdim"][0] == 1
        image.header["pixdim"][0] = 0
    if change == "negative edges":
        image.header["pixdim"][1:4] *= -1
    if change == "five axes":
        image.header["dim"][0] = 5
        image.header["dim"][4:6] = 1
    path = tmp_path / "x.nii"
    path.write_bytes(header_block(image) + bytes(4) + brain_array().tobytes(order="F"))
    mended = read(VolumeRef(str(path)))
    assert np.array_equal(mended.images, plain.images)
    assert mended.stored_orientation == "LPS"


def header_block(image: nib.Nifti1Image) -> bytes:
    image.header["magic"] = b"n+1"
    image.header["vox_offset"] = 352
    return image.header.binaryblock


@pytest.mark.parametrize("sform_code", [6, 9])
def test_a_code_that_only_some_readers_know_needs_affines_that_agree(sform_code):
    """nibabel takes the qform here, the reference library the sform."""
    lps, ras = np.diag([-1.0, -1, 1, 1]), np.diag([1.0, 1, 1, 1])
    assert parse(header_with(lps, lps, sform_code=sform_code)).affine_source == "qform"
    with pytest.raises(CaseError, match="disagree"):
        parse(header_with(lps, ras, sform_code=sform_code))
