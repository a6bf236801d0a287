"""A real server of vLLM on the loopback, as medad_core/README.md says to start one, and a slow road to it.

One decision: it is started by the module that `vllm serve` runs, because the build for CPUs has no `vllm` metadata, for
which that command asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from medad_core.llm.engine import llm_folder
from medad_core.surroundings.processes import python_command

KEY = "a-key-of-the-tests"
START_S = 600.0  # a minute where nobody else computes
FLAGS = {
    "--dtype": "float32",
    "--max-model-len": "256",
    "--max-num-seqs": "64",
    "--block-size": "32",
    "--generation-config": "vllm",
}


class Server:
    """vLLM with the packaged LLM at `address`, in processes of its own."""

    def __init__(self, log: Path, embeds: bool = True, **environment: str) -> None:
        if not importlib.util.find_spec("vllm"):
            pytest.skip("vllm is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = log
        words = ["--model", str(llm_folder("smollm2-135m")), "--host", "127.0.0.1", "--port", str(self.port)]
        words += [word for flag in FLAGS.items() for word in flag] + ["--enforce-eager"]
        words += ["--enable-prompt-embeds"] * embeds
        self.command = python_command("-m", "vllm.entrypoints.openai.api_server", *words)
        self.environment = {
            **os.environ,
            "VLLM_API_KEY": KEY,
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **environment,
        }
        self.process: subprocess.Popen | None = None

    def start(self) -> Server:
        """Start it without waiting for it."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd=self.log.parent
            )
        return self

    def wait(self) -> Server:
        """Return when it answers."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.address}/health", trust_env=False, timeout=5).is_success:
                    return self
            time.sleep(0.5)
        raise AssertionError(f"it did not start: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End all its processes, without warning."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def served(folder: Path, embeds: bool = True, **environment: str) -> Iterator[Server]:
    """A server that answers while the block runs; its log is in `folder`."""
    server = Server(folder / "vllm.log", embeds, **environment).start()
    try:
        yield server.wait()
    finally:
        server.kill()


class Relay:
    """Another address of the server at `port`, where all comes `delay_s` late once whole answers were asked for."""

    def __init__(self, port: int, delay_s: float) -> None:
        self.port = port
        self.delay_s = delay_s
        self.is_slow = False

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection both ways."""
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(self._carry(reader, back, True), self._carry(there, writer, False))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_request: bool) -> None:
        end = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                self.is_slow |= is_request and b'"max_tokens":24' in end + data
                end = data[-20:]
                if self.is_slow and not is_request:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.contextmanager
def relayed(port: int, delay_s: float) -> Iterator[tuple[str, Relay]]:
    """The address of a relay that runs while the block does, and the relay."""
    loop = asyncio.new_event_loop()
    relay = Relay(port, delay_s)
    server = loop.run_until_complete(asyncio.start_server(relay.connected, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", relay
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
