"""A question in free words about one slice of a run: understood, asked of the LLM, and computed from the map.

    from medad_core.run.run import Run
    from medad_core.stages.ask import ask

    print(ask(Run.reopen("RUN"), "CASE", "Is there any anomaly in the image?"))

One decision: what the run asked already is answered from its files. For another learned question, the LLM gets the
tokens that the run has of the slice, in the words of screening. So free words reach no LLM. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pyarrow as pa

from medad_core.config import Settings
from medad_core.data.findings import HALVES, find
from medad_core.errors import StoreError, UsageError
from medad_core.llm.questions import PRESENCE, REGION, Question, questions_of
from medad_core.llm.understanding import check_asked, load_understanding
from medad_core.media import read_csv
from medad_core.models.decoder import render_map
from medad_core.models.weights import converter_facts, right_share, weights_folder
from medad_core.report.reply import Computed, Reply
from medad_core.run.cohort import Member
from medad_core.run.fingerprints import answers_fingerprint, check_planned, prompts_fingerprint
from medad_core.run.rejected import rejected_cases
from medad_core.run.run import Run
from medad_core.stages.answers import Asking
from medad_core.stages.caveats import learned
from medad_core.stages.facts import WORKLIST_FILE, thresholds_of
from medad_core.stages.rows import bits_of, grids_of, windows_of
from medad_core.store import join
from medad_core.store.files import read_bytes

TRAINED_ON = "These weights were trained on this patient, so what they say here is too good."


def ask(run: Run, case_id: str, asked: str, slice_index: int | None = None) -> Reply:
    """Reply to a question in English about a slice of a run, that of the worklist if none is given.

    A question that cannot be answered is declined in the reply, and the LLM is not loaded for it. Raises UsageError for
    a case or a slice that the run does not have and for a question without words, StoreError where the run has no map
    of it, WeightsError where the models are no longer those of the run.
    """
    check_asked(asked)
    settings = run.settings
    member = _member(run, case_id)
    for rejected, stage, reason in rejected_cases(run.stages.values()):
        if rejected == case_id:
            raise UsageError(f"{case_id}: the run could not use this case: {stage}: {reason}")
    pictures = run.stage("slices").read_case(case_id)
    chosen = _chosen(run, case_id, pictures["slice_index"].to_pylist(), slice_index)
    match = load_understanding().nearest(asked)
    reply = Reply(
        case_id=case_id,
        slice_index=chosen,
        phantom=member.phantom,
        asked=asked,
        understood=None if match.question is None else match.question.wordings()[0],
        nearest=match.wording,
        similarity=match.similarity,
        declined=match.declined,
        can_be_asked=_askable(settings),
        notes=_notes(settings, member),
    )
    question = match.question
    if question is None or match.declined:
        return reply
    computed = _computed(run, question, _row_of(pictures, chosen))
    reply = replace(reply, computed=computed, declined=_may_not_be_asked(settings, question))
    return reply if reply.declined else _answered(run, question, reply)


def _member(run: Run, case_id: str) -> Member:
    member = next((member for member in run.cohort.members if member.case_id == case_id), None)
    if member is None:
        raise UsageError(f"{case_id}: the run has no such case; worklist.csv lists those it has")
    if member.rejected is not None:
        raise UsageError(f"{case_id}: the run could not use this case: {member.rejected}")
    return member


def _chosen(run: Run, case_id: str, slices: Sequence[int], slice_index: int | None) -> int:
    """The slice that is meant, which is one of `slices`."""
    if slice_index is None:
        return _look_at(run, case_id)
    if slice_index not in slices:
        raise UsageError(f"{case_id}, slice {slice_index}: it has slices {min(slices)} to {max(slices)}")
    return slice_index


def _look_at(run: Run, case_id: str) -> int:
    """The slice of a case to look at first, as the worklist of the run says."""
    text = read_bytes(join(run.uri, WORKLIST_FILE))
    rows = [] if text is None else list(read_csv(text.decode()))
    chosen = next((row["look_at"] for row in rows if row["case_id"] == case_id), None)
    if chosen is None:
        raise StoreError(
            f"{case_id}: {run.uri} has no worklist that says which slice to look at; name one, or write the worklist "
            f"with `medad evaluate {run.uri}`"
        )
    return int(chosen)


def _row_of(table: pa.Table, slice_index: int) -> pa.Table:
    return table.slice(table["slice_index"].to_pylist().index(slice_index), 1)


def _askable(settings: Settings) -> tuple[str, ...]:
    """One wording of each question that the weights may be asked."""
    known = converter_facts(weights_folder(settings.models.weights)).questions
    places = {name: HALVES if name == REGION else (None,) for name in known}
    return tuple(Question(name, place).wordings()[0] for name in known for place in places[name])


def _may_not_be_asked(settings: Settings, question: Question) -> str:
    """Why the weights of a run may not be asked a question; "" where they may."""
    folder = weights_folder(settings.models.weights)
    if question.family in converter_facts(folder).questions:
        return ""
    share = right_share(folder, question.family)
    learned = "have not learned it" if share is None else f"were right in {share:.2f} of the slices of their card"
    return f"its question is {question.name}, and the weights {settings.models.weights} {learned}; computed instead"


def _notes(settings: Settings, member: Member) -> tuple[str, ...]:
    """What a reader must know of the weights first."""
    known = learned(settings)
    return (*known.caveats, TRAINED_ON) if known.has_seen(member) else known.caveats


def _computed(run: Run, question: Question, picture: pa.Table) -> Computed:
    """What the map of the slice, a row of SLICES, says to a question, without the LLM."""
    row = picture.drop_columns(["image"]).to_pylist()[0]
    one_map = _row_of(run.stage("maps").read_case(row["case_id"]), row["slice_index"])
    windows = windows_of(one_map)
    rendered = render_map(grids_of(one_map)[0], row["height"], row["width"], None if windows is None else windows[0])
    threshold = thresholds_of(run).get(row["case_id"], run.settings.evaluate.map_threshold)
    finding = find(rendered >= threshold, bits_of(row, "brain"), row["spacing_mm"][0] * row["spacing_mm"][1])
    return Computed(
        question=question.name,
        value=question.truth(finding),
        score=one_map["anomaly_score"][0].as_py(),
        threshold=threshold,
        cell=None if finding is None else finding.cell,
        side=None if finding is None else finding.side,
        longest_mm=None if finding is None else finding.longest_mm,
        parts=None if finding is None else finding.parts,
    )


def _answered(run: Run, question: Question, reply: Reply) -> Reply:
    """The reply with the answer of the LLM, which the engine transformers runs: vLLM takes half a minute to start."""
    settings = run.settings
    if question in questions_of(settings.llm.questions):
        return _with(reply, question, _stored(run, question, reply))
    for stage, current in (("prompts", prompts_fingerprint), ("answers", answers_fingerprint)):
        check_planned(stage, run.stage(stage).plan().fingerprint, current(settings))
    asking = Asking.of(settings, (question,))
    longest = max(len(asking.prompts[0].answer_tokens(sentence)) for sentence in question.answers)
    here = {
        "engine": "transformers",
        "tensor_parallel_size": 1,
        "data_parallel_size": 1,
        "max_new_tokens": max(longest, settings.llm.max_new_tokens),  # the run may not have asked this question
    }
    settings = settings.model_copy(update={"llm": settings.llm.model_copy(update=here)})
    tokens = _row_of(run.stage("prompts").read_case(reply.case_id), reply.slice_index)
    with closing(asking.open_engine(settings)) as engine:
        return _with(reply, question, asking.rows(tokens, engine).to_pylist()[0])


def _stored(run: Run, question: Question, reply: Reply) -> dict[str, Any]:
    """The row of ANSWERS that the run has for the slice, which it asked the same."""
    rows = run.stage("answers").read_case(reply.case_id).to_pylist()
    return next(
        row
        for row in rows
        if row["slice_index"] == reply.slice_index and row.get("question", PRESENCE) == question.name
    )


def _with(reply: Reply, question: Question, row: Mapping[str, Any]) -> Reply:
    place = row["location"] if question.family == PRESENCE else None
    p_yes = row["p_yes"] if question.is_yes_or_no else None
    return replace(reply, answer=row["answer"], value=question.read(row["answer"]), place=place, p_yes=p_yes)
