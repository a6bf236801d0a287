"""One server of vLLM: whether it may answer for the LLM of the settings, and asking it.

One decision: a server is checked before it answers anything, and again after every fault, because another model may
have been started at its address. It is spoken to directly, past any proxy of the environment, and no redirect is
followed: the embeddings of patients' slices go to the address that the settings name, or nowhere.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import cache, partial
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np
import torch

from medad_core.config import LLMSettings
from medad_core.errors import MedadError, UsageError, first_line
from medad_core.llm.completions import body_of, generations_of
from medad_core.llm.held import Held
from medad_core.llm.identity import difference, expected, probes
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation
from medad_core.llm.sizing import resolved_dtype

Answer = TypeVar("Answer")
KEY_VARIABLE = "MEDAD_LLM_API_KEY"
CONNECT_S = 5.0
CHECK_S = 25.0  # all that is asked before a run
MOST_QUOTED = 200  # characters of what a server says
PROMPTS_A_REQUEST = 8
PASSING = (408, 425, 429)  # and 5xx: the same request may be answered later
MANY = "VLLM_MAX_COMPLETION_PROMPTS"  # is named by a server that takes fewer prompts a request


class Unavailable(Exception):
    """The server did not answer, but may do so later. Its text is one line."""


class Refused(MedadError):
    """The server cannot answer for this run, however often it is asked."""


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Version(msgspec.Struct):
    version: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Message(msgspec.Struct):
    message: str


class _Fault(msgspec.Struct):
    error: _Message


class Endpoint:
    """A server at an address, for one prompt and its settings. The caller closes `client`."""

    def __init__(self, address: str, prompt: Prompt, settings: LLMSettings, positions: int) -> None:
        """`positions` is the length of the longest prompt in tokens. Raises UsageError where the key is none."""
        self.address = address
        self.prompt = prompt
        self.settings = settings
        self.positions = positions
        self.dtype = getattr(torch, resolved_dtype(prompt.folder, settings.dtype))
        self.version = ""
        self.model = ""
        self.prompts_a_request = PROMPTS_A_REQUEST
        self.fault = ""  # the last one
        self.client = httpx.AsyncClient(
            base_url=address,
            headers=_authorization(),
            timeout=httpx.Timeout(settings.request_timeout_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None),
            verify=_certificates(),
            trust_env=False,
        )

    async def check(self) -> None:
        """Compare the server with the LLM of the settings: names, lengths, token ids, and answers to probes.

        Raises Refused or Unavailable, and whatever `identity.difference` raises.
        """
        await self._check_model()
        await self._check_tokens()
        asked = probes(self.prompt)
        answers = await self._in_requests(asked, 1, None)
        p_yes = [answer.p_yes for answer in answers]
        apart, allowed = await asyncio.to_thread(difference, self.prompt, self.settings.dtype, p_yes)
        if not apart <= allowed:
            raise self._refused(
                f"its answers to probes are not those of {self.prompt.folder.name}: p(yes) differs by {apart:.2g}, "
                f"and {allowed:g} is allowed; {self._remedy()}"
            )
        if self.settings.structured:
            await self._check_held(asked)

    async def answer(self, prompts: np.ndarray, held: Held | None) -> list[Generation]:
        """Answers to prompts (n, L, width), as many a request as the server takes. Raises Refused or Unavailable."""
        return await self._in_requests(prompts, self.settings.max_new_tokens, held)

    async def _check_model(self) -> None:
        """Learn version, name and length of the served model."""
        models = self._decoded(await self._get("/v1/models"), _Models).data
        bases = [model for model in models if model.parent is None]  # others are adapters
        if not bases:
            raise self._refused("it serves no model")
        self.model = bases[0].id
        version = await self._ask("GET", "/version")
        if version.is_success:  # a gateway may have none
            self.version = _quoted(self._decoded(version.content, _Version).version)
        needed, given = self.positions + self.settings.max_new_tokens, bases[0].max_model_len
        if given is not None and given < needed:
            raise self._refused(
                f"it takes {given} tokens, and {needed} are needed; serve with --max-model-len {needed}"
            )

    async def _check_held(self, asked: np.ndarray) -> None:
        """Raise Refused where the server lets the LLM say to probes what it likes: a gateway may drop what holds it."""
        held = Held.to(self.prompt)
        texts = [answer.text for answer in await self._in_requests(asked, self.settings.max_new_tokens, held)]
        if not set(texts) <= set(held.sentences):
            raise self._refused(
                "it does not hold answers to the grammar (structured_outputs); set llm.structured=false, or ask vLLM "
                "without what stands before it"
            )

    async def _check_tokens(self) -> None:
        """Compare token ids of what the LLM may say, where the server tells them."""
        for sentence in self.prompt.template.sentences[:2]:
            body = {"model": self.model, "prompt": sentence, "add_special_tokens": False}
            response = await self._ask("POST", "/tokenize", msgspec.json.encode(body))
            if not response.is_success:
                return
            expected = self.prompt.tokenizer.encode(sentence, add_special_tokens=False)
            if self._decoded(response.content, _Tokens).tokens != expected:
                raise self._refused(
                    f"its tokenizer is not that of {self.prompt.folder.name}; serve {self.prompt.folder}"
                )

    async def _in_requests(self, prompts: np.ndarray, tokens: int, held: Held | None) -> list[Generation]:
        answers: list[Generation] = []
        while len(answers) < len(prompts):
            some = prompts[len(answers) : len(answers) + self.prompts_a_request]
            try:
                answers += await self._complete(some, tokens, held)
            except Refused as error:
                if MANY not in str(error) or self.prompts_a_request == 1:
                    raise
                self.prompts_a_request //= 2
        return answers

    async def _complete(self, prompts: np.ndarray, tokens: int, held: Held | None) -> list[Generation]:
        body = await asyncio.to_thread(body_of, self.prompt, self.model, prompts, self.dtype, tokens, held)
        response = await self._ask("POST", "/v1/completions", body)
        if not response.is_success:
            raise self._refused(_reason(response))
        try:
            return generations_of(self.prompt, response.content, len(prompts), held)
        except ValueError as error:
            raise self._refused(f"its answer is not that of vLLM 0.32: {first_line(error)}") from error

    async def _get(self, path: str) -> bytes:
        response = await self._ask("GET", path)
        if not response.is_success:
            raise self._refused(_reason(response))
        return response.content

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> httpx.Response:
        """A response with a status that is final. The time-out is of the whole: a server may answer in drips."""
        headers = {} if body is None else {"Content-Type": "application/json"}
        limit = self.settings.request_timeout_s
        try:
            async with asyncio.timeout(limit):
                response = await self.client.request(method, path, content=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unavailable(f"it cannot be reached ({first_line(error)})") from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Unavailable(f"it did not answer within {limit:g} s (llm.request_timeout_s)") from error
        except httpx.HTTPError as error:
            raise Unavailable(f"it broke off ({first_line(error)})") from error
        if response.status_code in PASSING or response.status_code >= 500:
            raise Unavailable(_reason(response))
        return response

    def _decoded(self, content: bytes, kind: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.MsgspecError as error:
            raise self._refused(f"it is no server of vLLM ({first_line(error)})") from error

    def _remedy(self) -> str:
        return f"serve {self.prompt.folder} with --dtype {str(self.dtype).removeprefix('torch.')}"

    def _refused(self, reason: str) -> Refused:
        return Refused(self.line(reason))

    def line(self, reason: str) -> str:
        """A line that names the server."""
        return f"llm.endpoints: {self.address}: {reason}"


def check_endpoints(prompt: Prompt, settings: LLMSettings, positions: int) -> None:
    """Check all servers of the settings, at once. Raises UsageError for the first that cannot be used now."""
    in_loop(partial(_check_all, prompt, settings, positions))


def in_loop(work: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    """What the coroutine of `work` returns, from a loop in a thread of its own: a notebook's thread has one already."""
    with ThreadPoolExecutor(1, thread_name_prefix="medad-served") as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


async def _check_all(prompt: Prompt, settings: LLMSettings, positions: int) -> None:
    await asyncio.to_thread(expected, prompt)  # may take a minute the first time, which is no server's
    async with AsyncExitStack() as stack:
        endpoints = [Endpoint(address, prompt, settings, positions) for address in settings.endpoints]
        for endpoint in endpoints:
            await stack.enter_async_context(endpoint.client)
        await asyncio.gather(*map(_check, endpoints))


async def _check(endpoint: Endpoint) -> None:
    try:
        async with asyncio.timeout(CHECK_S):
            await endpoint.check()
    except Unavailable as error:
        raise UsageError(endpoint.line(str(error))) from error
    except Refused as error:
        raise UsageError(str(error)) from error
    except TimeoutError as error:
        raise UsageError(endpoint.line(f"it did not answer probes within {CHECK_S:g} s")) from error


def _authorization() -> dict[str, str]:
    """The header with the key of the environment, where there is one. Raises UsageError, which does not quote it."""
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        return {}
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(f"{KEY_VARIABLE} has characters that no key has, such as spaces; set it to the server's key")
    return {"Authorization": f"Bearer {key}"}


@cache  # a third of a second
def _certificates() -> ssl.SSLContext:
    """The certificates that the system trusts, a hospital's own among them; httpx would take those of certifi."""
    return ssl.create_default_context()


def _reason(response: httpx.Response) -> str:
    """A line for a status that is no success. What the server says of it is cut, because it may be a whole page."""
    status = response.status_code
    if status in (401, 403):
        return f"it wants another key ({status}); set {KEY_VARIABLE} to the server's"
    if 300 <= status < 400:
        return f"it says to ask elsewhere ({status}), which is not done; name the server itself"
    try:
        said = msgspec.json.decode(response.content, type=_Fault).error.message
    except msgspec.MsgspecError:
        said = response.reason_phrase
    return f"it says {status}: {_quoted(said)}"


def _quoted(text: str) -> str:
    """What a server says, in one short line that does nothing to a terminal."""
    line = " ".join(text.split())[:MOST_QUOTED]
    return "".join(character if character.isprintable() else "?" for character in line)
