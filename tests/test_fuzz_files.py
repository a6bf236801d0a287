"""Files of medad and of its users, changed at random: one of medad's errors, or what was in the file before.

As in `test_fuzz.py`, the examples are the same every time, and others in `make fuzz`.
"""

from __future__ import annotations

import os

import pytest
from hostile import (
    EARLIER,
    PROMISES,
    RECORDS,
    TABLE,
    card,
    records,
    rows_file,
    sealed_record,
    settings_file,
    settings_word,
    table_of_cases,
    weights_bytes,
    weights_file,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medad_core.config import settings_to_yaml
from medad_core.config.settings import Settings
from medad_core.models.weights import weights_folder

EXAMPLES = int(os.environ.get("MEDAD_FUZZ", "0"))
# Pieces that are likely to mean something in JSON, YAML or CSV.
PIECES = [
    b"",
    b"0",
    b"1e999",
    b"-1",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"',
    b"'",
    b"\\",
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
]
PIECES += [
    b"=1+1",
    b"*a",
    b"&a",
    b"!!python/object:os.system",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"9" * 400,
    b"[" * 2000,
]


def fuzz(share: float = 1.0):
    """How many examples a test gets: few of what takes long."""
    return settings(
        max_examples=max(1, int((EXAMPLES or 120) * share)),
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def changes(draw) -> list[tuple[float, int, bytes]]:
    """Places (as shares of the length), how many bytes go there, and what comes in their place."""
    piece = st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=1))
    return draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), piece), min_size=1, max_size=3))


def changed(content: bytes, steps: list[tuple[float, int, bytes]]) -> bytes:
    for place, length, piece in steps:
        start = int(place * len(content))
        content = content[:start] + piece + content[start + length :]
    return content


@pytest.mark.parametrize("kind", RECORDS)
def test_a_changed_record_is_refused_or_says_the_same(kind):
    whole = records()[kind][1]

    @fuzz()
    @given(changes())
    def check(steps):
        sealed_record(kind, changed(whole, steps))

    check()


@fuzz(0.3)
@given(changes())
@example([(0.0, 0, b"[" * 5000)])
def test_changed_settings_are_settings_or_refused_in_one_line(steps):
    settings_file(changed(settings_to_yaml(Settings()).encode(), steps))


@fuzz()
@given(st.sampled_from(["data", "data.first_slice", "llm.model", "models.batch_size", "x"]), changes())
def test_any_word_is_a_setting_or_refused_in_one_line(key, steps):
    settings_word(changed(f"{key}=70".encode(), steps))


@fuzz()
@given(changes(), st.sampled_from([".csv", ".tsv"]))
@example([(0.0, 0, b'"')], ".csv")
def test_a_changed_table_of_files_is_read_or_refused_in_one_line(steps, ending):
    table = TABLE if ending == ".csv" else TABLE.replace(b",", b"\t")
    table_of_cases(f"cases{ending}", changed(table, steps))


@fuzz(0.2)
@given(changes())
def test_a_changed_card_is_read_or_refused_in_one_line(steps):
    card(changed((weights_folder("embedded") / "card.json").read_bytes(), steps))


@pytest.mark.parametrize("name", ["decoder", "converter"])
def test_changed_weights_are_loaded_or_refused_in_one_line(name):
    content = weights_bytes(name)
    header = int.from_bytes(content[:8], "little") + 8  # where a change means most

    @fuzz(0.2)
    @given(changes(), st.booleans())
    def check(steps, in_header):
        damaged = changed(content[:header], steps) + content[header:] if in_header else changed(content, steps)
        weights_file(name, damaged)

    check()


@fuzz(0.2)
@given(changes())
def test_a_changed_table_of_rows_is_read_or_refused_in_one_line(steps):
    rows_file(changed((EARLIER / "run" / "predictions.parquet").read_bytes(), steps))


@pytest.mark.parametrize("name", PROMISES)
def test_what_libfuzzer_begins_with_keeps_its_promise(name):
    """`make fuzz` starts from these; changed at a few places each, in every run of the tests."""
    promise, seeds = PROMISES[name]
    for seed in seeds():
        for place in (1, 0.5, 0.1, 0.01, 0):
            promise(changed(seed, [(place, 0, b"")]))
            promise(changed(seed, [(place, 1, b"\xff")]))
