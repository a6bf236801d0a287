"""Fixtures that need Prefect: one real server a session, a tiny cohort, and one uninterrupted run of it.

A plugin, `pytest_plugins = ("prefect_harness",)`, and not part of conftest.py: tests without Prefect never import it.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medad_core.config import Settings, load_settings
from medad_core.models.view import View
from medad_core.run.run import Run
from medad_core.store.intact import TICK_NS

SIZE = 64
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # stored as BraTS stores: left, posterior, superior
# With 16 × 16 patches a map is the same to the bit in batches of any size, however a run was cut off and went on.
WEIGHTS = Path(__file__).parent / "versions" / "0.1.0" / "weights"
WORDS = (
    f"models.weights={WEIGHTS}",
    "data.first_slice=60",
    "data.last_slice=62",
    "data.levels=index",  # these volumes are no brains
    "data.cases_per_part=1",
    "models.threads=1",
    "llm.engine=transformers",
    "evaluate.bootstrap=20",
    "flow.retry_delay_s=0",
)


def write_case(root: Path, case_id: str, seed: int, tumour: range = range(61, 64)) -> None:
    """A textured ball with a bright lesion in the slices of `tumour`, BraTS 2021 layout, 64 voxels a side."""
    generator = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.arange(SIZE) - SIZE / 2] * 3, indexing="ij")
    brain = x**2 + y**2 + (z / 2) ** 2 < 26**2
    volume = np.where(brain, 300 + 20 * generator.standard_normal((SIZE,) * 3), 0)
    centre = generator.integers(-12, 12, 2)
    lesion = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 49
    lesion &= np.isin(np.arange(SIZE), list(tumour))[None, None, :]
    volume[lesion] += 300
    folder = root / case_id
    folder.mkdir(parents=True)
    for name, data in (("flair", volume.astype(np.float32)), ("seg", (lesion * 2).astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(data, AFFINE), folder / f"{case_id}_{name}.nii.gz")


def weights_for(folder: Path, view: View) -> Path:
    """The project's own decoder and converter in a new folder, as if the decoder was trained for `view`."""
    from medad_core.models.encoder import encoder_fingerprint
    from medad_core.models.loading import open_tensors
    from medad_core.models.weights import DECODER, load_decoder, save_decoder, weights_folder

    own = weights_folder("embedded")
    shutil.copytree(own, folder)
    with open_tensors(own / DECODER) as tensors:
        fits = json.loads(tensors.metadata()["fits"])
    fits_view = {**fits, **encoder_fingerprint("dinov2-small", view.image_pixels)}
    save_decoder(load_decoder(own, fits), folder, {name: fits_view[name] for name in fits}, view)
    return folder


def restate(path: Path, **facts: str) -> None:
    """Write other facts into the metadata of a safetensors file."""
    from safetensors.torch import load_file, save_file

    from medad_core.models.loading import open_tensors

    with open_tensors(path) as tensors:
        metadata = tensors.metadata()
    save_file(load_file(path), path, {**metadata, **facts})


def settle() -> None:
    """Wait until files that were just written have a stamp: those that are younger are read again the next time."""
    time.sleep(1.25 * TICK_NS / 1e9)


def break_case(root: Path, case_id: str) -> None:
    """Cut the volume of a case in half, as a broken download does."""
    path = root / case_id / f"{case_id}_flair.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@dataclass(frozen=True)
class Screened:
    """A run that nothing disturbed: three good cases and a truncated one."""

    data: str
    run: str
    words: tuple[str, ...]
    outcome: object

    @property
    def settings(self) -> Settings:
        return load_settings(None, self.words)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """URL of a Prefect server of this session alone, with a database of its own."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    home = tmp_path_factory.mktemp("prefect")
    with temporary_settings(updates={PREFECT_HOME: home}), prefect_test_harness(server_startup_timeout=180):
        yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    for number in range(4):
        write_case(root, f"BraTS2021_{number:05d}", seed=number, tumour=range(60 + number % 2, 64))
    break_case(root, "BraTS2021_00002")
    return root


def with_stages(data: Path, out: Path, settings: Settings, *names: str) -> Run:
    """A run of these stages alone, made without Prefect; the LLM is read by `answers` only."""
    from medad_core.stages.complete import complete_stage, plan_stage
    from medad_core.stages.screen import LoopExecutor

    with Run.held(str(data), str(out), settings) as run:
        for name in names:
            plan_stage(run, name)
            complete_stage(run, name, LoopExecutor(run, name))
    return run


@pytest.fixture(scope="session")
def screened(server, tiny_cohort, tmp_path_factory) -> Screened:
    from flows.screen import screen

    run = str(tmp_path_factory.mktemp("screened") / "run")
    settings = load_settings(None, WORDS)
    return Screened(str(tiny_cohort), run, WORDS, screen(str(tiny_cohort), run, settings))
