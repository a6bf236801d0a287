"""One task a unit of the paper's table: fit, answer, score. A unit that fails leaves its reason and does not stop the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prefect import task
from pydantic import BaseModel, ConfigDict

from medad_core import stopping
from medad_core.config import settings_from_yaml
from medad_core.errors import MedadError, Stopped
from medad_core.reproduce.units import Unit, pending, units_of, write_failure
from tasks.policy import OPTIONS, can_heal

log = logging.getLogger(__name__)


class Reproduced(BaseModel):
    """Where the table is, which rows failed and why, and which cases could not be used."""

    model_config = ConfigDict(frozen=True)
    table: str
    text: str
    figure: str
    gallery: str
    failed: tuple[tuple[str, str], ...]
    rejected: tuple[tuple[str, str], ...]


@task(name="prepare", description="Read, encode and deal the cases.", **OPTIONS)
def prepare_study(data: str, out: str, settings: str) -> int:
    from medad_core.reproduce.experiment import prepare

    return len(prepare(data, out, settings_from_yaml(settings), _progress("cases")).folds)


@task(name="decoder", description="Train the decoder of one fold and seed.", **OPTIONS)
def fit_decoder(out: str, settings: str, fold: int, seed: int, rows: list[str]) -> bool:
    from medad_core.reproduce.proposed import fit_decoder

    with _noting(out, [Unit(row, fold, seed) for row in rows]) as went:
        fit_decoder(out, fold, seed, settings_from_yaml(settings), _progress(f"decoder f{fold} s{seed}"))
    return went()


@task(name="converter", description="Train the converter of one row, fold and seed.", **OPTIONS)
def fit_converter(out: str, settings: str, row: str, fold: int, seed: int) -> bool:
    from medad_core.reproduce.proposed import fit_tokens

    unit = Unit(row, fold, seed)
    with _noting(out, [unit]) as went:
        fit_tokens(out, unit, settings_from_yaml(settings), _progress(f"{row} f{fold} s{seed}"))
    return went()


@task(name="answers", description="Let the LLM answer for all units that wait for it; one engine.", **OPTIONS)
def answer_units(out: str, settings: str, units: list[tuple[str, int, int]]) -> bool:
    from medad_core.reproduce.answers import answer_unit, speaking

    chosen, parsed, all_went = [Unit(*unit) for unit in units], settings_from_yaml(settings), True
    with _noting(out, chosen) as went, speaking(parsed) as (engine, prompt):
        for number, unit in enumerate(chosen, 1):
            with _noting(out, [unit]) as answered:
                answer_unit(out, unit, parsed, engine, prompt)
            all_went &= answered()
            _progress("answers")(number, len(chosen))
            _count_units(out, settings)
    return went() and all_went


@task(name="row", description="Fit and score one row on one fold with one seed.", **OPTIONS)
def score_unit(out: str, settings: str, row: str, fold: int, seed: int) -> bool:
    from medad_core.reproduce.rows import run_unit

    unit = Unit(row, fold, seed)
    with _noting(out, [unit]) as went:
        run_unit(out, unit, settings_from_yaml(settings), _progress(f"{row} f{fold} s{seed}"))
    _count_units(out, settings)
    return went()


@task(name="table", description="The table, its figure and its gallery, from the scores alone.", **OPTIONS)
def write_table(out: str, settings: str) -> Reproduced:
    from medad_core.reproduce.results import write

    made = write(out, settings_from_yaml(settings))
    _progress("table")(1, 1)
    return Reproduced(**vars(made))


def _progress(name: str) -> Callable[[int, int], None]:
    def tell(done: int, of: int) -> None:
        stopping.check()
        # The console reads these arguments and draws bars from them.
        log.info("%s %d of %d", name, done, of)

    return tell


def _count_units(out: str, settings: str) -> None:
    """Tell how much of the whole is done."""
    from medad_core.reproduce.experiment import open_experiment

    units = units_of(settings_from_yaml(settings).reproduce, len(open_experiment(out).folds))
    _progress("units")(len(units) - len(pending(out, units)), len(units))


@contextmanager
def _noting(out: str, units: list[Unit]) -> Iterator[Callable[[], bool]]:
    """Keep the reason of a failure with the units that it costs, and go on with the others; the result says whether it went well.

    What may heal passes through, so that Prefect tries again.
    """
    stopping.end_with_parent()
    failed: list[str] = []
    try:
        yield lambda: not failed
    except Stopped:
        raise
    except Exception as error:
        failed.append(str(error) if isinstance(error, MedadError) else f"{type(error).__name__}: {error}")
        log.warning("%s: %s", "; ".join(map(str, units)), failed[0], exc_info=not isinstance(error, MedadError))
        for unit in units:
            write_failure(out, unit, failed[0])
        if can_heal(error):
            raise
