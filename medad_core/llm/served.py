"""Answers from servers of vLLM that run elsewhere: `llm.engine: vllm-server`.

One decision: servers take prompts as they finish the ones they have, so a slow one gets fewer. What only a slow one is
still at is asked of another one too, and the first answer counts. A server that fails gets its prompts taken away, is
asked again at growing intervals, and is checked before it answers again. Only when none has answered for
`llm.patience_s` the run stops; it goes on where it stopped, as always.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from medad_core import stopping
from medad_core.config import LLMSettings
from medad_core.errors import EngineStartError
from medad_core.llm.endpoint import PROMPTS_A_REQUEST, Endpoint, Refused, Unavailable, in_loop
from medad_core.llm.held import Held
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import Generation

log = logging.getLogger(__name__)
IN_FLIGHT = 64  # prompts at each server
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
LOOK_S = 0.1  # between looks at what is left to do
COPIES = 2  # servers that may be at the same prompts


@dataclass(eq=False)
class _Job:
    """Prompts of one request, who is at it, and their answers."""

    prompts: np.ndarray
    answered: asyncio.Future[list[Generation]]
    asked_of: set[str] = field(default_factory=set)


class _Call:
    """One call of `generate`: its jobs, and when a server last answered."""

    def __init__(self, prompts: np.ndarray, size: int) -> None:
        loop = asyncio.get_running_loop()
        starts = range(0, len(prompts), size)
        self.jobs = [_Job(prompts[start : start + size], loop.create_future()) for start in starts]
        self.last_answer = time.monotonic()

    @property
    def unanswered(self) -> list[_Job]:
        """Jobs without answers, in order."""
        return [job for job in self.jobs if not job.answered.done()]

    def next(self, address: str) -> _Job | None:
        """What a server does next: what nobody is at, else what only others are at; None for nothing."""
        others = [job for job in self.unanswered if address not in job.asked_of and len(job.asked_of) < COPIES]
        return min(others, key=lambda job: len(job.asked_of), default=None)


class ServedEngine:
    """See `Engine`. Nothing is asked before the first prompts; `endpoint.check_endpoints` asks before a run."""

    name = "vllm-server"

    def __init__(self, prompt: Prompt, settings: LLMSettings, positions: int) -> None:
        """`positions` is the length of the longest prompt in tokens."""
        self.prompt = prompt
        self.settings = settings
        self.positions = positions
        self.in_flight = settings.max_sequences or IN_FLIGHT
        self.versions: dict[str, str] = {}  # by address, of servers that have answered

    @property
    def made_with(self) -> dict[str, str]:
        """See `Engine.made_with`. A server does not say its own bound, so it is that of the prompts sent to each."""
        versions = ", ".join(sorted(set(self.versions.values())))
        sequences = f"unknown, {self.in_flight} sent at most"
        endpoints = " ".join(sorted(self.versions))
        return {"engine": self.name, "version": versions, "max_num_seqs": sequences, "endpoints": endpoints}

    def generate(self, prompts: np.ndarray, sentences: Sequence[str] = ()) -> list[Generation]:
        """See `Engine.generate`.

        Raises EngineStartError where no server answers for `llm.patience_s`, or one turns out to be another, and
        Stopped where the process was asked to stop.
        """
        return in_loop(partial(self._generate, prompts, tuple(sentences)))

    def close(self) -> None:
        """See `Engine.close`. Servers go on."""

    async def _generate(self, prompts: np.ndarray, sentences: Sequence[str]) -> list[Generation]:
        size = min(PROMPTS_A_REQUEST, self.in_flight)
        call = _Call(prompts, size)
        endpoints = [
            Endpoint(address, self.prompt, self.settings, self.positions) for address in self.settings.endpoints
        ]
        held = Held.to(self.prompt, sentences) if self.settings.structured else None
        async with AsyncExitStack() as stack:
            for endpoint in endpoints:
                await stack.enter_async_context(endpoint.client)
            servers = [asyncio.create_task(self._serve(endpoint, call, size, held)) for endpoint in endpoints]
            try:
                await self._watch(call, endpoints, servers)
            finally:
                for server in servers:
                    server.cancel()
                await asyncio.gather(*servers, return_exceptions=True)
        return [generation for job in call.jobs for generation in job.answered.result()]

    async def _watch(self, call: _Call, endpoints: Sequence[Endpoint], servers: Sequence[asyncio.Task]) -> None:
        """Return when everything is answered. Raises what a server cannot recover from, and where patience ends."""
        while call.unanswered:
            stopping.check()
            for server in servers:
                if server.done():
                    server.result()
            if time.monotonic() - call.last_answer > self.settings.patience_s:
                faults = "; ".join(endpoint.line(endpoint.fault) for endpoint in endpoints if endpoint.fault)
                raise EngineStartError(
                    f"no server has answered for {self.settings.patience_s:g} s (llm.patience_s): {faults}; "
                    "the same command goes on where it stopped"
                )
            await asyncio.wait([job.answered for job in call.unanswered], timeout=LOOK_S)

    async def _serve(self, endpoint: Endpoint, call: _Call, size: int, held: Held | None) -> None:
        """Let one server answer until nothing is left: check it, and ask it until it fails, again and again."""
        pause_s = FIRST_PAUSE_S
        while call.unanswered:
            try:
                await endpoint.check()
                self.versions[endpoint.address] = endpoint.version
                pause_s = FIRST_PAUSE_S
                await self._ask_at_once(endpoint, call, max(1, self.in_flight // size), held)
            except Refused as error:
                raise EngineStartError(f"{error}; the same command goes on where it stopped") from error
            except Unavailable as error:
                if str(error) != endpoint.fault:
                    log.warning("%s; it is asked again", endpoint.line(str(error)))
                endpoint.fault = str(error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # so that not all clients come back at once
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _ask_at_once(self, endpoint: Endpoint, call: _Call, requests: int, held: Held | None) -> None:
        """So many requests in flight at one server until nothing is left. Raises Refused or Unavailable."""
        slots = [asyncio.create_task(self._ask(endpoint, call, held)) for _ in range(requests)]
        try:
            await asyncio.gather(*slots)
        finally:
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)

    async def _ask(self, endpoint: Endpoint, call: _Call, held: Held | None) -> None:
        """One of a server's slots: a job after the other. Raises Refused or Unavailable."""
        while call.unanswered:
            job = call.next(endpoint.address)
            if job is None:
                await asyncio.sleep(LOOK_S)
                continue
            job.asked_of.add(endpoint.address)
            try:
                await self._answer(endpoint, job, call, held)
            finally:
                job.asked_of.discard(endpoint.address)

    async def _answer(self, endpoint: Endpoint, job: _Job, call: _Call, held: Held | None) -> None:
        """Ask for a job's answers, until they come from here or from elsewhere."""
        asking = asyncio.create_task(endpoint.answer(job.prompts, held))
        try:
            await asyncio.wait([asking, job.answered], return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                answers = asking.result()
                call.last_answer = time.monotonic()
                if not job.answered.done():
                    job.answered.set_result(answers)
        finally:
            asking.cancel()
