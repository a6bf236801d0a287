"""NiiVue itself opens the documents, in a real browser, and has the voxels that were written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser import ARGUMENTS, chromium
from test_data_read import brain_array
from test_export import map_of, turned

from medad_core.export.niivue import NiivueDocuments

OPEN = """async (text) => {
    const viewer = new niivue.Niivue();
    await viewer.attachTo("viewer");
    const file = new File([text], "case.nvd");
    await viewer.loadDocument(await niivue.NVDocument.loadFromFile(file));
    return {
        volumes: viewer.volumes.map((volume) => ({
            name: volume.name, dims: Array.from(volume.hdr.dims), affine: volume.hdr.affine,
            type: volume.hdr.datatypeCode, values: Array.from(volume.img), colormap: volume.colormap,
            opacity: volume.opacity, shown: [volume.cal_min, volume.cal_max],
        })),
        title: viewer.document.title, isRadiological: viewer.opts.isRadiologicalConvention,
        hit: window.hit ?? null,
    };
}"""


@pytest.fixture
def page():
    script = Path(find_spec("nilearn").origin).parent / "_assets" / "js" / "niivue.umd.js"
    with chromium() as start:
        browser = start(ARGUMENTS)
        page = browser.new_page()
        page.set_content('<canvas id="viewer" width="200" height="200"></canvas>')
        page.add_script_tag(path=str(script))
        yield page
        browser.close()


def test_niivue_opens_a_document_and_has_volume_map_and_mask_as_they_were_written(page, tmp_path):
    hostile = "<img src=x onerror='window.hit = 1'>"
    image = nib.Nifti1Image(brain_array(), turned(0.2))
    values = np.random.default_rng(0).random(image.shape)
    case = map_of(tmp_path / "data", image, values, range(2, 5), case_id=hostile, phantom=True)
    out = tmp_path / "out"
    out.mkdir()
    NiivueDocuments(out).write(case)
    (document,) = out.glob("*.nvd")
    opened = page.evaluate(OPEN, document.read_text(encoding="utf-8"))
    volume, shown_map, mask = opened["volumes"]
    for layer, array, kind in ((volume, brain_array(), 4), (shown_map, case.values, 16), (mask, case.mask, 2)):
        assert layer["dims"][:4] == [3, *image.shape] and layer["type"] == kind
        assert np.allclose(layer["affine"], case.place.stored, atol=1e-5)
        assert np.array_equal(layer["values"], array.ravel(order="F"))
    assert [layer["colormap"] for layer in opened["volumes"]] == ["gray", "plasma", "green"]
    assert [layer["opacity"] for layer in opened["volumes"]] == [1, 0.5, 0.15]
    assert shown_map["shown"] == pytest.approx([0.1, 1]) and mask["shown"] == [0, 1]
    low, high = volume["shown"]
    assert 0 < low < high <= brain_array().max()
    assert opened["isRadiological"] and opened["hit"] is None
    assert "generated phantom" in opened["title"] and "Not a medical device" in opened["title"]
