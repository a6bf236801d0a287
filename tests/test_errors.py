"""What messages quote of the errors of other libraries."""

import re
from pathlib import Path

import pytest

from medad_core.errors import StoreError, first_line, in_one_line
from medad_core.store.files import explained

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("error", "line", "with_type"),
    [
        (ValueError("too many dimensions"), "too many dimensions", "ValueError: too many dimensions"),
        (ValueError("\n  first \nsecond"), "first", "ValueError: first"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
    ],
    ids=["one line", "two lines", "no message", "blank message"],
)
def test_an_error_is_quoted_in_one_line_whatever_its_message(error, line, with_type):
    assert first_line(error) == line
    assert in_one_line(error) == with_type


def test_a_disk_error_without_a_message_is_explained_all_the_same():
    with pytest.raises(StoreError, match=r"^cannot write here: OSError$"), explained("write", "here"):
        raise OSError


def test_only_the_errors_module_takes_the_first_line_of_an_error():
    """Each place that did it by itself failed on an error without a message."""
    by_hand = re.compile(r"str\(error\)[^\n]*splitlines\(\)\[0\]")
    code = [path for room in ("flows", "tasks", "medad_core") for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in code if by_hand.search(path.read_text())] == []
