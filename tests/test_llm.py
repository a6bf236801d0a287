"""Location, grammar, prompts, and the engines on the real packaged LLM with the embedded converter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medad_core.config import LLMSettings, Settings, load_settings
from medad_core.data.findings import find
from medad_core.data.location import CELLS, anatomical, cell_of, true_cell
from medad_core.errors import UsageError
from medad_core.llm.engine import check_engine, llm_fingerprint, llm_folder, open_engine
from medad_core.llm.grammar import GRAMMAR, NO, answer_to, parse, yes
from medad_core.llm.parallel import gpu_shares
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation
from medad_core.llm.questions import Question
from medad_core.llm.sizing import gpu_share, model_size, resolved_dtype
from medad_core.llm.transformers_engine import shared_prefix
from medad_core.metrics.location import cell_steps
from medad_core.models.memory import free_memory
from medad_core.models.weights import load_converter, weights_folder
from medad_core.run.fingerprints import answers_fingerprint, shared_fingerprint

PROMPTS = 40


@pytest.fixture(scope="module")
def prompt():
    return Prompt(llm_folder("smollm2-135m"))


@pytest.fixture(scope="module")
def converter():
    settings = Settings()
    return load_converter(
        weights_folder("embedded"), {**llm_fingerprint("smollm2-135m"), **shared_fingerprint(settings)}
    )


def lesion_grids() -> tuple[np.ndarray, list[str | None]]:
    """40 maps, every fifth without lesion, the others with a clear blob somewhere."""
    rng = np.random.default_rng(0)
    grids, cells = [], []
    for index in range(PROMPTS):
        grid = np.full((4, 16, 16), -24, np.float32)
        row, column = rng.integers(1, 12, 2)
        if index % 5:
            grid[:, row : row + 3, column : column + 3] = rng.uniform(8, 20)
        grids.append(grid)
        cells.append(cell_of(row + 1.5, column + 1.5, 16, 16) if index % 5 else None)
    return np.stack(grids), cells


def speak(prompt: Prompt, prompts: np.ndarray, sentences: Sequence[str] = (), **changes) -> list[Generation]:
    """Answers of the Transformers engine."""
    engine = open_engine(prompt, LLMSettings(engine="transformers", **changes), prompts.shape[1])
    try:
        return engine.generate(prompts, sentences)
    finally:
        engine.close()


def meaningless_prompts(prompt: Prompt) -> np.ndarray:
    """8 prompts whose soft tokens are noise, so that the LLM talks freely."""
    noise = np.random.default_rng(3).normal(0, 0.136, (8, 9, prompt.width)).astype(np.float16)
    return prompt.assemble(np.zeros((0, prompt.width), np.float32), noise)


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
    """256 x 176: 40 black columns on either side, so the outer thirds of the square end at column 45.3 of the slice."""
    assert cell_of(128, 45, 256, 176) == "left" and cell_of(128, 46, 256, 176) == "center"
    mask = np.zeros((256, 176), bool)
    mask[128, 45] = True
    assert find(mask, np.ones_like(mask), 1.0).cell == true_cell(mask) == "center"


def test_corner_has_three_neighbours_and_the_center_eight():
    steps = cell_steps(["top left"] * 9, CELLS)
    assert {cell for cell, step in zip(CELLS, steps, strict=True) if step == 1} == {"top", "left", "center"}
    assert (cell_steps(["center"] * 9, CELLS) == 1).sum() == 8


@pytest.mark.parametrize("text", list(GRAMMAR))
def test_every_sentence_of_the_grammar_parses_to_itself(text):
    answer = parse(f" {text}\n")
    assert answer_to(answer.location if answer.verdict == "yes" else None) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No",
        "Now, there is an anomaly.",
        NO[:-1],
        yes("top") + " Yes.",
        "Yes, there is an anomaly at the middle of the image.",
    ],
)
def test_anything_else_does_not_parse(text):
    assert parse(text) is None


def test_prompt_is_constant_text_knowledge_map_and_header_in_this_order(prompt):
    knowledge, maps = (
        np.full((8, prompt.width), 2, np.float32),
        np.stack([np.full((9, prompt.width), value, np.float32) for value in (3, 4)]),
    )
    whole = prompt.assemble(knowledge, maps)
    before = len(prompt.pieces[0])
    assert whole.shape == (2, before + 8 + 9 + len(prompt.pieces[-1]), prompt.width)
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
    tokens = model.generate(
        inputs_embeds=torch.from_numpy(prompts),
        attention_mask=torch.ones(prompts.shape[:2]),
        max_new_tokens=24,
        do_sample=False,
    )
    expected = prompt.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    given = speak(prompt, prompts, batch_size=4)
    assert [answer.text for answer in given] == expected


@pytest.mark.parametrize("structured", [False, True])
def test_drafts_change_no_answer_and_save_most_steps(prompt, converter, structured, monkeypatch):
    from medad_core.llm import transformers_engine

    grids, _ = lesion_grids()
    soft = converter(torch.from_numpy(grids[:10])).numpy()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), soft)
    noise = meaningless_prompts(prompt)[:4, -prompts.shape[1] :]
    noise = np.pad(noise, ((0, 0), (prompts.shape[1] - noise.shape[1], 0), (0, 0)))
    mixed = np.concatenate([prompts[:4], noise])
    given = open_engine(prompt, LLMSettings(engine="transformers", structured=structured), prompts.shape[1])
    steps: list[int] = []
    seen = given.model.register_forward_hook(lambda _module, _inputs, out: steps.append(out.logits.shape[1]))
    drafted, saved = given.generate(prompts), len(steps)
    talked = given.generate(mixed)
    monkeypatch.setattr(transformers_engine, "can_be_cut", lambda _cache: False)
    steps.clear()
    assert given.generate(prompts) == drafted
    assert set(steps) == {1} and len(steps) > 1.5 * saved
    assert given.generate(mixed) == talked
    assert {answer.tokens for answer in drafted} != {1}
    seen.remove()
    given.close()


def test_answers_follow_the_map(prompt, converter):
    """Clear drawn lesions: the sentence must come from the map.

    A converter that ignores the map would name the cell by luck in 1 of 9.
    """
    grids, cells = lesion_grids()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids)).numpy())
    answers = speak(prompt, prompts)
    parsed = [parse(answer.text) for answer in answers]
    assert all(parsed), "every answer parses"
    exact = [
        answer.location == cell for answer, cell in zip(parsed, cells, strict=True) if answer.verdict == "yes" and cell
    ]
    assert np.mean(exact) > 0.7 and len(exact) > 20
    assert [answer.p_yes > 0.5 for answer in answers] == [answer.verdict == "yes" for answer in parsed]


_VLLM = """
import json, sys
import numpy as np
from medad_core.config import LLMSettings
from medad_core.llm.engine import llm_folder, open_engine
from medad_core.llm.prompt import Prompt
from medad_core.llm.questions import Question

if __name__ == "__main__":
    prompt, settings = Prompt(llm_folder("smollm2-135m")), LLMSettings(engine="vllm")
    free, meaningless = np.load(sys.argv[1]), np.load(sys.argv[2])
    engine = open_engine(prompt, settings, free.shape[1])
    generated, generation = [], engine._generation
    def counted(output, held):
        generated.append(len(output.outputs[0].token_ids))
        return generation(output, held)
    engine._generation = counted
    answers = [engine.generate(free)]
    engine.settings = settings.model_copy(update={"structured": True})
    answers.append(engine.generate(meaningless))
    answers.append(engine.generate(meaningless, tuple(Question("size").answers)))
    engine.close()
    rows = [[[answer.text, answer.p_yes, answer.finish_reason, answer.tokens] for answer in batch] for batch in answers]
    assert generated == [answer.tokens for batch in answers for answer in batch], "more was generated than is counted"
    print("ANSWERS" + json.dumps(rows))
"""


def test_vllm_and_transformers_give_the_same_greedy_answers(prompt, converter, tmp_path):
    """Free, and held to the sentences of the template or of a question.

    In a process of its own: vLLM takes half a minute to import and is not meant to share one.
    """
    if not importlib.util.find_spec("vllm"):
        pytest.skip("vllm is not installed")
    grids, _ = lesion_grids()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids)).half().numpy())
    np.save(tmp_path / "prompts.npy", prompts)
    np.save(tmp_path / "meaningless.npy", meaningless_prompts(prompt))
    done = subprocess.run(
        [sys.executable, "-c", _VLLM, str(tmp_path / "prompts.npy"), str(tmp_path / "meaningless.npy")],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.split("ANSWERS")[1])
    sizes = tuple(Question("size").answers)
    given = [
        speak(prompt, prompts),
        speak(prompt, meaningless_prompts(prompt), structured=True),
        speak(prompt, meaningless_prompts(prompt), sizes, structured=True),
    ]
    assert {answer.text for answer in given[2]} <= set(sizes)
    for ours, rows in zip(given, theirs, strict=True):
        assert [row[0] for row in rows] == [answer.text for answer in ours]
        assert [row[2:] for row in rows] == [[answer.finish_reason, answer.tokens] for answer in ours]
        if ours is not given[2]:  # p(yes) has no meaning where no sentence begins so
            np.testing.assert_allclose([row[1] for row in rows], [answer.p_yes for answer in ours], atol=1e-3)


def test_answers_held_to_the_grammar_are_of_it_even_where_the_llm_would_talk(prompt):
    prompts = meaningless_prompts(prompt)
    free, held = speak(prompt, prompts), speak(prompt, prompts, structured=True)
    assert not all(parse(answer.text) for answer in free), "the test would not notice a constraint that does nothing"
    assert all(answer.text in GRAMMAR and answer.finish_reason == "stop" for answer in held)
    assert [answer.p_yes for answer in held] == pytest.approx([answer.p_yes for answer in free], abs=1e-5)


def test_the_grammar_changes_nothing_where_the_llm_keeps_to_it(prompt, converter):
    grids, _ = lesion_grids()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids[:4])).numpy())
    free = speak(prompt, prompts)
    held = speak(prompt, prompts, structured=True)
    assert all(parse(answer.text) for answer in free)
    assert {parse(answer.text).verdict for answer in free} == {"yes", "no"}
    assert [(one.text, one.finish_reason) for one in held] == [(one.text, one.finish_reason) for one in free]
    assert [one.p_yes for one in held] == pytest.approx([one.p_yes for one in free], abs=1e-5)
    assert all(one.tokens < other.tokens for one, other in zip(held, free, strict=True))


def test_an_answer_that_is_held_to_the_grammar_ends_where_it_is_decided(prompt, converter):
    grids, _ = lesion_grids()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids[::5])).numpy())
    engine = open_engine(prompt, LLMSettings(engine="transformers", structured=True), prompts.shape[1])
    steps: list[int] = []
    seen = engine.model.register_forward_hook(lambda *_: steps.append(1))
    answers = engine.generate(prompts)
    seen.remove()
    engine.close()
    assert {answer.text for answer in answers} == {NO} and {answer.tokens for answer in answers} == {1}
    assert len(steps) == 1, "No is decided by its first token"


def test_two_copies_of_the_llm_answer_like_one_and_in_order(prompt, converter):
    grids, _ = lesion_grids()
    prompts = prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids[:5])).numpy())
    one, two = speak(prompt, prompts), speak(prompt, prompts, data_parallel_size=2)
    assert [answer.text for answer in two] == [answer.text for answer in one] and len(
        {answer.text for answer in one}
    ) > 2
    assert [answer.p_yes for answer in two] == pytest.approx([answer.p_yes for answer in one], abs=1e-4)


def test_every_copy_gets_gpus_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert gpu_shares(2, 2) == ["4,5", "6,7"] and gpu_shares(4, 1) == ["4", "5", "6", "7"]


def test_gpus_that_are_not_there_are_refused_before_any_work():
    many = torch.cuda.device_count() + 1
    if importlib.util.find_spec("vllm"):
        with pytest.raises(UsageError, match=rf"{max(many, 2)} × 1 GPUs are asked for"):
            check_engine(LLMSettings(engine="vllm", tensor_parallel_size=max(many, 2)))
    with pytest.raises(UsageError, match=r"llm\.tensor_parallel_size: engine transformers"):
        check_engine(LLMSettings(engine="transformers", tensor_parallel_size=2))


def test_dtype_and_grammar_are_in_the_fingerprint_of_answers_and_defaults_leave_it_as_it_was():
    plain = answers_fingerprint(Settings())
    assert plain.keys() == {"llm", "llm_sha256", "max_new_tokens"}
    changed = answers_fingerprint(
        load_settings(None, ["llm.dtype=bfloat16", "llm.structured=true", "llm.max_sequences=7"])
    )
    assert changed == plain | {"llm_dtype": "bfloat16", "structured": "true"}


def test_rules_by_size_come_from_headers(prompt, tmp_path):
    """SmolLM2 has 134.5 million parameters, 30 layers, 3 key-value heads of 64.

    The large one is a header over a file of holes.
    """
    small = model_size(prompt.folder)
    assert small.parameters == 134_515_008 and small.cache_numbers == 2 * 30 * 3 * 64
    assert (small.sequences, resolved_dtype(prompt.folder, "auto"), resolved_dtype(prompt.folder, "bfloat16")) == (
        256,
        "float32",
        "bfloat16",
    )
    side, config = (
        46_000,
        {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32},
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    for kind, expected in (("F16", "float16"), ("BF16", "bfloat16")):
        header = json.dumps(
            {"w": {"dtype": kind, "shape": [side, side], "data_offsets": [0, 2 * side * side]}}
        ).encode()
        with (tmp_path / "model.safetensors").open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.truncate(8 + len(header) + 2 * side * side)
        large = model_size(tmp_path)
        assert (large.parameters, large.sequences, resolved_dtype(tmp_path, "auto")) == (side * side, 128, expected)
    # 2.1 billion parameters in 16 bits, and 128 prompts of 130 positions at half a megabyte each, and 4 GiB.
    needed = large.bytes_needed("bfloat16", 128, 130)
    assert needed == 2 * (side * side + 262_144 * 128 * 130) + 4 * 2**30
    assert gpu_share(needed, 2 * needed, 1) == 0.5 and gpu_share(needed, needed, 1) == 0.9
    assert gpu_share(needed, 2 * needed, 2) < 0.5


def test_an_encoder_out_of_use_is_freed_before_the_engine_starts():
    """Its hooks make it a cycle, so it outlives its last name until the collector comes."""
    from medad_core.models.encoder import load_encoder

    encoder = load_encoder("dinov2-small")
    encoder.encode(np.zeros((1, 32, 32), np.uint8))
    gone = weakref.ref(encoder)
    del encoder
    free_memory()
    assert gone() is None
