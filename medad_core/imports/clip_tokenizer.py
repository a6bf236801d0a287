"""CLIP's tokenizer from its published list of merges, which the PyPI package open-clip-torch carries as data.

One decision: only that file of the package is read, never its code (it is installed without dependencies, like the
offline pack).
Source: Radford et al. 2021, "Learning Transferable Visual Models"; the byte alphabet is that of GPT-2.
"""

from __future__ import annotations

import gzip
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from medad_core.errors import WeightsError

DISTRIBUTION = "open-clip-torch"
FILE = "open_clip/bpe_simple_vocab_16e6.txt.gz"
VOCABULARY = 49_408
CONTEXT = 77
START = "<|startoftext|>"
END = "<|endoftext|>"


def write_tokenizer(folder: Path, context: int = CONTEXT) -> None:
    """Write CLIP's tokenizer into a `transformers` folder; sentences end in END within `context` tokens.

    Raises WeightsError where the list of merges is absent.
    """
    from transformers import CLIPTokenizer

    merges = _merges()
    CLIPTokenizer(vocab=_vocabulary(merges), merges=merges, model_max_length=context).save_pretrained(folder)


def _merges() -> list[tuple[str, str]]:
    """The merges in order of rank. The file holds more than CLIP uses, after one line of heading."""
    try:
        path = Path(str(distribution(DISTRIBUTION).locate_file(FILE)))
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    except (PackageNotFoundError, OSError) as error:
        raise WeightsError(
            f"CLIP's tokenizer: the package {DISTRIBUTION}, which carries its list of merges, is not installed; "
            "run `make setup`"
        ) from error
    count = VOCABULARY - 2 * 256 - 2
    return [tuple(line.split()) for line in lines[1 : count + 1]]


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Token to id: 256 bytes, the same at the end of a word, the merged pairs, and the two that frame a sentence."""
    alphabet = _alphabet()
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *map("".join, merges), START, END]
    return {token: number for number, token in enumerate(tokens)}


def _alphabet() -> list[str]:
    """A visible character for each byte.

    Latin-1's printable ones stand for themselves and come first; the others are counted on from 256.
    """
    ranges = ("!~", "¡¬", "®ÿ")
    printable = [chr(byte) for first, last in ranges for byte in range(ord(first), ord(last) + 1)]
    return printable + [chr(256 + number) for number in range(256 - len(printable))]
