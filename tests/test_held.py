"""What is left of a sentence is not generated: whatever tokens an answer is cut into, and whatever reads it."""

from __future__ import annotations

from copy import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from medad_core.llm.engine import llm_folder
from medad_core.llm.grammar import NO, parse, yes
from medad_core.llm.held import Held
from medad_core.llm.prompt import Prompt
from medad_core.llm.questions import Question
from medad_core.llm.structured import AllowedTokens

FAMILIES = ("presence", "location", "side", "size", "number")
GAP = 260  # a number that no token has


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt(llm_folder("smollm2-135m"))


@pytest.fixture(scope="module")
def llama_like(prompt) -> Prompt:
    """The prompt of an LLM whose tokenizer begins a text with a space, spells what it lacks in bytes, and has a gap."""
    words = sorted({f"▁{word}" for sentence in prompt.template.sentences for word in sentence.split()})
    vocabulary = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *words]
    numbers = {piece: number + (number >= GAP) for number, piece in enumerate(vocabulary)}
    made = Tokenizer(models.BPE(numbers, [], byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    undone = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(undone)
    other = copy(prompt)
    other.tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>")
    other.end_tokens = (numbers["</s>"],)
    other.no_token = numbers["▁No,"]
    return other


@pytest.fixture(scope="module")
def allowed(prompt) -> dict[str, AllowedTokens]:
    return {family: AllowedTokens(prompt, answers_of(family)) for family in FAMILIES}


def answers_of(family: str) -> tuple[str, ...]:
    return () if family == "presence" else tuple(Question(family).answers)


@given(data=st.data(), family=st.sampled_from(FAMILIES))
def test_whatever_is_chosen_the_answer_is_the_one_sentence_that_is_left(prompt, allowed, data, family):
    held = Held.to(prompt, answers_of(family))
    tokens: list[int] = []
    while held.decided(tokens) is None and not set(tokens) & set(prompt.end_tokens):
        following = allowed[family](0, torch.tensor([prompt.end_tokens[-1], *tokens]))
        tokens.append(data.draw(st.sampled_from(sorted(following))))
    text, ended, count = held.read_answer(tokens)
    written = prompt.tokenizer.decode(tokens, skip_special_tokens=True)
    assert ended and count == len(tokens)
    assert [sentence for sentence in held.sentences if sentence.startswith(written)] == [text]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_goes_on_while_two_sentences_are_left_and_is_the_same_however_far_it_went(prompt, family):
    held = Held.to(prompt, answers_of(family))
    for sentence in held.sentences:
        tokens = prompt.answer_tokens(sentence)
        found, ended, count = held.read_answer(tokens)
        assert (found, ended) == (sentence, True)
        before = prompt.tokenizer.decode(tokens[: count - 1])
        assert sum(other.startswith(before) for other in held.sentences) > 1
        assert held.decided(tokens[: count - 1]) is None
        for further in range(count, len(tokens) + 1):
            assert held.read_answer(tokens[:further]) == (sentence, True, count)


def test_no_is_one_token_and_a_place_ends_once_it_is_named(prompt):
    held = Held.to(prompt)
    assert held.read_answer(prompt.answer_tokens(NO)) == (NO, True, 1)
    for cell, last in (("left", " left"), ("top", " of")):  # top could go on with left or right
        tokens = prompt.answer_tokens(yes(cell))
        assert prompt.token_text(tokens[held.read_answer(tokens)[2] - 1]) == last


@pytest.mark.parametrize(
    "text", ["No abnormality is seen.", "No.", "Nope", "Now", "nothing", "Yes, I see it on the left"]
)
def test_what_nothing_held_to_the_sentences_is_read_as_it_is(prompt, text):
    tokens = prompt.tokenizer.encode(text, add_special_tokens=False)
    for end in ([], [prompt.end_tokens[0]]):
        said, ended, _ = Held.to(prompt).read_answer([*tokens, *end])
        assert said == text and ended == bool(end) and parse(said) is None


def test_sentences_of_which_one_begins_another_end_as_the_llm_ends_them(prompt):
    held = Held.to(prompt, ("Yes", "Yes, there is", "No"))
    whole = prompt.answer_tokens("Yes")
    assert held.decided(whole) is None and held.read_answer(whole) == ("Yes", True, len(whole))
    assert held.decided(prompt.answer_tokens("Yes, there is")) == "Yes, there is"


def test_vllm_stops_a_tokenizer_of_words_and_bytes_at_the_token_that_decides(llama_like):
    """vLLM looks for the beginnings in what this decoder makes of one token after another."""
    tokenizer, held = llama_like.tokenizer, Held.to(llama_like)
    spelled = [tokenizer.encode(sentence, add_special_tokens=False) for sentence in held.sentences]
    in_bytes = [tokenizer.convert_tokens_to_ids("▁"), *(2 + byte for byte in NO.encode())]
    for tokens, sentence in [*zip(spelled, held.sentences, strict=True), (in_bytes, NO)]:
        stream, text, seen = decoders.DecodeStream(skip_special_tokens=True), "", 0
        while not any(beginning in text for beginning in held.beginnings):
            text += stream.step(tokenizer.backend_tokenizer, tokens[seen]) or ""
            seen += 1
        assert held.read_answer(tokens[:seen]) == (sentence, True, seen) and seen < len(tokens)


def test_a_vocabulary_with_a_gap_can_be_held(llama_like):
    assert llama_like.tokenizer.convert_ids_to_tokens(GAP) is None and len(llama_like.tokenizer) > GAP
    following = AllowedTokens(llama_like)(0, torch.tensor([llama_like.end_tokens[-1]]))
    assert {llama_like.token_text(token) for token in following} >= {" No,", " Yes,"}
