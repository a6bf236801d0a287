"""Tasks that take a run, or a cohort, as a whole: evaluation and training."""

from __future__ import annotations

import logging

from prefect import task
from pydantic import BaseModel, ConfigDict

from medad_core.config import Settings
from medad_core.run.outcome import Outcome
from tasks.policy import OPTIONS

log = logging.getLogger(__name__)


class Trained(BaseModel):
    """The folder of the weights, the rejected cases with reasons, and the scores of the card."""

    model_config = ConfigDict(frozen=True)
    folder: str
    rejected: tuple[tuple[str, str], ...]
    scores: dict[str, dict[str, float | int | None] | dict[str, dict[str, float | int | None]]]


@task(name="evaluate", description="Predictions, metrics and page from stage files.", **OPTIONS)
def evaluate_run(run: str, settings: Settings) -> Outcome:
    """Write predictions, metrics and page of a finished run."""
    from medad_core.run.run import Run
    from medad_core.stages import evaluate

    results = evaluate.evaluate_run(Run.reopen(run, settings))
    return Outcome(
        predictions=results.predictions,
        metrics=results.metrics,
        page=results.page,
        slices=results.slices,
        cases=results.cases,
        rejected=tuple(results.rejected),
        warned=len(results.warned),
        followed=results.followed,
    )


@task(name="train", description="Decoder and converter from labelled cases; resumes where it stopped.", **OPTIONS)
def train_weights(data: str, out: str, settings: Settings, licence: str, limits: str) -> Trained:
    """Train decoder and converter on the labelled cases below `data`."""
    from medad_core.training.pipeline import train

    def report_progress(step: str, done: int, of: int) -> None:
        # The console reads these arguments and draws bars from them.
        log.info("%s %d of %d", step, done, of)

    trained = train(data, out, settings, report_progress, licence, limits)
    return Trained(
        folder=str(trained.folder),
        rejected=tuple((case.case_id, case.reason) for case in trained.rejected),
        scores=trained.scores,
    )
