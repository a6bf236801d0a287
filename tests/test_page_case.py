"""The page of a case, in a real browser from the disk: its viewer, its keys, its layers, its report."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from pages import (
    FORMULA,
    HEALTHY,
    HOSTILE,
    PHANTOM,
    names,
    open_case,
    open_index,
    wait_for_viewer,
)
from playwright.sync_api import Page

from medad_core.media import file_name
from medad_core.models.decoder import render_map
from medad_core.report.viewer import case_volumes, outline, picture_axes
from medad_core.run.run import Run
from medad_core.stages.case_reports import case_report_of
from medad_core.stages.rows import grids_of, images_of, windows_of

pytest_plugins = ("prefect_harness", "pages")


def pixels(page: Page) -> bytes:
    """What the viewer shows, once two pictures in a row are the same."""
    before = b""
    while (now := page.locator(".screen").screenshot()) != before:
        before = now
    return now


def test_a_case_opens_from_the_list_and_goes_back_to_the_list_as_it_was(run_folder, watch):
    watched = watch()
    page = open_index(watched, run_folder, "finding=map+and+language+model&sort=case")
    listed = names(page)
    assert len(listed) >= 2
    page.click("#rows a >> nth=0")
    wait_for_viewer(page)
    assert page.inner_text("#place") == f"1 of {len(listed)}" and page.get_attribute("#before", "href") is None
    assert page.inner_text(".title .id") == listed[0]
    page.click("#after")
    wait_for_viewer(page)
    assert page.inner_text(".title .id") == listed[1]
    page.keyboard.press("p")
    page.wait_for_function("name => document.querySelector('.title .id')?.textContent === name", arg=listed[0])
    page.click("#back")
    page.wait_for_selector("#rows tr")
    assert names(page) == listed and "sort=case" in page.url
    watched.assert_quiet(run_folder / "report")


def test_arrow_keys_move_through_the_slices_and_layers_change_what_is_seen(run_folder, watch):
    watched = watch()
    page = open_case(watched, run_folder, HOSTILE)
    look_at = case_report_of(Run.reopen(str(run_folder)), HOSTILE).look_at
    assert page.inner_text("#number") == str(look_at)
    page.select_option("#planes", "axial")
    page.keyboard.press("Home")
    shown = {look_at: pixels(page)}
    page.locator("body").press("PageDown")
    assert page.inner_text("#number") == "60"
    shown[60] = pixels(page)
    for number in (61, 62, 62):
        page.keyboard.press("ArrowUp")
        assert page.inner_text("#number") == str(number)
    shown[62] = pixels(page)
    assert len(set(shown.values())) == len(shown)
    page.locator("#viewer").focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#number") == "61" == page.input_value("#slice")
    page.locator("#viewer").blur()  # which has a ring while it has the focus
    page.keyboard.press("Home")
    whole = pixels(page)
    assert whole == shown[look_at]
    without = {}
    for layer in ("map", "found", "expert"):
        page.uncheck(f"#{layer}")
        without[layer] = pixels(page)
        page.check(f"#{layer}")
    assert len({whole, *without.values()}) == 4
    page.locator("#opacity").fill("20")
    assert pixels(page) != whole and page.evaluate("document.getElementById('scale').style.opacity") == "0.2"
    page.select_option("#planes", "three")
    assert pixels(page) != whole
    watched.assert_quiet(run_folder / "report")


def test_the_report_of_the_case_stands_beside_its_viewer(run_folder, watch):
    page = open_case(watch(), run_folder, HOSTILE)
    text = page.inner_text(".read")
    report = case_report_of(Run.reopen(str(run_folder)), HOSTILE)
    assert report.impression[0] in text and report.key_slices[0].statements[0].answer in text
    assert "Not a medical device" in page.inner_text("header")
    look, read = page.locator(".look").bounding_box(), page.locator(".read").bounding_box()
    assert read["x"] > look["x"] + look["width"] - 1
    assert [page.locator(".scale").inner_text()[at] for at in (0, -1)] == ["0", "1"]


def test_a_phantom_is_called_one_in_the_list_and_on_its_page_and_no_other_case_is(run_folder, watch):
    page = open_index(watch(), run_folder)
    assert "Generated pictures, no patients." in page.inner_text("header")
    assert page.locator("#rows tr", has_text="phantom, no patient").locator("a").all_text_contents() == [PHANTOM]
    assert "not a patient" in open_case(watch(), run_folder, PHANTOM).inner_text("header")
    assert "patient." not in open_case(watch(), run_folder, HOSTILE).inner_text("header")


def test_a_case_without_mask_has_no_outline_of_an_expert(run_folder, watch):
    watched = watch()
    page = open_case(watched, run_folder, FORMULA)
    assert page.locator("#expert").count() == 0 and page.locator("#found").count() == 1
    watched.assert_quiet(run_folder / "report")


def test_a_map_that_finds_nothing_has_a_page_and_no_outline(run_folder, watch):
    run = Run.reopen(str(run_folder))
    assert case_report_of(run, HEALTHY).found.lesions == 0
    watched = watch()
    page = open_case(watched, run_folder, HEALTHY)
    before = pixels(page)
    page.uncheck("#found")
    assert pixels(page) == before
    watched.assert_quiet(run_folder / "report")


def test_a_browser_without_webgl_says_so_and_shows_the_report(run_folder, launch):
    chromium = launch(["--no-sandbox", "--disable-3d-apis"])
    page = chromium.new_page()
    page.goto((run_folder / "report/cases" / f"{file_name(HOSTILE)}.html").as_uri())
    page.wait_for_selector("body[data-viewer=failed]")
    assert "It needs WebGL 2" in page.inner_text("#failed") and "Report of case" in page.inner_text(".read")
    page.keyboard.press("PageDown")
    assert page.inner_text("#number") == "60"  # strip and numbers go on
    chromium.close()


def decoded(run: Path, case_id: str, name: str) -> nib.Nifti1Image:
    import base64
    import gzip

    text = (run / "report/cases" / f"{file_name(case_id)}.js").read_text()
    volumes = json.loads(text.removeprefix("const shownCase = ").rstrip(";\n"))["volumes"]
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volumes[name])))


def test_the_viewer_has_the_slices_the_map_and_the_outlines_of_the_run_where_the_file_has_them(run_folder):
    run = Run.reopen(str(run_folder))
    slices, maps = run.stage("slices").read_case(HOSTILE), run.stage("maps").read_case(HOSTILE)
    flair, shown = decoded(run_folder, HOSTILE, "flair"), decoded(run_folder, HOSTILE, "map")
    assert nib.aff2axcodes(flair.affine) == ("R", "A", "S") and np.array_equal(flair.affine, shown.affine)
    images = images_of(slices)
    assert np.array_equal(np.asarray(flair.dataobj), images[:, ::-1, ::-1].transpose(2, 1, 0))
    windows = windows_of(maps)
    drawn = np.stack(
        [render_map(grid, 64, 64, None if windows is None else windows[at]) for at, grid in enumerate(grids_of(maps))]
    )
    turned = drawn[:, ::-1, ::-1].transpose(2, 1, 0)
    assert np.abs(shown.get_fdata() - turned).max() <= 0.5 / 255 + 1e-6
    found = np.asarray(decoded(run_folder, HOSTILE, "found").dataobj)
    assert np.array_equal(found > 0, outline(drawn >= 0.5)[:, ::-1, ::-1].transpose(2, 1, 0) > 0) and found.any()
    # The same place in the patient has the same voxel in the file that was screened.
    source = nib.load(next(Path(run.cohort.root).glob("BraTS2021_00000/*_flair.nii.gz")))
    voxels = np.argwhere(np.asarray(flair.dataobj) > 0)
    there = nib.affines.apply_affine(np.linalg.inv(source.affine) @ flair.affine, voxels).round().astype(int)
    assert (np.asarray(source.dataobj)[tuple(there.T)] > 0).mean() > 0.99


def test_an_outline_is_the_edge_of_a_mask_within_its_slice():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, 1:5, 1:5] = True
    masks[1, 0, 0] = True
    edge = outline(masks) > 0
    assert edge[0].sum() == 12 and not edge[0, 2:4, 2:4].any() and edge[1].sum() == 1
    assert not outline(np.zeros((1, 4, 4), bool)).any()


def test_a_case_whose_place_nobody_noted_keeps_its_sides():
    images = np.zeros((2, 3, 4), np.uint8)
    images[1, 0, 0] = 7  # superior, anterior, the patient's right
    volumes = case_volumes(images, images / 255, None, 0.5, 60, 61, picture_axes((1.0, 2.0, 3.0), None))
    assert volumes.expert is None and volumes.peak == (3, 2, 1)
    import base64
    import gzip

    flair = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(volumes.flair)))
    assert flair.header.get_zooms() == (2, 1, 3) and nib.aff2axcodes(flair.affine) == ("R", "A", "S")
    assert np.argwhere(np.asarray(flair.dataobj)).tolist() == [[3, 2, 1]]
