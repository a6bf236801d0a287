"""What the two stages that compute need at least on this device: encoder in `maps`, LLM in `answers`.

One decision: the limits are measured here, a matrix product and a copy in memory, and not taken from a data sheet. Only
what cannot be avoided is counted. Of the encoder: its matrix products, and its weights once a batch. Of the LLM: two
operations a parameter and token, less the tokens that all prompts share; its weights once for each step of as many
prompts as are answered at once; and the cache of each prompt once for each of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medad_core.benchmark.flops import flops_per_slice, shape_of
from medad_core.benchmark.profile import Profile, Roofline
from medad_core.benchmark.timing import best_gemm, copy_rate, rate
from medad_core.config import LLMSettings
from medad_core.llm.engine import SERVED, choose_engine
from medad_core.llm.sizing import BYTES, ModelSize, model_size, resolved_dtype
from medad_core.llm.vllm_engine import sequences_of
from medad_core.models.blocks import PRECISIONS
from medad_core.models.device import batch_size_of, device_of
from medad_core.run.fingerprints import asked_questions, settled_precision
from medad_core.run.run import Run
from medad_core.stages.answers import Asking
from medad_core.stages.loading import load_map_models

LEAST_S = 1.0


@dataclass(frozen=True)
class _Work:
    """Operations of a slice, and bytes that are moved for it, in a precision."""

    flops: float
    bytes: float
    precision: str


def rooflines(run: Run, profile: Profile) -> dict[str, Roofline]:
    """The rooflines of both stages of a finished run, of which `profile` is the profile, on the device of the run.

    That of maps alone where the LLM is served: its device is another one's.
    """
    device = torch.device(device_of(run.settings))
    works = {"maps": _of_encoder(run, device)}
    if choose_engine(run.settings.llm.engine) != SERVED:
        works["answers"] = _of_llm(run, profile)
    bytes_s = copy_rate(device, LEAST_S)
    flops_s = {precision: _peak(precision, device) for precision in {work.precision for work in works.values()}}
    gpus = {name: profile.stages[name].gpus for name in works}
    return {
        name: Roofline(work.flops, flops_s[work.precision] * gpus[name], work.bytes, bytes_s * gpus[name])
        for name, work in works.items()
    }


def _peak(precision: str, device: torch.device) -> float:
    side, multiply = best_gemm(PRECISIONS[precision], device, LEAST_S / 2)
    return rate(multiply, device, LEAST_S) * 2 * side**3


def _of_encoder(run: Run, device: torch.device) -> _Work:
    precision = settled_precision(run.stage("maps").plan().fingerprint)
    encoder = load_map_models(run.settings, str(device), precision).encoder
    weights = sum(weight.numel() for weight in encoder.parameters()) * BYTES[precision]
    return _Work(flops_per_slice(shape_of(encoder)), weights / batch_size_of(run.settings, device), precision)


def _of_llm(run: Run, profile: Profile) -> _Work:
    settings = run.settings
    asking = Asking.of(settings, asked_questions(settings))
    folder = asking.prompts[0].folder
    precision = resolved_dtype(folder, settings.llm.dtype)
    size = model_size(folder)
    shared = len(asking.prompts[0].prefix(torch.from_numpy(asking.knowledge)))
    own = profile.prompt_tokens - shared + profile.answer_tokens
    steps = profile.answer_tokens
    at_once = min(_at_once(settings.llm, size), profile.cases_per_part * profile.slices / profile.cases)
    numbers = size.parameters * steps / at_once + size.cache_numbers * profile.prompt_tokens * steps
    asked = profile.questions
    return _Work(2 * size.parameters * own * asked, numbers * BYTES[precision] * asked, precision)


def _at_once(llm: LLMSettings, size: ModelSize) -> int:
    """Prompts that share a step."""
    return sequences_of(llm, size) if choose_engine(llm.engine) == "vllm" else llm.batch_size
