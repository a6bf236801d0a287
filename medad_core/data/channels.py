"""Which channel of a dataset is which modality: `dataset.json` of the Decathlon and of nnU-Net.

One decision: a file a channel without names is refused, because any order is a guess, and the wrong one shows a T1 as a
FLAIR. Only the 4-D files of the Decathlon have an order of their own, which is used and named if the file is missing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from medad_core.errors import UsageError

_WORDS = {
    "flair": ("flair", "t2f", "t2flair", "fl"),
    "t1": ("t1", "t1w", "t1n"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1wce", "t1wgd", "t1post"),
    "t2": ("t2", "t2w"),
}
DECATHLON = {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}  # of Task01_BrainTumour
_MODALITY_OF = {word: modality for modality, words in _WORDS.items() for word in words}
_LONGEST = 1 << 20  # characters of a dataset.json
_EXPECTED = 'expected "channel_names" (nnU-Net) or "modality" (Decathlon): {"0": "FLAIR", "1": "T1w", …}'


def read_channels(folder: Path) -> dict[str, int] | None:
    """The number of each modality that `dataset.json` of the dataset's folder names, None where there is none.

    Channels that are no modality are left out. Raises UsageError where it cannot be understood, or gives two numbers to
    one modality.
    """
    description = folder / "dataset.json"
    try:
        with description.open(encoding="utf-8") as stream:
            content = json.loads(stream.read(_LONGEST))
        named = content.get("channel_names") or content["modality"]
        pairs = [(_modality(word), int(number)) for number, word in named.items()]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, RecursionError, TypeError) as error:
        raise UsageError(f"{description}: cannot be understood ({error!r}); {_EXPECTED}") from error
    known = [(modality, number) for modality, number in pairs if modality is not None]
    twice = [modality for modality, count in Counter(modality for modality, _ in known).items() if count > 1]
    if twice:
        raise UsageError(f"{description}: names {twice[0]} twice; give each modality one channel")
    return dict(known)


def missing(folder: Path) -> str:
    """Why channels without `dataset.json` cannot be used."""
    return f"{folder / 'dataset.json'}: missing, so the channels have no names; {_EXPECTED}"


def _modality(word: str) -> str | None:
    return _MODALITY_OF.get(re.sub(r"[^a-z0-9]", "", word.lower()))
