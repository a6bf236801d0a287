"""What a command says where Prefect's server has an error of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import typer
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli.command import exits


class OutOfOrder(BaseHTTPRequestHandler):
    """A server that answers every request with the status in its path."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.rsplit("/", 1)[1]))
        self.end_headers()

    def log_message(self, *_words) -> None:
        pass


@pytest.fixture
def out_of_order() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), OutOfOrder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
        server.shutdown()


def ask(url: str) -> None:
    """As `deployment.apply()` does: the error of the request is the cause of another one."""
    try:
        httpx.get(url, trust_env=False).raise_for_status()
    except httpx.HTTPStatusError as error:
        raise RuntimeError("while applying a deployment") from error


def test_an_error_of_prefects_server_is_one_line_and_no_other_answer_is(out_of_order, capsys):
    with pytest.raises(typer.Exit) as ended:
        exits(ask)(f"{out_of_order}/503")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.exit_code == 1 and "the Prefect server at 127.0.0.1:" in line and "(503)" in line
    with pytest.raises(RuntimeError, match="while applying"):
        exits(ask)(f"{out_of_order}/404")
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9"}),
        pytest.raises(RuntimeError, match="while applying"),
    ):
        exits(ask)(f"{out_of_order}/503")
