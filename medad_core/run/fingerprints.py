"""The fields of each stage's fingerprint, computed before any model is loaded.

One decision: compatibility is checked with fingerprints when a run is opened, so a decoder of a different encoder is
refused before the first forward pass. The precision of maps is fixed there too: every machine that resumes a run uses
the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medad_core.config import Settings
from medad_core.errors import UsageError, WeightsError
from medad_core.llm.engine import llm_fingerprint, llm_folder
from medad_core.llm.lora import check_lora
from medad_core.llm.prompt import check_prompts
from medad_core.llm.questions import Question, asked_sha256, questions_of
from medad_core.llm.sizing import resolved_dtype
from medad_core.llm.template import word, wording_sha256
from medad_core.models.device import precision_of
from medad_core.models.encoder import NO_JOINT, encoder_fingerprint, joint_width
from medad_core.models.resolve import model_folder
from medad_core.models.text import load_sentences, text_encoder_fingerprint
from medad_core.models.view import WINDOW_MM, View
from medad_core.models.weights import (
    CONVERTER,
    DECODER,
    check_fit,
    converter_facts,
    decoder_view,
    weights_fingerprint,
    weights_folder,
)
from medad_core.run.fields import PICTURE, Fields, declared_fields, settings_fields
from medad_core.store.planning import difference


@dataclass(frozen=True)
class ResolvedModels:
    """The models of a run, as the fingerprint fields of each stage after `slices`."""

    maps: Fields
    prompts: Fields
    answers: Fields

    @classmethod
    def of(cls, settings: Settings, stored_maps: Mapping[str, str] | None = None) -> ResolvedModels:
        """The models in `settings`; `stored_maps` is the fingerprint of maps that a run already has.

        Raises UsageError or WeightsError if a model is missing, or models do not fit together.
        """
        maps = maps_fingerprint(settings, stored_maps)
        return cls(maps, prompts_fingerprint(settings), answers_fingerprint(settings))

    @property
    def precision(self) -> str:
        """The precision in which maps are made."""
        return settled_precision(self.maps)


def run_fingerprint(settings: Settings, stored: Mapping[str, str] | None = None) -> Fields:
    """All fields that determine the predictions of a case, except its files; `stored` is like `stored_maps` above."""
    models = ResolvedModels.of(settings, stored)
    declared = declared_fields(settings)
    return {**settings_fields(settings, *PICTURE), **declared, **models.maps, **models.prompts, **models.answers}


def shared_fingerprint(settings: Settings) -> Fields:
    """Fields that both decoder and converter were made for."""
    text = text_encoder_fingerprint(settings.models.text_encoder, where=settings.models)
    return {**text, "sentences_sha256": load_sentences().sha256, "scaling": _scaling_key(settings)}


def _scaling_key(settings: Settings) -> str:
    """The modality and intensity scaling that a decoder depends on."""
    return json.dumps({"modality": settings.data.modality, **settings.data.scaling.model_dump()}, sort_keys=True)


def maps_fingerprint(settings: Settings, stored: Mapping[str, str] | None = None) -> Fields:
    """The fields that determine maps: encoder, texts, decoder, score, and a precision other than float32.

    `stored` is the fingerprint of maps that a run already has; `auto` keeps their precision. Raises WeightsError
    if decoder and encoder do not fit.
    """
    folder = weights_folder(settings.models.weights)
    view = view_of(settings)
    present = {
        **encoder_fingerprint(settings.models.encoder, view.image_pixels, where=settings.models),
        **shared_fingerprint(settings),
    }
    check_fit(folder / DECODER, present)
    fields = {
        **present,
        **weights_fingerprint(folder, DECODER),
        "image_score": settings.models.image_score.model_dump_json(),
    }
    if view.window_mm:
        fields[WINDOW_MM] = str(view.window_mm)
    joint = joint_of(settings)
    if joint is not None:
        fields["embedding"] = f"joint space, {joint} wide"
    keeps_stored = stored is not None and settings.models.precision == "auto"
    precision = settled_precision(stored) if keeps_stored and stored is not None else precision_of(settings)
    if precision != "float32":
        fields["precision"] = precision
    return fields


def view_of(settings: Settings) -> View:
    """What the encoder sees of a slice: as the decoder was trained.

    Raises WeightsError where `data.context_mm` says something else.
    """
    view = decoder_view(weights_folder(settings.models.weights))
    asked = settings.data.context_mm
    if asked is not None and asked != view.context_mm:
        raise WeightsError(
            f"data.context_mm={asked:g}: the weights {settings.models.weights} were trained with {view.context_mm:g}; "
            "leave it out, or train others with train.context_mm"
        )
    return view


def settled_precision(fingerprint: Mapping[str, str]) -> str:
    """The precision in which the maps of a fingerprint are made.

    float32 is not in the fingerprint, so that maps older than the setting keep theirs.
    """
    return fingerprint.get("precision", "float32")


def joint_of(settings: Settings) -> int | None:
    """Width of the image embedding that the converter needs, None if it needs none.

    Raises WeightsError if the encoder does not have it.
    """
    asked = converter_facts(weights_folder(settings.models.weights)).joint
    if asked is None:
        return None
    given = joint_width(settings.models.encoder, where=settings.models)
    if given is None:
        raise WeightsError(NO_JOINT.format(name=settings.models.encoder))
    if asked != given:
        raise WeightsError(f"models.encoder: its joint space is {given} wide, the converter needs {asked}")
    return asked


def prompts_fingerprint(settings: Settings) -> Fields:
    """The fields that determine map tokens: the converter. Raises WeightsError if it was made for another LLM."""
    folder = weights_folder(settings.models.weights)
    check_fit(folder / CONVERTER, converter_surroundings(settings))
    return weights_fingerprint(folder, CONVERTER)


def converter_surroundings(settings: Settings) -> Fields:
    """The fields that a converter must fit."""
    llm = llm_fingerprint(settings.llm.model, settings.llm.lora, where=settings.models)
    return {**llm, **shared_fingerprint(settings)}


def answers_fingerprint(settings: Settings) -> Fields:
    """The fields that determine answers: the LLM, its settings and its template.

    `template` is a field only if it differs from that of the weights, `wording` only if the LLM is the user's own, and
    `questions` only if more than presence is asked.
    """
    fields = speech_fingerprint(settings)
    questions = asked_questions(settings)
    if len(questions) > 1:
        names = ", ".join(question.name for question in questions)
        fields["questions"] = f"{names} ({asked_sha256(questions)[:12]})"
    model = model_folder(settings.llm.model, "language model", settings.models)
    if not model.packaged:
        fields["wording"] = wording_sha256(model.folder, *wording(settings))
    template = settings.llm.template
    if template not in ("auto", converter_facts(weights_folder(settings.models.weights)).template):
        fields["template"] = template
    return fields


def speech_fingerprint(settings: Settings) -> Fields:
    """The LLM, its token limit, its dtype and whether it is restricted to the grammar.

    The engine is not a field: all engines give the same greedy answers. float32 and unrestricted answers are not in the
    fingerprint, so that answers older than these settings keep theirs.
    """
    llm = settings.llm
    fields = {
        **llm_fingerprint(llm.model, llm.lora, where=settings.models),
        "max_new_tokens": str(llm.max_new_tokens),
    }
    dtype = resolved_dtype(llm_folder(llm.model, where=settings.models), llm.dtype)
    if dtype != "float32":
        fields["llm_dtype"] = dtype
    if llm.structured:
        fields["structured"] = "true"
    return fields


def asked_questions(settings: Settings) -> tuple[Question, ...]:
    """The questions of a run. Raises UsageError where one is unknown, WeightsError where the weights do not know it."""
    questions = questions_of(settings.llm.questions)
    known = converter_facts(weights_folder(settings.models.weights)).questions
    unknown = [question.name for question in questions if question.family not in known]
    if unknown:
        raise WeightsError(
            f"llm.questions: the weights {settings.models.weights} have not learned {', '.join(unknown)}, only "
            f"{', '.join(known)}; leave it out, or train others "
            "(train.converter.questions; train.converter.least_right says how well they must answer)"
        )
    return questions


def wording(settings: Settings) -> tuple[str, bool]:
    """The template of the LLM's prompt, and whether a slice has a token of its embedding."""
    facts = converter_facts(weights_folder(settings.models.weights))
    template = facts.template if settings.llm.template == "auto" else settings.llm.template
    return template, facts.joint is not None


def check_wording(settings: Settings) -> None:
    """Raise WeightsError if the template of settings and weights does not work with the LLM.

    Raises UsageError if an answer could not be said within `llm.max_new_tokens`. Loads only a tokenizer.
    """
    template, image = wording(settings)
    check_llm(settings, template, image)
    words = word(llm_folder(settings.llm.model, where=settings.models), template, image)
    questions = asked_questions(settings)
    answers = [*words.template.sentences, *(answer for question in questions[1:] for answer in question.answers)]
    longest = max(answers, key=words.length)
    if words.length(longest) > settings.llm.max_new_tokens:
        raise UsageError(
            f"llm.max_new_tokens={settings.llm.max_new_tokens}: this LLM needs {words.length(longest)} for "
            f"{longest!r}; set at least as many"
        )


def check_llm(settings: Settings, template: str, image: bool = False) -> None:
    """Raise WeightsError if a template does not work with an LLM, or its LoRA does not fit it.

    Reads only a tokenizer and headers.
    """
    folder = llm_folder(settings.llm.model, where=settings.models)
    check_prompts(folder, template, image)
    if settings.llm.lora is not None:
        check_lora(folder, Path(settings.llm.lora).expanduser())


def check_planned(stage: str, planned: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raise WeightsError where models are no longer those that a stage was planned with.

    They may have been replaced while the stages before it ran, or be others on this machine.
    """
    fields = {name: planned[name] for name in current if name in planned}
    if fields != dict(current):
        raise WeightsError(
            f"the stage {stage} was planned {difference(fields, current)}; bring those models back, or choose another "
            "output folder for the new ones"
        )
