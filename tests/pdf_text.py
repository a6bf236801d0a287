"""The text of a PDF that fpdf2 wrote, page by page, read from its own fonts' tables: what a reader could copy."""

from __future__ import annotations

import re
import zlib

_OBJECT = re.compile(rb"(\d+) 0 obj\n(.*?)\nendobj", re.DOTALL)
_STREAM = re.compile(rb"stream\n(.*)\nendstream", re.DOTALL)
_SHOWN = re.compile(rb"/(F\d+) [\d.]+ Tf|\(((?:\\.|[^\\)])*)\) Tj", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}


def pages_of(pdf: bytes) -> list[str]:
    """The text of each page; pieces that are written one by one stand on lines of their own."""
    objects = {int(number): body for number, body in _OBJECT.findall(pdf)}
    fonts = {}
    for body in objects.values():
        for name, at in re.findall(rb"/(F\d+) (\d+) 0 R", body):
            unicode_at = int(re.search(rb"/ToUnicode (\d+) 0 R", objects[int(at)])[1])
            fonts[name] = _characters(_content(objects[unicode_at]))
    pages = [body for body in objects.values() if b"/Type /Page\n" in body]
    return [_text(_content(objects[int(re.search(rb"/Contents (\d+)", page)[1])]), fonts) for page in pages]


def _content(body: bytes) -> bytes:
    stream = _STREAM.search(body)[1]
    return zlib.decompress(stream) if b"/FlateDecode" in body else stream


def _characters(table: bytes) -> dict[int, str]:
    pairs = re.findall(rb"<([0-9A-F]{4})> <([0-9A-F]+)>\n", table)
    return {int(code, 16): bytes.fromhex(text.decode()).decode("utf-16-be") for code, text in pairs}


def _text(content: bytes, fonts: dict[bytes, dict[int, str]]) -> str:
    lines, font = [], b""
    for name, shown in _SHOWN.findall(content):
        if name:
            font = name
            continue
        codes = re.sub(rb"\\(.)", lambda match: _ESCAPED.get(match[1], match[1]), shown, flags=re.DOTALL)
        pairs = zip(codes[::2], codes[1::2], strict=True)
        lines.append("".join(fonts[font][256 * high + low] for high, low in pairs))
    return "\n".join(lines)
