"""What is printed never fails for its encoding, and files are UTF-8 wherever medad runs."""

from __future__ import annotations

import codecs
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cli import streams
from flows.cli.streams import HANDLER, make_output_safe, stand_in

codecs.register_error(HANDLER, stand_in)
EARLIER = Path(__file__).parent / "versions" / "0.1.0"
MEDAD = [sys.executable, "-m", "flows.cli"]
ENCODINGS = ["ascii", "latin-1", "cp1252", "euc-kr", "shift_jis", "koi8-r", "gb2312", "utf-8", "utf-16"]
LOCALES = [("ko_KR", "EUC-KR"), ("en_US", "ISO-8859-1"), ("de_DE", "ISO-8859-15"), ("ja_JP", "EUC-JP")]
PRINTS = r"""
from flows.cli.start import start_again_if_needed
start_again_if_needed()
from flows.cli.streams import make_output_safe
make_output_safe()
import pathlib, sys
pathlib.Path("written").write_text("\u2013 \ud55c")
print(sys.flags.utf8_mode, sys.getfilesystemencoding(), *sys.argv[1:], "\u2013 \u2713 \u2191 \udcff", sep="|")
"""


@given(st.sampled_from(ENCODINGS), st.text(st.characters(exclude_categories=[])))
def test_any_text_can_be_printed_in_any_encoding(encoding, text):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors=HANDLER, newline="\n")
    stream.write(text)
    stream.flush()
    raw.getvalue().decode(encoding)


@given(st.sampled_from(ENCODINGS), st.text(st.characters(max_codepoint=126)))
def test_text_that_an_encoding_has_is_unchanged(encoding, text):
    assert text.encode(encoding, HANDLER).decode(encoding) == text


def test_what_a_terminal_lacks_has_a_plain_form_or_its_code():
    text = "0.905 (0.882–0.931) ✓ … ━ ⠋ \udcff 한"
    assert text.encode("ascii", HANDLER).decode() == r"0.905 (0.882-0.931) + ... - * \udcff \ud55c"


def test_an_error_of_decoding_stays_an_error():
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", HANDLER)


def test_streams_that_are_closed_are_left_alone(monkeypatch):
    monkeypatch.setattr(streams.sys, "stdout", None)
    make_output_safe()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_command_ends_well_in_any_encoding(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [*MEDAD, "status", str(EARLIER / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert "slices" in done.stdout.decode(encoding)


def in_locale(folder: Path, command: list[str], **variables: str) -> bytes:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    done = subprocess.run(command, cwd=folder, env={**environment, **variables}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("language", "charset"), LOCALES)
def test_a_terminal_of_another_locale_gets_its_own_encoding_and_files_are_utf8(tmp_path, language, charset):
    made = subprocess.run(
        ["localedef", "-i", language, "-f", charset, str(tmp_path / "other")], capture_output=True, check=False
    )
    if not (tmp_path / "other").is_dir():
        pytest.skip(f"localedef cannot make {language}.{charset} here: {made.stderr!r}")
    command = [sys.executable, "-c", PRINTS, "é".encode()]
    output = in_locale(tmp_path, command, LOCPATH=str(tmp_path), LC_ALL="other")
    mode, names, argument, text = output.decode(charset).rstrip("\n").split("|")
    assert (mode, names) == ("1", "utf-8") and text.endswith(r"\udcff")
    assert argument.encode(charset) in ("é".encode(charset, HANDLER), b"\\xe9")
    assert (tmp_path / "written").read_text(encoding="utf-8") == "– 한"


@pytest.mark.parametrize("variables", [{}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_the_c_locale_is_utf8_inside(tmp_path, variables):
    output = in_locale(tmp_path, [sys.executable, "-c", PRINTS], LC_ALL="C", **variables)
    assert output.startswith(b"1|utf-8|")
    assert (tmp_path / "written").read_text(encoding="utf-8") == "– 한"
