"""What is left of a sentence is not generated: on the packaged tokenizer, however an answer is cut into tokens."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medad_core.llm.engine import llm_folder
from medad_core.llm.grammar import GRAMMAR, NO, yes
from medad_core.llm.prompt import Prompt
from medad_core.llm.questions import Question
from medad_core.llm.structured import AllowedTokens, Held, held_to, read_answer

FAMILIES = ("location", "side", "size", "number")


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt(llm_folder("smollm2-135m"))


def answers_of(family: str) -> tuple[str, ...]:
    return () if family == "presence" else tuple(Question(family).answers)


def followed(prompt: Prompt, held: Held, choose) -> list[int]:
    """Tokens of an answer that is held to the sentences and chosen freely among them, until it is decided or ends."""
    allowed = AllowedTokens(prompt, held)
    tokens = [prompt.end_tokens[-1]]
    while held.decided(tokens[1:]) is None and not set(tokens[1:]) & set(prompt.end_tokens):
        tokens.append(choose(allowed(0, torch.tensor(tokens))))
    return tokens[1:]


@settings(deadline=None)  # the first example of a family reads the vocabulary
@given(data=st.data(), family=st.sampled_from(("presence", *FAMILIES)))
def test_whatever_is_chosen_the_answer_is_the_one_sentence_that_is_left(prompt, data, family):
    held = held_to(prompt, answers_of(family))
    tokens = followed(prompt, held, lambda allowed: data.draw(st.sampled_from(sorted(allowed))))
    text, ended, count = read_answer(prompt, tokens, held)
    written = "".join(prompt.token_text(token) for token in tokens[:count] if token not in prompt.end_tokens[-1:])
    assert ended and count == len(tokens)
    assert [sentence for sentence in held.sentences if sentence.startswith(written)] == [text]


@pytest.mark.parametrize("family", ("presence", *FAMILIES))
def test_nothing_ends_an_answer_while_two_sentences_are_left(prompt, family):
    held = held_to(prompt, answers_of(family))
    for sentence in held.sentences:
        tokens = prompt.answer_tokens(sentence)
        found, count = held.decided(tokens)
        assert found == sentence
        before = "".join(prompt.token_text(token) for token in tokens[: count - 1])
        assert sum(other.startswith(before) for other in held.sentences) > 1
        assert held.decided(tokens[: count - 1]) is None


def test_no_ends_after_its_first_token_and_a_place_once_it_is_named(prompt):
    held = held_to(prompt)
    assert held.decided(prompt.answer_tokens(NO)) == (NO, 1)
    left = prompt.answer_tokens(yes("left"))
    assert prompt.token_text(left[held.decided(left)[1] - 1]) == " left"
    top = prompt.answer_tokens(yes("top"))
    assert prompt.token_text(top[held.decided(top)[1] - 1]) == " of", "top could go on with left or right"


def test_a_server_that_holds_answers_to_nothing_is_not_read_as_if_it_did(prompt):
    held = held_to(prompt)
    for text in ("There is nothing left", "Yes, I see it on the left", "Now"):
        tokens = prompt.tokenizer.encode(text, add_special_tokens=False)
        assert read_answer(prompt, tokens, held) == (text, False, len(tokens))


def test_sentences_of_which_one_begins_another_end_as_the_llm_ends_them(prompt):
    sentences = ("Yes", "Yes, there is", "No")
    held = held_to(prompt, sentences)
    whole = prompt.answer_tokens("Yes")
    assert held.decided(whole) is None and read_answer(prompt, whole, held) == ("Yes", True, len(whole))
    assert held.decided(prompt.answer_tokens("Yes, there is"))[0] == "Yes, there is"


def test_what_is_known_of_sentences_is_made_once_and_goes_with_the_prompt():
    prompt = Prompt(llm_folder("smollm2-135m"))
    held = held_to(prompt)
    assert held_to(prompt) is held and set(held.sentences) == set(GRAMMAR)
    gone = weakref.ref(held)
    del prompt, held
    assert gone() is None
