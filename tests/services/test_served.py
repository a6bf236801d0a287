"""vLLM as a service: a real server on the loopback answers as the engine in this process does, or is refused.

One server for all tests: it takes a minute to start. tests/faults/test_served_faults.py kills others.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from buckets import Answer, Request, Send, proxy_to
from vllm_server import KEY, Server, relayed, served

from medad_core.config import LLMSettings, Settings, load_settings, settings_to_yaml
from medad_core.data.phantom import generate_cohort
from medad_core.errors import ConfigError, EngineStartError, UsageError
from medad_core.llm.endpoint import KEY_VARIABLE, check_endpoints
from medad_core.llm.engine import check_engine, llm_fingerprint, llm_folder, open_engine
from medad_core.llm.held import Held
from medad_core.llm.load import MOVES, is_unstable
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation
from medad_core.llm.questions import Question
from medad_core.models.weights import load_converter, weights_folder
from medad_core.run.fingerprints import answers_fingerprint, shared_fingerprint
from medad_core.run.run import Run
from medad_core.stages.screen import screen

SOON_S = 30.0  # in which a wrong server is refused


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Server:
    with served(tmp_path_factory.mktemp("vllm"), VLLM_MAX_COMPLETION_PROMPTS="3") as started:
        yield started


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nothing may go through it
    monkeypatch.setenv("NO_PROXY", "")


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt(llm_folder("smollm2-135m"))


@pytest.fixture(scope="module")
def prompts(prompt) -> np.ndarray:
    """12 prompts: maps with a blob from invisible to clear."""
    rng = np.random.default_rng(2)
    grids = np.full((12, 4, 16, 16), -24, np.float32)
    for number, grid in enumerate(grids):
        row, column = rng.integers(1, 12, 2)
        grid[:, row : row + 3, column : column + 3] = -24 + 3.5 * number
    converter = load_converter(
        weights_folder("embedded"), {**llm_fingerprint("smollm2-135m"), **shared_fingerprint(Settings())}
    )
    with torch.inference_mode():
        return prompt.assemble(converter.knowledge_tokens().numpy(), converter(torch.from_numpy(grids)).half().numpy())


@pytest.fixture(scope="module")
def expected(prompt, prompts) -> list[Generation]:
    return speak(prompt, prompts, engine="transformers")


def speak(prompt: Prompt, prompts: np.ndarray, sentences=(), **changes) -> list[Generation]:
    engine = open_engine(prompt, LLMSettings(**changes), prompts.shape[1])
    try:
        return engine.generate(prompts, sentences)
    finally:
        engine.close()


def settings_for(*addresses: str, **changes) -> LLMSettings:
    return LLMSettings(engine="vllm-server", endpoints=addresses, **changes)


def assert_same(given: list[Generation], expected: list[Generation]) -> None:
    assert [(one.text, one.finish_reason, one.tokens) for one in given] == [
        (one.text, one.finish_reason, one.tokens) for one in expected
    ]
    np.testing.assert_allclose([one.p_yes for one in given], [one.p_yes for one in expected], atol=1e-3)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_server_answers_as_the_engine_in_this_process_does(prompt, prompts, expected, server):
    """It takes three prompts a request, which is found out."""
    assert len({one.text for one in expected}) > 2
    assert_same(speak(prompt, prompts, engine="vllm-server", endpoints=server.address), expected)


def test_a_server_holds_answers_to_the_sentences_of_a_question_and_ends_them_where_they_are_decided(
    prompt, prompts, server, monkeypatch
):
    generated: list[int] = []
    read = Held.read_answer
    monkeypatch.setattr(Held, "read_answer", lambda self, tokens: generated.append(len(tokens)) or read(self, tokens))
    sizes = tuple(Question("size").answers)
    given = speak(prompt, prompts[:4], sizes, engine="vllm-server", endpoints=server.address, structured=True)
    assert generated[-4:] == [one.tokens for one in given]
    expected = speak(prompt, prompts[:4], sizes, engine="transformers", structured=True)
    assert [(one.text, one.tokens) for one in given] == [(one.text, one.tokens) for one in expected]
    assert {one.text for one in given} <= set(sizes)


def test_a_server_behind_what_drops_the_grammar_is_refused(prompt, prompts, server):
    """A gateway that passes on what it knows: `stop` is OpenAI's, `structured_outputs` is not."""

    def without_grammar(send: Send, request: Request) -> Answer:
        body = json.loads(request.body) if request.path.endswith("/completions") else {}
        body.pop("structured_outputs", None)
        return send(replace(request, body=json.dumps(body).encode()) if body else request)

    with proxy_to(server.port) as proxy:
        proxy.translate = without_grammar
        assert speak(prompt, prompts[:1], engine="vllm-server", endpoints=proxy.url)
        with pytest.raises(EngineStartError, match="does not hold answers to the grammar"):
            speak(prompt, prompts[:1], engine="vllm-server", endpoints=proxy.url, structured=True)


def test_of_two_servers_the_slow_one_holds_nobody_up(prompt, prompts, expected, server):
    many, delay_s = np.concatenate([prompts] * 2), 600
    with relayed(server.port, delay_s) as (slow, relay):
        engine = open_engine(prompt, settings_for(slow, server.address, max_sequences=8), prompts.shape[1])
        started = time.monotonic()
        given = engine.generate(many)
        assert relay.is_slow and time.monotonic() - started < delay_s, (
            "both were asked, and nobody waited for the slow one"
        )
    assert_same(given, expected * 2)


def test_a_run_is_answered_by_a_server_and_says_so_without_the_key(server, tmp_path):
    data, words = tmp_path / "data", ["data.first_slice=78", "data.last_slice=80", "evaluate.bootstrap=0"]
    generate_cohort(data, 2, seed=3)
    here, there = (str(tmp_path / name) for name in ("here", "there"))
    screen(str(data), here, load_settings(None, [*words, "llm.engine=transformers"]))
    settings = load_settings(None, [*words, "llm.engine=vllm-server", f"llm.endpoints=[{server.address}/v1/]"])
    screen(str(data), there, settings)
    own, others = (pd.read_parquet(f"{run}/predictions.parquet") for run in (here, there))
    assert own["model_fingerprint"].equals(others["model_fingerprint"]), "an engine changes no row"
    np.testing.assert_allclose(own.pop("p_yes"), others.pop("p_yes"), atol=1e-3)
    pd.testing.assert_frame_equal(own, others)
    made_with = [Run.reopen(run).stage("answers").manifest().parts[0].made_with for run in (here, there)]
    assert made_with[0]["engine"] == "transformers" and made_with[0]["max_num_seqs"] == "64"
    assert made_with[1]["endpoints"] == server.address and made_with[1]["version"].startswith("0.")
    written = [path.read_bytes() for path in Path(there).rglob("*") if path.is_file()]
    assert not any(KEY.encode() in content for content in written)


# --- refused ---------------------------------------------------------------------------------------------------------


def refusal(prompt: Prompt, settings: LLMSettings, positions: int = 60) -> str:
    """The one line of a refusal within the time for it."""
    started = time.monotonic()
    with pytest.raises(UsageError) as caught:
        check_endpoints(prompt, settings, positions)
    assert time.monotonic() - started < SOON_S
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    return str(caught.value)


def test_an_address_where_nothing_answers_is_refused_and_nothing_is_written(prompt, tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert refusal(prompt, settings_for(address)).startswith(f"llm.endpoints: {address}: it cannot be reached")
        generate_cohort(tmp_path / "data", 1, seed=3)
        out = tmp_path / "run"
        with pytest.raises(UsageError, match="cannot be reached"):
            Run.open(
                str(tmp_path / "data"),
                str(out),
                load_settings(None, ["llm.engine=vllm-server", f"llm.endpoints=[{address}]"]),
            )
        assert not (out / "run.json").exists()


def test_a_server_that_never_answers_is_refused_in_time(prompt):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "did not answer" in refusal(prompt, settings_for(address))


@pytest.mark.parametrize("wrong", ["", "another"])
def test_another_key_is_refused(prompt, server, monkeypatch, wrong):
    monkeypatch.setenv(KEY_VARIABLE, wrong)
    assert f"set {KEY_VARIABLE}" in refusal(prompt, settings_for(server.address))


def test_a_key_that_is_none_is_refused_without_being_quoted(prompt, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\nX-Other: 1")
    assert KEY_VARIABLE in refusal(prompt, settings_for("http://127.0.0.1:9"))


def test_a_server_of_something_else_is_refused(prompt):
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        assert "it says 404" in refusal(prompt, settings_for(f"http://127.0.0.1:{other.server_port}"))
        other.shutdown()


def test_another_model_of_the_same_shape_is_refused_by_what_it_answers(prompt, server, tmp_path):
    """The LLM of the settings differs from the served one in the last norm alone, by 2 %."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(prompt.folder, tmp_path / "own")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.02
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    line = refusal(Prompt(folder), settings_for(server.address))
    assert "its answers to probes are not those of own" in line and "--dtype float32" in line


def test_a_model_of_another_width_is_refused_by_name(prompt, server, tmp_path):
    import transformers

    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path / "narrow"
    config = transformers.LlamaConfig(vocab_size=49152, **small)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in [*prompt.folder.glob("*token*"), prompt.folder / "chat_template.jinja"]:
        shutil.copy(file, folder)
    line = refusal(Prompt(folder), settings_for(server.address))
    assert "hidden_size 64 does not match the model's hidden_size 576" in line


def test_a_server_for_shorter_prompts_is_refused_with_the_length_that_is_needed(prompt, server):
    assert "serve with --max-model-len 324" in refusal(prompt, settings_for(server.address), positions=300)


@pytest.mark.parametrize(
    "address",
    ["gpu1:8000", f"http://user:{KEY}@gpu1:8000", f"http://gpu1:8000?key={KEY}", "ftp://gpu1", "http://", 8000],
)
def test_what_is_no_address_is_refused_and_not_quoted(address):
    with pytest.raises(ConfigError) as caught:
        load_settings(None, ["llm.engine=vllm-server", f"llm.endpoints={json.dumps([address])}"])
    assert "llm.endpoints" in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize("words", [["llm.engine=vllm-server"], ["llm.endpoints=[http://gpu1:8000]"]])
def test_engine_and_endpoints_belong_together(words):
    with pytest.raises(ConfigError, match="endpoints and engine=vllm-server belong together"):
        load_settings(None, words)


def test_how_a_served_model_is_spread_is_not_said_here():
    with pytest.raises(UsageError, match="set both to 1"):
        check_engine(settings_for("http://gpu1:8000", tensor_parallel_size=2))


def test_engine_and_endpoints_are_in_no_fingerprint_and_the_key_in_no_settings():
    served_there = load_settings(None, ["llm.engine=vllm-server", "llm.endpoints=[http://gpu1:8000]"])
    assert answers_fingerprint(served_there) == answers_fingerprint(Settings())
    assert KEY not in settings_to_yaml(served_there)


# --- load ------------------------------------------------------------------------------------------------------------


def test_a_verdict_is_unstable_as_near_to_one_half_as_p_yes_may_move():
    assert is_unstable(np.array([0.4985, 0.4995, 0.5, 0.5009, 0.502, 1.0]), MOVES["float32"]).tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
