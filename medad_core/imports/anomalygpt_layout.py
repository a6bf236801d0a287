"""Where the tensors of an AnomalyGPT checkpoint belong in medad.

One decision: every name is accounted for. What is missing or unknown is an error that lists all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medad_core.errors import WeightsError
from medad_core.models.converter import AnomalyGPTConverter
from medad_core.models.decoder import Decoder

TAPS = 4
# Prefix in a checkpoint → prefix in our decoder or converter; the first match counts. Convolutions keep their numbers.
DECODER_NAMES = {"image_decoder.fc.": "projections."}
CONVERTER_NAMES = {
    "prompt_learner.base_prompts": "base",
    "prompt_learner.meta_net.15.": "to_width.",
    "prompt_learner.meta_net.": "convolutions.",
    "llama_proj.": "image.",
}
LLM_PREFIX = "llama_model."
# Frozen models that a checkpoint may carry; the ones named at import are used.
FROZEN = ("visual_encoder.", LLM_PREFIX)
NO_PROJECTION = "; llama_proj is in PandaGPT's delta, which AnomalyGPT starts from: name that file first"

State = dict[str, Tensor]


@dataclass
class Checkpoint:
    """Tensors of our decoder, of our converter, and of the LoRA adapter, under their names there."""

    decoder: State = field(default_factory=dict)
    converter: State = field(default_factory=dict)
    lora: State = field(default_factory=dict)


def is_used(name: str) -> bool:
    """Whether a tensor of a checkpoint is used: all but those of frozen models, whose LoRA is used."""
    return ".lora_" in name or not name.startswith(FROZEN)


def sort_tensors(state: Mapping[str, Tensor]) -> Checkpoint:
    """The tensors of a checkpoint under our names. Raises WeightsError listing what is missing or unknown."""
    checkpoint = Checkpoint()
    unexpected = []
    for name, tensor in state.items():
        if ".lora_" in name and name.startswith(LLM_PREFIX):
            checkpoint.lora[name.removeprefix(LLM_PREFIX).replace(".default.", ".")] = tensor
        elif (ours := _our_name(name, DECODER_NAMES)) is not None:
            checkpoint.decoder[ours] = tensor
        elif (ours := _our_name(name, CONVERTER_NAMES)) is not None:
            checkpoint.converter[ours] = tensor
        else:
            unexpected.append(name)
    expected = expected_shapes(1, 1, 1, 1)  # only the names count here
    decoder = _Difference.of(checkpoint.decoder, DECODER_NAMES, expected.decoder)
    converter = _Difference.of(checkpoint.converter, CONVERTER_NAMES, expected.converter)
    missing = decoder.missing + converter.missing
    unexpected += decoder.unexpected + converter.unexpected
    if missing or unexpected:
        raise WeightsError(f"not the tensors of an AnomalyGPT checkpoint: {_list(missing, unexpected)}")
    return checkpoint


@dataclass(frozen=True)
class Shapes:
    """The shape of every tensor of a decoder and a converter, by our names."""

    decoder: dict[str, torch.Size]
    converter: dict[str, torch.Size]


def expected_shapes(features: int, text: int, llm: int, joint: int) -> Shapes:
    """Shapes for the widths of patch features, of the text space, of the LLM and of the joint space."""
    with torch.device("meta"):
        decoder = Decoder(TAPS, features, torch.empty(2, text)).state_dict()
        converter = AnomalyGPTConverter(llm, joint).state_dict()
    del decoder["text"]  # it comes from the sentences, not from a checkpoint
    return Shapes(
        {name: tensor.shape for name, tensor in decoder.items()},
        {name: tensor.shape for name, tensor in converter.items()},
    )


def their_name(name: str, names: Mapping[str, str] = DECODER_NAMES | CONVERTER_NAMES) -> str:
    """The checkpoint's name of one of our tensors."""
    return next(theirs + name.removeprefix(ours) for theirs, ours in names.items() if name.startswith(ours))


def _our_name(name: str, names: Mapping[str, str]) -> str | None:
    return next((ours + name.removeprefix(theirs) for theirs, ours in names.items() if name.startswith(theirs)), None)


@dataclass(frozen=True)
class _Difference:
    """Names of a checkpoint that one of our modules lacks, or has beyond it."""

    missing: list[str]
    unexpected: list[str]

    @classmethod
    def of(cls, given: State, names: Mapping[str, str], expected: Mapping[str, torch.Size]) -> _Difference:
        """Compare the tensors given with those expected; `names` are the prefixes of the module."""
        missing = [their_name(name, names) for name in sorted(expected.keys() - given.keys())]
        unexpected = [their_name(name, names) for name in sorted(given.keys() - expected.keys())]
        return cls(missing, unexpected)


def _list(missing: list[str], unexpected: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"missing: {', '.join(missing)}")
    if unexpected:
        parts.append(f"unexpected: {', '.join(unexpected)}")
    lacks_projection = any(name.startswith("llama_proj") for name in missing)
    return "; ".join(parts) + (NO_PROJECTION if lacks_projection else "")
