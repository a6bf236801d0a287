"""Which channel of a dataset is which modality: `dataset.json` of the Decathlon and of nnU-Net.

One decision: a file a channel without names is refused, because any order is a guess, and the wrong one shows a T1 as a
FLAIR. Only the 4-D files of the Decathlon have an order of their own, which is used and named if the file is missing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass

from medad_core.errors import UsageError
from medad_core.store.regular import open_regular

_WORDS = {
    "flair": ("flair", "t2f", "t2flair", "t2wflair", "t2weightedflair", "fl"),
    "t1": ("t1", "t1w", "t1n"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1wce", "t1wgd", "t1post"),
    "t2": ("t2", "t2w"),
}
_MODALITY_OF = {word: modality for modality, words in _WORDS.items() for word in words}
_LONGEST = 1 << 20  # bytes of a dataset.json
_EXPECTED = 'expected "channel_names" (nnU-Net) or "modality" (Decathlon): {"0": "FLAIR", "1": "T1w", …}'


@dataclass(frozen=True)
class Channels:
    """`number_of` has the number of each modality, `names` the word of every number."""

    number_of: dict[str, int]
    names: dict[int, str]


NO_CHANNELS = Channels({}, {})
# Of Task01_BrainTumour.
DECATHLON = Channels({"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}, dict(enumerate(("FLAIR", "T1w", "t1gd", "T2w"))))


def read_channels(folder: str) -> Channels | None:
    """The channels that `dataset.json` of the dataset's folder names, None where there is no such file.

    Raises UsageError where it cannot be understood, names no modality, or gives two numbers to one.
    """
    description = f"{folder}/dataset.json"
    try:
        with open_regular(description) as stream:
            content = json.loads(stream.read(_LONGEST).decode())
        named = content.get("channel_names") or content["modality"]
        names = {int(number): str(word) for number, word in named.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, RecursionError, TypeError) as error:
        raise UsageError(f"{description}: cannot be understood ({error!r}); {_EXPECTED}") from error
    known = [(modality, number) for number, word in names.items() if (modality := _modality(word)) is not None]
    if not known:
        words = ", ".join(names.values())
        raise UsageError(f"{description}: names no modality that medad knows ({words}); {_EXPECTED}")
    twice = [modality for modality, count in Counter(modality for modality, _ in known).items() if count > 1]
    if twice:
        raise UsageError(f"{description}: names {twice[0]} twice; give each modality one channel")
    return Channels(dict(known), names)


def missing(folder: str) -> str:
    """Why channels without `dataset.json` cannot be used."""
    return f"{folder}/dataset.json: missing, so the channels have no names; {_EXPECTED}"


def _modality(word: str) -> str | None:
    return _MODALITY_OF.get(re.sub(r"[^a-z0-9]", "", word.lower()))
