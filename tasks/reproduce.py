"""One task per unit of the paper's table: fit, answer, score. A failed unit records its reason; the others continue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import task
from pydantic import BaseModel, ConfigDict

from medad_core import stopping
from medad_core.config import Settings
from medad_core.errors import MedadError, Stopped, in_one_line
from medad_core.faults.classify import can_heal
from medad_core.reproduce.units import Unit, pending, units_of, write_failure
from tasks.policy import OPTIONS

log = logging.getLogger(__name__)


class Reproduced(BaseModel):
    """The paths of the table, the failed rows with reasons, and the cases that could not be used."""

    model_config = ConfigDict(frozen=True)
    table: str
    text: str
    figure: str
    gallery: str
    failed: tuple[tuple[str, str], ...]
    rejected: tuple[tuple[str, str], ...]


@task(name="prepare", description="Read and encode the cases, and assign them to folds.", **OPTIONS)
def prepare_experiment(data: str, out: str, settings: Settings) -> int:
    """Prepare the experiment; returns its number of folds."""
    from medad_core.reproduce.experiment import prepare

    return len(prepare(data, out, settings, _progress("cases")).folds)


@task(name="decoder", description="Train the decoder of one fold and seed.", **OPTIONS)
def fit_decoder(out: str, settings: Settings, fold: int, seed: int, rows: list[str]) -> bool:
    """Train the decoder that `rows` need; returns whether it succeeded."""
    from medad_core.reproduce.proposed import fit_decoder

    with _noting_failure(out, [Unit(row, fold, seed) for row in rows]) as went_well:
        fit_decoder(out, fold, seed, settings, _progress(f"decoder f{fold} s{seed}"))
    return went_well()


@task(name="converter", description="Train the converter of one row, fold and seed.", **OPTIONS)
def fit_converter(out: str, settings: Settings, row: str, fold: int, seed: int) -> bool:
    """Train the converter of a unit; returns whether it succeeded."""
    from medad_core.reproduce.proposed import fit_tokens

    unit = Unit(row, fold, seed)
    with _noting_failure(out, [unit]) as went_well:
        fit_tokens(out, unit, settings, _progress(f"{row} f{fold} s{seed}"))
    return went_well()


@task(name="answers", description="Let the LLM answer for all units that wait for it; one engine.", **OPTIONS)
def answer_units(out: str, settings: Settings, units: list[tuple[str, int, int]]) -> bool:
    """Answer for all units; returns whether all succeeded."""
    from medad_core.reproduce.answers import answer_unit, speaking

    waiting = [Unit(*unit) for unit in units]
    all_went_well = True
    with _noting_failure(out, waiting) as went_well, speaking(settings) as (engine, prompt):
        for number, unit in enumerate(waiting, 1):
            with _noting_failure(out, [unit]) as unit_went_well:
                answer_unit(out, unit, settings, engine, prompt)
            all_went_well &= unit_went_well()
            _progress("answers")(number, len(waiting))
            _report_units(out, settings)
    return went_well() and all_went_well


@task(name="row", description="Fit and score one row on one fold with one seed.", **OPTIONS)
def score_unit(out: str, settings: Settings, row: str, fold: int, seed: int) -> bool:
    """Fit and score a unit; returns whether it succeeded."""
    from medad_core.reproduce.rows import run_unit

    unit = Unit(row, fold, seed)
    with _noting_failure(out, [unit]) as went_well:
        run_unit(out, unit, settings, _progress(f"{row} f{fold} s{seed}"))
    _report_units(out, settings)
    return went_well()


@task(name="table", description="The table, its figure and its gallery, from the scores alone.", **OPTIONS)
def write_table(out: str, settings: Settings) -> Reproduced:
    """Write the table, its figure and its gallery."""
    from medad_core.reproduce.results import write

    written = write(out, settings)
    _progress("table")(1, 1)
    return Reproduced(**vars(written))


def _progress(name: str) -> Callable[[int, int], None]:
    def report(done: int, of: int) -> None:
        stopping.check()
        # The console reads these arguments and draws bars from them.
        log.info("%s %d of %d", name, done, of)

    return report


def _report_units(out: str, settings: Settings) -> None:
    """Log how many of all units are done."""
    from medad_core.reproduce.experiment import open_experiment

    units = units_of(settings.reproduce, len(open_experiment(out).folds))
    _progress("units")(len(units) - len(pending(out, units)), len(units))


@contextmanager
def _noting_failure(out: str, units: list[Unit]) -> Iterator[Callable[[], bool]]:
    """Record the reason of a failure for the units that it affects; the other units continue.

    Yields a function that returns whether all succeeded. Errors that a retry may help are raised for Prefect.
    """
    stopping.end_with_parent()
    reasons: list[str] = []
    try:
        yield lambda: not reasons
    except Stopped:
        raise
    except Exception as error:
        reasons.append(str(error) if isinstance(error, MedadError) else in_one_line(error))
        traceback = not isinstance(error, MedadError)
        log.warning("%s: %s", "; ".join(map(str, units)), reasons[0], exc_info=traceback)
        for unit in units:
            write_failure(out, unit, reasons[0])
        if can_heal(error):
            raise
