"""Prompts to answers: the engine of the settings beside Transformers' `generate` and vLLM with its defaults.

One decision: a process holds one engine of vLLM, so every contender has a process of its own, which loads its model
before anything is measured. All get the same prompt embeddings, in float32 where the settings do not say otherwise, and
answers must be the same, word for word.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medad_core.benchmark.duel import PAIRS, Act, Contender, Contest, DuelReport, Fact, Result, as_numbers, duel
from medad_core.config import Settings
from medad_core.errors import UsageError
from medad_core.llm.engine import choose_engine, open_engine
from medad_core.llm.prompt import Prompt
from medad_core.llm.protocol import share_of_yes
from medad_core.llm.questions import PRESENCE, Question
from medad_core.llm.sizing import resolved_dtype
from medad_core.models.device import device_of
from medad_core.progress import ReportText
from medad_core.run.run import Run
from medad_core.stages.answers import Asking
from medad_core.stages.rows import tokens_of
from medad_core.surroundings.processes import spawn_context

BATCH = 64  # prompts at once of Transformers in batches
_Answers = tuple[list[str], list[float]]  # texts, and p(yes) where it is known
_opened: list[Callable[[], _Answers]] = []  # the one engine of a child process


@dataclass(frozen=True)
class Prompts:
    """Prompt embeddings (n, L, width) float32 in the file `file`, and what answers them."""

    file: Path
    settings: Settings
    template: str
    positions: int


def benchmark_generate(
    run: str,
    against: Sequence[str] = (),
    pairs: int = PAIRS,
    progress: ReportText = lambda _text: None,
    slices: int | None = None,
) -> DuelReport:
    """Answer the prompts of a run, or the first `slices` of them. Raises UsageError and UnequalError as `duel`."""
    GENERATE.chosen(against)
    opened = Run.reopen(run)
    settings = opened.settings
    asking = Asking.of(settings, [Question(PRESENCE)])
    soft = tokens_of(opened.stage("prompts").read())[:slices]
    prompt = asking.prompts[0]
    prompts = prompt.assemble(asking.knowledge, soft)
    with tempfile.TemporaryDirectory(prefix="medad-benchmark-") as folder:
        file = Path(folder) / "prompts.npy"
        np.save(file, prompts)
        given = Prompts(file, settings, prompt.template.name, asking.positions)
        described = f"{len(prompts)} prompts of {prompts.shape[1]} tokens, {settings.llm.model}, {_dtype(given)}"
        report = duel(GENERATE, given, described, against, pairs, progress)
    own = [pairing.ours_s.median for pairing in report.pairings]
    return report.with_facts(Fact("prompts", len(prompts), ""), Fact("prompts a second", len(prompts) / own[0], ""))


def _dtype(given: Prompts) -> str:
    return resolved_dtype(_prompt(given).folder, given.settings.llm.dtype)


def _prompt(given: Prompts) -> Prompt:
    from medad_core.llm.engine import llm_folder

    llm = given.settings.llm
    return Prompt(llm_folder(llm.model, llm.lora, where=given.settings.models), given.template)


def _in_a_process(opened: Callable[[Prompts], Callable[[], _Answers]], given: Prompts) -> Act:
    """An act in a process of its own, where `opened` has loaded the model."""
    pool = ProcessPoolExecutor(1, spawn_context(), _open, (opened, given))
    pool.submit(_answer).result()  # loads, and warms what an engine warms with its first prompts

    def act() -> Callable[[], Result]:
        texts, p_yes = pool.submit(_answer).result()
        results = {"answers": as_numbers(texts)}
        return lambda: {**results, "p_yes": np.array(p_yes)} if p_yes else results

    return act


def _open(opened: Callable[[Prompts], Callable[[], _Answers]], given: Prompts) -> None:
    _opened.append(opened(given))


def _answer() -> _Answers:
    return _opened[0]()


def _by_medad(given: Prompts) -> Callable[[], _Answers]:
    engine = open_engine(_prompt(given), given.settings.llm, given.positions, device_of(given.settings))
    prompts = np.load(given.file)

    def answer() -> _Answers:
        answers = engine.generate(prompts)
        return [one.text for one in answers], [one.p_yes for one in answers]

    return answer


def greedy(prompt: Prompt, max_new_tokens: int) -> dict[str, Any]:
    """What Transformers' `generate` needs for greedy answers, and for the logits of their first tokens."""
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "eos_token_id": list(prompt.end_tokens),
        "pad_token_id": prompt.end_tokens[-1],
        "return_dict_in_generate": True,
        "output_logits": True,
    }


def _by_transformers(batch: int, given: Prompts) -> Callable[[], _Answers]:
    from medad_core.llm.transformers_engine import load_llm

    prompt = _prompt(given)
    device = device_of(given.settings)
    model: Any = load_llm(prompt.folder, getattr(torch, _dtype(given))).to(device)
    prompts = torch.from_numpy(np.load(given.file)).to(device, model.dtype)
    options = greedy(prompt, given.settings.llm.max_new_tokens)

    @torch.inference_mode()
    def answer() -> _Answers:
        texts, p_yes = [], []
        for start in range(0, len(prompts), batch):
            made = model.generate(inputs_embeds=prompts[start : start + batch], **options)
            texts += [prompt.read_answer(row)[0] for row in made.sequences.tolist()]
            first = made.logits[0].float()[:, [prompt.yes_token, prompt.no_token]].tolist()
            p_yes += [share_of_yes(yes, no) for yes, no in first]
        return texts, p_yes

    return answer


def _by_vllm(given: Prompts) -> Callable[[], _Answers]:
    from medad_core.llm.vllm_engine import quiet_environment

    quiet_environment(not torch.cuda.is_available())
    from vllm import LLM, SamplingParams

    prompt = _prompt(given)
    # Without a limit it would need a cache for 8,192 positions a prompt; everything else is as vLLM chooses it.
    limit = given.positions + given.settings.llm.max_new_tokens
    llm = LLM(model=str(prompt.folder), dtype=_dtype(given), enable_prompt_embeds=True, max_model_len=limit)
    options = SamplingParams(
        temperature=0.0, max_tokens=given.settings.llm.max_new_tokens, stop_token_ids=list(prompt.end_tokens)
    )
    prompts = torch.from_numpy(np.load(given.file)).to(getattr(torch, _dtype(given)))

    def answer() -> _Answers:
        made = llm.generate([{"prompt_embeds": one} for one in prompts], options, use_tqdm=False)
        return [prompt.read_answer(list(each.outputs[0].token_ids))[0] for each in made], []

    return answer


def _require_vllm(given: Prompts) -> Act:
    if choose_engine("auto") != "vllm":
        raise UsageError("--against vllm-defaults: vllm is not installed")
    return _in_a_process(_by_vllm, given)


GENERATE: Contest[Prompts] = Contest(
    work="generate",
    ours=Contender("medad", "the engine of the settings", partial(_in_a_process, _by_medad)),
    peers=(
        Contender(
            "one-at-a-time",
            "real: Transformers' generate, one prompt at a time",
            partial(_in_a_process, partial(_by_transformers, 1)),
            ("transformers",),
        ),
        Contender(
            "transformers",
            f"real: Transformers' generate, {BATCH} prompts at once",
            partial(_in_a_process, partial(_by_transformers, BATCH)),
            ("transformers",),
        ),
        Contender("vllm-defaults", "real: vLLM, configured by nobody", _require_vllm),
    ),
    tolerance={"answers": 0.0, "p_yes": 1e-3},
)
