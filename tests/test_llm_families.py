"""Causal LMs other than Llama's kind, through prompt, engine and training.

They are small, of random weights, with the packaged model's tokenizer.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import transformers

from medad_core.config import LLMSettings
from medad_core.config.train import ConverterTraining
from medad_core.data.location import CELLS
from medad_core.errors import WeightsError
from medad_core.llm.engine import llm_folder, open_engine
from medad_core.llm.grammar import NO, yes
from medad_core.llm.prompt import Prompt
from medad_core.llm.questions import Question
from medad_core.llm.transformers_engine import load_llm
from medad_core.models.converter import new_converter
from medad_core.training.converter import Batch, ConverterTrainer

WIDTH = 64
SIZES = {
    "vocab_size": 49152,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
FAMILIES = {
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=32),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES),
    "phi3": lambda: transformers.Phi3Config(
        **{name: value for name, value in SIZES.items() if name != "head_dim"}, pad_token_id=2
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=49152, n_embd=WIDTH, n_layer=2, n_head=4),
}


def write_llm(config, folder):
    """A model of random weights that a user could have downloaded."""
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in llm_folder("smollm2-135m").glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    template = llm_folder("smollm2-135m") / "chat_template.jinja"
    if template.is_file():
        shutil.copyfile(template, folder / template.name)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_llm(FAMILIES[request.param](), tmp_path_factory.mktemp(request.param))


@pytest.fixture
def prompts(folder):
    """Three prompts of constant text, knowledge and nine tokens of their own."""
    prompt = Prompt(folder)
    rng = np.random.default_rng(0)
    scale = float(prompt.embeddings.std())
    return prompt, prompt.assemble(scale * rng.standard_normal((8, WIDTH)), scale * rng.standard_normal((3, 9, WIDTH)))


def test_embeddings_are_those_the_model_itself_looks_up(folder):
    tokens = torch.tensor([5, 700, 40000])
    torch.testing.assert_close(Prompt(folder).embed(tokens.tolist()), load_llm(folder).get_input_embeddings()(tokens))


def test_answers_are_those_of_the_whole_forward_pass(folder, prompts):
    prompt, embedded = prompts
    engine = open_engine(prompt, LLMSettings(engine="transformers", max_new_tokens=6), embedded.shape[1])
    given, model, inputs = engine.generate(embedded), load_llm(folder), torch.from_numpy(embedded)
    with torch.inference_mode():
        first = model(inputs_embeds=inputs).logits[:, -1]
        for _ in range(6):
            spoken = model(inputs_embeds=inputs).logits[:, -1].argmax(-1)
            inputs = torch.cat([inputs, model.get_input_embeddings()(spoken)[:, None]], dim=1)
            given_tokens = inputs.shape[1] - embedded.shape[1]
    assert given_tokens == 6
    np.testing.assert_allclose(
        [answer.p_yes for answer in given],
        (first[:, prompt.yes_token] - first[:, prompt.no_token]).sigmoid(),
        atol=1e-5,
    )
    back = torch.cdist(inputs[:, embedded.shape[1] :], prompt.embeddings).argmin(-1)
    assert [answer.text for answer in given] == [prompt.read_answer(row)[0] for row in back.tolist()]


def test_a_converter_learns_from_the_logits_that_the_model_itself_gives(folder):
    prompt, llm = Prompt(folder), load_llm(folder)
    torch.manual_seed(1)
    converter = new_converter("compact", torch.randn(3, 20), WIDTH, float(prompt.embeddings.std()))
    trainer = ConverterTrainer(converter, llm, prompt, ConverterTraining(), seed=0)
    grids = torch.randn(3, 4, 16, 16)
    words, others = (Question(family).worded(1) for family in ("presence", "side"))
    asked_for = [(words, NO), (others, "The anomaly is in both hemispheres."), (words, yes(CELLS[0]))]
    given = list(trainer.answer_logits(Batch(grids, None, asked_for)))
    assert [places for places, _, _ in given] == [[0, 2], [1]]
    rows = {place: (logits[at], targets[at]) for places, logits, targets in given for at, place in enumerate(places)}
    for row, (question, answer) in enumerate(asked_for):
        logits, targets = rows[row]
        tokens = prompt.answer_tokens(answer)
        asked = torch.from_numpy(
            prompt.asking(question).assemble(
                converter.knowledge_tokens().detach().numpy(), converter(grids).detach().numpy()
            )
        )[row : row + 1]
        whole = llm(inputs_embeds=torch.cat([asked, prompt.embed(tokens[:-1])[None]], dim=1)).logits[0, -len(tokens) :]
        torch.testing.assert_close(logits[: len(tokens)], whole, atol=1e-4, rtol=1e-3)
        assert targets[: len(tokens)].tolist() == tokens
    trainer._loss(Batch(grids, None, asked_for)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in converter.parameters())


def test_what_is_no_causal_model_is_refused(tmp_path):
    write_llm(transformers.Qwen2Config(**SIZES), tmp_path)
    transformers.Dinov2Config().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="no causal language model"):
        Prompt(tmp_path)
