"""How far p(yes) and answers move with the number of prompts that share a step: the table of medad_core/README.md.

    python tests/measure_load.py transformers FOLDER [float32|bfloat16]
    python tests/measure_load.py vllm FOLDER [float32|bfloat16]
    python tests/measure_load.py vllm-server FOLDER [float32|bfloat16] http://127.0.0.1:8000
    python tests/measure_load.py compare FOLDER

One engine a process; each call writes what it measured to FOLDER, and `compare` reads it. The prompts are those of the
embedded weights for drawn lesions from invisible to clear, so that many verdicts are close.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from medad_core.config import LLMSettings, Settings
from medad_core.llm.engine import SERVED, llm_fingerprint, llm_folder, open_engine
from medad_core.llm.prompt import Prompt
from medad_core.models.weights import load_converter, weights_folder
from medad_core.run.fingerprints import shared_fingerprint

SIZES = (1, 8, 64, 256)
PROMPTS = 256
TOKENS = {"float32": 24, "bfloat16": 1, "float16": 1}  # 16 bits take a CPU minutes, and one token has the verdict
ALONE = 8  # every eighth prompt is asked alone, and compared


def prompts_of(prompt: Prompt) -> np.ndarray:
    """Prompts (PROMPTS, L, width) for maps with one blob each, whose strength grows from none to clear."""
    rng = np.random.default_rng(5)
    grids = np.full((PROMPTS, 4, 16, 16), -24, np.float32)
    for number, grid in enumerate(grids):
        row, column = rng.integers(1, 12, 2)
        grid[:, row : row + 3, column : column + 3] = -24 + 36 * number / (PROMPTS - 1) + rng.uniform(-4, 4)
    made_for = {**llm_fingerprint("smollm2-135m"), **shared_fingerprint(Settings())}
    converter = load_converter(weights_folder("embedded"), made_for)
    with torch.inference_mode():
        soft = converter(torch.from_numpy(grids)).half().numpy()
        return prompt.assemble(converter.knowledge_tokens().numpy(), soft)


def measure(engine_name: str, dtype: str, endpoints: list[str]) -> dict[str, list]:
    """p(yes) and texts by number of prompts at once."""
    prompt = Prompt(llm_folder("smollm2-135m"))
    prompts = prompts_of(prompt)
    settings = LLMSettings(
        engine=engine_name,
        endpoints=endpoints,
        dtype=dtype,
        max_new_tokens=TOKENS[dtype],
        batch_size=max(SIZES),
        max_sequences=max(SIZES),
    )
    engine = open_engine(prompt, settings, prompts.shape[1])
    measured = {}
    for size in SIZES:
        started = time.perf_counter()
        asked = prompts[::ALONE] if size == 1 else prompts
        if engine_name == SERVED:  # it keeps so many in flight
            engine.in_flight = size
            answers = engine.generate(asked)
        else:
            starts = range(0, len(asked), size)
            answers = [answer for start in starts for answer in engine.generate(asked[start : start + size])]
        measured[str(size)] = [[answer.p_yes, answer.text] for answer in (answers if size == 1 else answers[::ALONE])]
        print(f"{engine_name} {dtype}: {size} at once took {time.perf_counter() - started:.0f} s", flush=True)
    engine.close()
    return measured


def compare(folder: Path) -> None:
    """Print the differences within an engine from one prompt at a time, and between engines."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    print(f"{'measured':28}{'against':28}{'p(yes) apart':>14}{'at 1/2':>12}{'answers':>9}{'verdicts':>9}")
    for name, measured in found.items():
        dtype = name.rpartition("-")[2]
        for size, rows in measured.items():
            for other in dict.fromkeys((name, f"transformers-{dtype}", "transformers-float32")):
                if (size, other) != ("1", name) and other in found:
                    _line(f"{name} {size}", rows, f"{other} 1", found[other]["1"])


def _line(name: str, rows: list, other: str, others: list) -> None:
    here, there = (np.array([row[0] for row in each]) for each in (rows, others))
    apart = np.abs(here - there)
    # Log-odds that are so far apart move p(yes) by a quarter of that where it is one half.
    near = np.abs(np.log(here / (1 - here)) - np.log(there / (1 - there))).max() / 4
    texts = sum(row[1] != each[1] for row, each in zip(rows, others, strict=True))
    verdicts = sum(row[1][:2] != each[1][:2] for row, each in zip(rows, others, strict=True))
    print(f"{name:28}{other:28}{apart.max():14.2e}{near:12.2e}{texts:9}{verdicts:9}")


if __name__ == "__main__":
    target = Path(sys.argv[2])
    if sys.argv[1] == "compare":
        compare(target)
    else:
        dtype_asked = sys.argv[3] if len(sys.argv) > 3 else "float32"
        result = measure(sys.argv[1], dtype_asked, sys.argv[4:])
        target.mkdir(exist_ok=True)
        (target / f"{sys.argv[1]}-{dtype_asked}.json").write_text(json.dumps(result))
