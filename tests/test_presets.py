"""Presets: a model is looked for on this machine first, and fetched only where that is allowed.

The hub is a server of this test.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.config import ModelSettings
from medad_core.errors import ConfigError, WeightsError
from medad_core.llm.engine import llm_fingerprint, llm_folder
from medad_core.models import presets as module
from medad_core.models.encoder import encoder_folder
from medad_core.models.presets import preset_of, presets
from medad_core.models.resolve import model_folder
from medad_core.models.text import text_encoder_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": (
        b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    ),
    "tokenizer.json": b"{}",
    "tokenizer.model": b"sentencepiece",
    "pytorch_model.bin": b"a pickle",
    "original/consolidated.00.pth": b"a pickle",
    "original/params.json": b"{}",
    "modeling_code.py": b"raise SystemExit",
}


@pytest.fixture
def bare(tmp_path, monkeypatch) -> Path:
    """No model is on this machine: an empty hub cache, no $MEDAD_MODELS."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDAD_MODELS", raising=False)
    return tmp_path


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_presets_are_complete_and_state_their_licence():
    assert {"imagebind-huge", "openclip-vit-h-14", "vicuna-7b", "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b"} == set(
        presets()
    )
    imagebind = presets()["imagebind-huge"]
    openclip = presets()["openclip-vit-h-14"]
    assert imagebind.roles == openclip.roles == ["image encoder", "text encoder"] and imagebind.hub is None
    assert "CC BY-NC-SA 4.0" in imagebind.licence and "MIT" in openclip.licence


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"lisence": "MIT"}, "lisence"),
        ({"hub": "no-owner"}, "hub"),
        ({"roles": ["oracle"]}, "roles"),
        ({"engine": {}}, "engine"),
        ({"hub": None}, "get"),
    ],
)
def test_a_wrong_preset_names_its_file_and_key(tmp_path, monkeypatch, change, key):
    whole = {"roles": ["language model"], "licence": "MIT", "hub": "owner/name", "revision": None}
    (tmp_path / "mine.yaml").write_text(json.dumps({**whole, **change}))
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{key}"):
        module.presets.__wrapped__()


def test_llama_3_2_8b_says_that_there_is_none_and_what_is_meant(bare):
    with pytest.raises(ConfigError, match=r"no model of that name was released.*llama-3\.1-8b"):
        llm_folder("llama-3.2-8b")
    assert preset_of("llama-3.1-8b").hub == "meta-llama/Llama-3.1-8B-Instruct" and preset_of("anything") is None


def test_a_preset_is_found_in_the_folder_of_the_setting_and_then_of_the_environment(bare, monkeypatch):
    first = write_model(bare / "a" / "imagebind-huge")
    second = write_model(bare / "b" / "imagebind-huge")
    monkeypatch.setenv("MEDAD_MODELS", str(bare / "b"))
    assert encoder_folder("imagebind-huge", where=ModelSettings(folder=str(bare / "a"))) == first
    assert text_encoder_folder("imagebind-huge") == second
    assert model_folder("imagebind-huge", "image encoder").label == "imagebind-huge"


def test_an_absent_preset_says_where_to_put_it_and_which_setting_to_change(bare):
    where = ModelSettings(folder=str(bare))
    with pytest.raises(
        WeightsError, match=rf"{bare}/imagebind-huge.*medad models import imagebind.*CC BY-NC-SA"
    ) as caught:
        encoder_folder("imagebind-huge", where=where)
    assert "models.offline" not in str(caught.value) and "\n" not in str(caught.value)  # no hub has it
    with pytest.raises(WeightsError, match=r"models\.folder=FOLDER.*models\.offline=false.*laion/"):
        encoder_folder("openclip-vit-h-14")
    with pytest.raises(WeightsError, match="medad models import llm"):
        llm_folder("vicuna-7b", where=ModelSettings(offline=True))


def test_a_name_of_another_role_is_refused(bare):
    for name, role in (("vicuna-7b", "language model"), ("minilm", "text encoder")):
        with pytest.raises(ConfigError, match=rf"models\.encoder: {name} is no image encoder but {role}"):
            encoder_folder(name)
    with pytest.raises(ConfigError, match=r"llm\.model: imagebind-huge is no language model"):
        llm_folder("imagebind-huge")


def test_a_name_that_is_nothing_lists_what_is_known(bare):
    with pytest.raises(
        WeightsError, match=r"llm\.model: vicuna-70b is neither a known language model \(smollm2-135m, .*vicuna-7b\)"
    ):
        llm_fingerprint("vicuna-70b")


def test_weights_that_are_pickles_are_refused(bare):
    folder = write_model(bare / "mine")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickles are not read"):
        llm_folder(str(folder))


def test_models_lists_presets_and_where_they_are(bare, monkeypatch):
    folder = write_model(bare / "models" / "vicuna-7b")
    monkeypatch.setenv("MEDAD_MODELS", str(bare / "models"))
    monkeypatch.setattr("flows.cli.terminal.FILE_WIDTH", 400)  # no path is folded
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0 and "dinov2-small" in result.stdout, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    assert lines["vicuna-7b"].rstrip().endswith(str(folder))
    assert lines["llama-3.2-1b"].rstrip().endswith("no") and "MIT" in lines["openclip-vit-h-14"]


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: the commit of a revision, its files, and each file."""

    requested: list[str]
    files: dict[str, bytes]

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.requested.append(path)
        if "/revision/" in path:
            self._send(json.dumps({"id": "meta-llama/Llama-3.2-1B-Instruct", "sha": COMMIT, "siblings": []}).encode())
        elif "/tree/" in path:
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            self._send(json.dumps(rows).encode())
        elif (name := path.partition(f"/resolve/{COMMIT}/")[2]) in self.files:
            data = self.files[name]
            self._send(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _send(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub():
    """A hub on the loopback with one model; gives its address, and the handler with what was asked for."""
    handler = type("Handler", (_Hub,), {"requested": [], "files": dict(FILES)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def resolve(address: str, home: Path, offline: bool, **environment: str) -> subprocess.CompletedProcess:
    """Ask for llama-3.2-1b in a process of its own: the hub's library reads its environment when it is imported."""
    code = f"""
from medad_core.config import ModelSettings
from medad_core.errors import MedadError
from medad_core.models.resolve import model_folder
try:
    print(model_folder("llama-3.2-1b", "language model", ModelSettings(offline={offline})).folder)
except MedadError as error:
    raise SystemExit(f"{{type(error).__name__}}: {{error}}")
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MEDAD_"))}
    environment = {
        **kept,
        "HF_HOME": str(home),
        "HF_ENDPOINT": address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **environment,
    }
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


def test_download_is_off_unless_asked_for_and_then_fetches_safetensors_and_no_pickle_or_code(hub, tmp_path):
    address, handler = hub
    refused = resolve(address, tmp_path, offline=True)
    assert refused.returncode == 1 and "models.offline=false" in refused.stderr and not handler.requested

    fetched = resolve(address, tmp_path, offline=False)
    assert fetched.returncode == 0, fetched.stderr
    folder = Path(fetched.stdout.strip())
    wanted = {
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
    }
    assert {path.name for path in folder.iterdir()} == wanted
    assert not [path for path in handler.requested if path.endswith((".bin", ".pth", ".py", "params.json"))]

    handler.requested.clear()
    again = resolve(address, tmp_path, offline=True)
    assert again.stdout == fetched.stdout and not handler.requested  # what is in the hub's cache needs no network
    assert resolve(address, tmp_path, offline=False).stdout == fetched.stdout and not handler.requested

    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "not on this machine" in resolve(address, tmp_path, offline=True).stderr  # half a model is none


def test_a_hub_that_cannot_be_reached_or_has_no_safetensors_is_one_line(hub, tmp_path):
    address, handler = hub
    nowhere = resolve("http://127.0.0.1:9", tmp_path, offline=False)
    assert nowhere.returncode == 1 and "could not be downloaded" in nowhere.stderr and "Traceback" not in nowhere.stderr
    forbidden = resolve(address, tmp_path, offline=False, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in forbidden.stderr and not handler.requested
    for name in [name for name in handler.files if "safetensors" in name]:
        del handler.files[name]
    pickled = resolve(address, tmp_path, offline=False)
    assert "has no safetensors weights" in pickled.stderr and "Traceback" not in pickled.stderr
