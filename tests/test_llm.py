"""Location, grammar, prompts, and the engines on the real packaged LLM with the embedded converter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medad_core.config import Settings
from medad_core.llm.answers import GRAMMAR, NO, answer_to, parse, yes
from medad_core.llm.engine import llm_fingerprint, llm_folder, open_engine
from medad_core.llm.location import CELLS, anatomical, cell_of, neighbours, true_cell
from medad_core.llm.prompt import Prompt
from medad_core.llm.transformers_engine import shared_prefix
from medad_core.models.weights import load_converter, weights_folder
from medad_core.stages.models import shared_fingerprint
from medad_core.training.maps import cell_at, draw, label_maps, move

PROMPTS = 40


@pytest.fixture(scope="module")
def prompt():
    return Prompt(llm_folder("smollm2-135m"))


@pytest.fixture(scope="module")
def converter():
    settings = Settings()
    return load_converter(weights_folder("embedded"), {**llm_fingerprint("smollm2-135m"), **shared_fingerprint(settings)})


def lesion_grids() -> tuple[np.ndarray, list[str | None]]:
    """40 maps, every fifth without lesion, the others with a clear blob somewhere."""
    rng = np.random.default_rng(0)
    grids, cells = [], []
    for index in range(PROMPTS):
        grid, centroid = draw(np.full((4, 16, 16), -24, np.float16), index % 5 != 0, rng)
        grids.append(grid)
        cells.append(cell_at(centroid))
    return np.stack(grids), cells


@given(st.floats(0, 239.999), st.floats(0, 239.999))
def test_cells_tile_the_picture(row, column):
    assert cell_of(row, column, 240, 240) == CELLS[3 * int(row // 80) + int(column // 80)]


def test_left_of_a_radiological_picture_is_the_patients_right():
    assert anatomical("top left") == "right anterior"
    assert anatomical("bottom right") == "left posterior"
    assert anatomical("center") == "central"


def test_true_cell_is_that_of_the_centroid_and_none_for_an_empty_mask():
    mask = np.zeros((9, 9), bool)
    assert true_cell(mask) is None
    mask[0, 8] = True
    assert true_cell(mask) == "top right"


def test_cells_of_an_oblong_slice_are_thirds_of_the_square_it_is_centred_on():
    """256 x 176: 40 black columns on either side, so the outer thirds of the square reach 45.3 columns into the slice."""
    assert cell_of(128, 45, 256, 176) == "left" and cell_of(128, 46, 256, 176) == "center"
    mask = np.zeros((1, 256, 176), bool)
    mask[0, 128, 45] = True
    labelled = label_maps(np.zeros((1, 4, 16, 16), np.float16), mask)
    assert cell_at(labelled.centroids[0]) == true_cell(mask[0]) == "center"


def test_corner_has_three_neighbours_and_the_center_eight():
    assert neighbours("top left") == {"top", "left", "center"}
    assert len(neighbours("center")) == 8


@pytest.mark.parametrize("text", list(GRAMMAR))
def test_every_sentence_of_the_grammar_parses_to_itself(text):
    answer = parse(f" {text}\n")
    assert answer_to(answer.location if answer.verdict == "yes" else None) == text


@pytest.mark.parametrize("text", ["", "No", "Now, there is an anomaly.", NO[:-1], yes("top") + " Yes.", "Yes, there is an anomaly at the middle of the image."])
def test_anything_else_does_not_parse(text):
    assert parse(text) is None


def test_prompt_is_constant_text_knowledge_map_and_header_in_this_order(prompt):
    knowledge, maps = np.full((8, prompt.width), 2, np.float32), np.stack([np.full((9, prompt.width), value, np.float32) for value in (3, 4)])
    whole = prompt.assemble(knowledge, maps)
    before = len(prompt.before)
    assert whole.shape == (2, before + 8 + 9 + len(prompt.after), prompt.width)
    assert (whole[:, before : before + 8] == 2).all() and (whole[1, before + 8 : before + 17] == 4).all()
    assert shared_prefix(whole) == before + 8


def test_prompt_embeddings_of_text_are_those_of_the_llm(prompt):
    tokens = prompt.answer_tokens(NO)
    assert prompt.tokenizer.decode(tokens[:-1]) == NO and tokens[-1] == prompt.end_tokens[0]
    torch.testing.assert_close(prompt.embed(tokens), prompt.embeddings[tokens])


def test_greedy_answers_are_those_of_transformers_own_generate(prompt, converter):
    from medad_core.llm.transformers_engine import load_llm

    grids, _ = lesion_grids()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids[:6])).numpy())
    model = load_llm(prompt.folder)
    tokens = model.generate(inputs_embeds=torch.from_numpy(prompts), attention_mask=torch.ones(prompts.shape[:2]), max_new_tokens=24, do_sample=False)
    expected = prompt.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    given = open_engine("transformers", prompt, max_new_tokens=24, batch_size=4).generate(prompts)
    assert [answer.text for answer in given] == expected


def test_answers_follow_the_map(prompt, converter):
    """Clear drawn lesions: the sentence must come from the map. A converter that ignores it could name the cell by luck in 1 of 9."""
    grids, cells = lesion_grids()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids)).numpy())
    answers = open_engine("transformers", prompt, max_new_tokens=24, batch_size=40).generate(prompts)
    parsed = [parse(answer.text) for answer in answers]
    assert all(parsed), "every answer parses"
    exact = [answer.location == cell for answer, cell in zip(parsed, cells, strict=True) if answer.verdict == "yes" and cell]
    assert np.mean(exact) > 0.7 and len(exact) > 20
    assert np.mean([(answer.p_yes > 0.5) == (said.verdict == "yes") for answer, said in zip(answers, parsed, strict=True)]) == 1


_VLLM = """
import json, sys
import numpy as np
from medad_core.llm.engine import llm_folder, open_engine
from medad_core.llm.prompt import Prompt

if __name__ == "__main__":
    prompt = Prompt(llm_folder("smollm2-135m"))
    engine = open_engine("vllm", prompt, max_new_tokens=24, batch_size=64)
    answers = engine.generate(np.load(sys.argv[1]))
    engine.close()
    print("ANSWERS" + json.dumps([[answer.text, answer.p_yes, answer.finish_reason, answer.tokens] for answer in answers]))
"""


def test_vllm_and_transformers_give_the_same_greedy_answers(prompt, converter, tmp_path):
    """In a process of its own: vLLM takes half a minute to import and is not meant to share one."""
    if not importlib.util.find_spec("vllm"):
        pytest.skip("vllm is not installed")
    grids, _ = lesion_grids()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids)).half().numpy())
    np.save(tmp_path / "prompts.npy", prompts)
    done = subprocess.run([sys.executable, "-c", _VLLM, str(tmp_path / "prompts.npy")], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.split("ANSWERS")[1])
    ours = open_engine("transformers", prompt, max_new_tokens=24, batch_size=64).generate(prompts)
    assert [row[0] for row in theirs] == [answer.text for answer in ours]
    assert [row[2:] for row in theirs] == [[answer.finish_reason, answer.tokens] for answer in ours]
    np.testing.assert_allclose([row[1] for row in theirs], [answer.p_yes for answer in ours], atol=1e-3)


def test_a_moved_map_keeps_its_lesion_under_its_centroid():
    grid, masks = np.full((1, 4, 16, 16), -20, np.float16), np.zeros((1, 240, 240), bool)
    grid[0, :, 3, 12], masks[0, 45:60, 180:195] = 20, True
    labelled = label_maps(grid, masks)
    for seed in range(20):
        moved, centroid = move(labelled.grids[0], labelled.centroids[0], np.random.default_rng(seed))
        at = np.argwhere(moved[0] > 0)
        assert len(at) and (np.abs((at + 0.5) / 16 - centroid) < 1e-6).all(1).any()
