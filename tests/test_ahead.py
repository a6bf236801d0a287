"""What is done beside a stage: when it begins, that it is waited for, and that its failure is nobody else's."""

from __future__ import annotations

import threading
import time

import pytest
from prefect_harness import WORDS, write_case

from medad_core.config import load_settings
from medad_core.run.run import Run
from medad_core.stages import workers
from medad_core.stages.ahead import done_beside, engine_imported_beside
from medad_core.stages.complete import complete_stage, plan_stage
from medad_core.stages.screen import LoopExecutor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead")
    write_case(folder / "data", "case", 0)
    settings = load_settings(None, WORDS)
    with Run.held(str(folder / "data"), str(folder / "run"), settings) as opened:
        for name in ("slices", "maps"):
            plan_stage(opened, name)
            if name == "slices":
                make(opened, name)
        yield opened


def make(run: Run, name: str) -> None:
    complete_stage(run, name, LoopExecutor(run, name))


def test_work_begins_when_the_models_are_open_and_the_block_waits_for_it(run):
    seen = []
    made = threading.Event()

    def work() -> None:
        seen.append(threading.current_thread() is not threading.main_thread())
        assert made.wait(60)
        time.sleep(0.3)  # longer than the stage
        seen.append("done")

    with done_beside("maps", work):
        make(run, "slices")  # finished: opens nothing
        assert seen == []
        make(run, "maps")
        made.set()
    assert seen == [True, "done"]
    assert run.stage("maps").progress().done == 1
    with done_beside("maps", work):
        make(run, "maps")  # finished by now
    assert len(seen) == 2
    assert workers.when_opened == []


def test_work_that_fails_and_a_stage_that_fails_are_two_things(run):
    def fail() -> None:
        raise ImportError("of the engine")

    with done_beside("maps", fail):
        for call in workers.when_opened:
            call("maps")
    with pytest.raises(ValueError, match="of the stage"), done_beside("maps", fail):
        raise ValueError("of the stage")
    assert workers.when_opened == []


@pytest.mark.parametrize(("runner", "begins"), [("thread", True), ("process", False), ("ray", False)])
def test_an_engine_is_imported_ahead_only_where_this_process_makes_the_maps(runner, begins):
    settings = load_settings(None, ["models.device=cpu", "llm.engine=transformers", f"flow.runner={runner}"])
    with engine_imported_beside(settings, "maps"):
        assert bool(workers.when_opened) is begins
