"""A server of vLLM that is killed while it answers: nothing is lost, and it goes on when the server is back."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from vllm_server import KEY, Server, served

from medad_core import stopping
from medad_core.config import LLMSettings
from medad_core.errors import EngineStartError, Stopped, UsageError
from medad_core.llm.endpoint import KEY_VARIABLE, check_endpoints
from medad_core.llm.engine import llm_folder, open_engine
from medad_core.llm.identity import probes
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation

SOON_S = 10.0


@pytest.fixture
def prompt(monkeypatch) -> Prompt:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return Prompt(llm_folder("smollm2-135m"))


class Asking(threading.Thread):
    """`generate` in a thread; `answers` or `error` is what came of it."""

    def __init__(self, prompt: Prompt, prompts: np.ndarray, **changes) -> None:
        super().__init__(daemon=True)
        settings = LLMSettings(engine="vllm-server", max_sequences=8, **changes)
        self.engine = open_engine(prompt, settings, prompts.shape[1])
        self.prompts = prompts
        self.answers: list[Generation] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answers = self.engine.generate(self.prompts)
        except Exception as error:
            self.error = error

    def ended(self, within_s: float = 400.0) -> Asking:
        self.join(within_s)
        assert not self.is_alive()
        return self


def has_answered(server: Server, requests: int) -> bool:
    return server.log.read_text().count('POST /v1/completions HTTP/1.1" 200') >= requests


def until_answered(server: Server, requests: int) -> None:
    deadline = time.monotonic() + 120
    while not has_answered(server, requests):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_is_killed_and_started_again_costs_no_answer(prompt, tmp_path):
    """And one that does not come back ends the run by one line; one that is asked to stop ends at once."""
    prompts = np.concatenate([probes(prompt)] * 6)
    settings = LLMSettings(engine="transformers", structured=True)
    expected = open_engine(prompt, settings, prompts.shape[1]).generate(prompts[:8])
    with served(tmp_path) as server:
        check_endpoints(prompt, LLMSettings(engine="vllm-server", endpoints=server.address), 60)
        asking = Asking(prompt, prompts, endpoints=server.address, structured=True)
        until_answered(server, 5)  # thrice the probes of a check, the last held to the grammar; two of six requests
        server.kill()
        assert asking.is_alive()
        server.start().wait()
        answers = asking.ended().answers
        assert asking.error is None
        assert [answer.text for answer in answers] == [answer.text for answer in expected] * 6

        stopped = Asking(prompt, prompts, endpoints=server.address)
        time.sleep(1)
        stopping.request_stop()
        try:
            assert isinstance(stopped.ended(SOON_S).error, Stopped)
        finally:
            stopping.withdraw_request()

        lost = Asking(prompt, prompts, endpoints=server.address, patience_s=8)
        time.sleep(1)
        server.kill()
        error = lost.ended(60).error
        assert isinstance(error, EngineStartError) and "no server has answered for 8 s (llm.patience_s)" in str(error)
        assert server.address in str(error) and "\n" not in str(error)


def test_a_server_without_prompt_embeddings_is_refused(prompt, tmp_path):
    with served(tmp_path, embeds=False) as server, pytest.raises(UsageError, match="--enable-prompt-embeds"):
        check_endpoints(prompt, LLMSettings(engine="vllm-server", endpoints=server.address), 60)
