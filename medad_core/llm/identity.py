"""Whether a server has the LLM of the settings: probes whose p(yes) is known.

One decision: a server is believed by what it answers, never by the name that it gives its model. The probes are prompts
with noise for soft tokens. Their p(yes) is computed once, here, by Transformers on the CPU from the folder of the LLM,
and kept in the cache under the hash of everything it follows from. It is computed in float32, also for a server in 16
bits: a CPU takes an hour for those.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from medad_core.llm.load import MOVES
from medad_core.llm.prompt import Prompt
from medad_core.llm.sizing import resolved_dtype
from medad_core.llm.transformers_engine import TransformersEngine, load_llm
from medad_core.models.cache import cache_root, sha256_of
from medad_core.models.memory import free_memory
from medad_core.models.resolve import weight_files
from medad_core.store.files import make_folder, read_bytes, write_bytes

log = logging.getLogger(__name__)
PROBES = 8
SOFT_TOKENS = 10
SEED = 17


def probes(prompt: Prompt) -> np.ndarray:
    """Prompt embeddings (PROBES, L, width) float32 of no slice."""
    spread = float(prompt.embeddings.std())
    soft = np.random.default_rng(SEED).normal(0, spread, (PROBES, SOFT_TOKENS, prompt.width))
    return prompt.assemble(np.zeros((0, prompt.width), np.float32), soft.astype(np.float16))


def expected(prompt: Prompt) -> list[float]:
    """p(yes) of the probes from the LLM in the prompt's folder; computed on first use.

    Raises WeightsError where a weight is missing or damaged, StoreError where the cache cannot be written.
    """
    asked = probes(prompt)
    kept_at = str(cache_root() / f"probes-{_key(prompt, asked)}.json")
    kept = _read(kept_at)
    if kept is not None:
        return kept
    log.info("computing what the LLM answers to probes, once")
    model = load_llm(prompt.folder)
    engine = TransformersEngine(prompt, max_new_tokens=1, batch_size=PROBES, model=model)
    answers = [answer.p_yes for answer in engine.generate(asked)]
    engine.close()
    del model
    free_memory()
    make_folder(str(cache_root()))
    write_bytes(kept_at, msgspec.json.encode(answers))
    return answers


def difference(prompt: Prompt, dtype: str, answers: Sequence[float]) -> tuple[float, float]:
    """The largest difference of p(yes) between answers to the probes and those expected, and the largest allowed.

    Raises as `expected` does.
    """
    apart = np.abs(np.array(answers) - np.array(expected(prompt))).max()
    return float(apart), MOVES[resolved_dtype(prompt.folder, dtype)]


def _read(path: str) -> list[float] | None:
    """What an earlier call kept; None where there is nothing, or something else."""
    try:
        kept = msgspec.json.decode(read_bytes(path) or b"", type=list[float])
    except msgspec.MsgspecError:
        return None
    return kept if len(kept) == PROBES else None


def _key(prompt: Prompt, asked: np.ndarray) -> str:
    """Hash of the LLM's files and of all that is asked of it."""
    files: list[Path] = sorted(weight_files(prompt.folder))
    facts = [*(sha256_of(file) for file in files), sha256_of(prompt.folder / "config.json")]
    asking = f"{prompt.yes_token} {prompt.no_token}"
    return hashlib.sha256(" ".join([*facts, asking]).encode() + asked.tobytes()).hexdigest()[:24]
