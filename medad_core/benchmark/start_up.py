"""What a command costs before it works, or where nothing is left to do: `medad benchmark start-up RUN`.

One decision: every command is started as a user starts it, in a process of its own, and timed from outside. They take
turns, and the first turn, which reads everything into the page cache, does not count.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from medad_core.benchmark.machine import code_commit, cpu_name
from medad_core.benchmark.spread import Spread
from medad_core.config import settings_to_yaml
from medad_core.errors import MedadError, UsageError
from medad_core.inbox.folder import CohortFolder
from medad_core.progress import ReportText
from medad_core.run.info import read_run_info
from medad_core.store.files import resolved
from medad_core.surroundings.processes import piped_environment, python_command

TURNS = 5
DEADLINE_S = 600.0  # for the first part of a new run
_LOOK_S = 0.02


@dataclass(frozen=True)
class StartUpReport:
    """Seconds of each command by what it does, from its start to its end, or to the first part of a new run."""

    cases: int
    commit: str
    date: str
    device: str
    seconds: dict[str, Spread]


def benchmark_start_up(
    run: str, cohort: str | None = None, turns: int = TURNS, progress: ReportText = lambda _text: None
) -> StartUpReport:
    """Start every command `turns` times, in turn. `run` is finished, and `cohort` has screened all of its inbox.

    Raises StoreError for a folder that is no run, UsageError for a cohort without a ledger, MedadError where a command
    fails.
    """
    info = read_run_info(run)
    with tempfile.TemporaryDirectory(prefix="medad-benchmark-") as scratch:
        settings = Path(scratch) / "settings.yaml"
        settings.write_text(settings_to_yaml(info.parsed_settings()), encoding="utf-8")
        screen = ["screen", info.data_root, "--config", str(settings), "--out"]
        works: dict[str, Callable[[], float]] = {
            "medad --help": lambda: _run(["--help"]),
            "medad status RUN": lambda: _run(["status", run]),
            "medad screen, a finished run": lambda: _run([*screen, run]),
            "medad screen, to the first slices of a new run": lambda: _to_first_part([*screen], Path(scratch)),
        }
        if cohort is not None:
            works["medad screen --cohort, nothing new"] = lambda: _run(_screen_again(cohort, scratch))
        times = _in_turns(works, turns, progress)
    cases = len(_cases(run))
    seconds = {name: Spread.of(values) for name, values in times.items()}
    return StartUpReport(cases, code_commit(), datetime.now(UTC).date().isoformat(), cpu_name(), seconds)


def _cases(run: str) -> Sequence[str]:
    from medad_core.run.cohort import cohort_of

    return [member.case_id for member in cohort_of(run).members]


def _in_turns(works: Mapping[str, Callable[[], float]], turns: int, progress: ReportText) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            progress(f"{name}, turn {turn} of {turns}")
            seconds = work()
            if turn:
                times[name].append(seconds)
    return times


def _screen_again(cohort: str, scratch: str) -> list[str]:
    folder = CohortFolder(cohort)
    ledger = folder.ledger()
    if ledger is None:
        raise UsageError(f"--cohort {cohort}: has no ledger; screen an inbox into it first")
    settings = Path(scratch) / "cohort.yaml"
    info = read_run_info(folder.run_of(ledger.batches[-1]))
    settings.write_text(settings_to_yaml(info.parsed_settings()), encoding="utf-8")
    return ["screen", resolved(ledger.inbox), "--config", str(settings), "--cohort", cohort]


def _command(words: Sequence[str]) -> list[str]:
    # By its name: the core must not import the flows, and a process of its own can.
    return python_command("-m", "flows.cli", *words)


def _run(words: Sequence[str]) -> float:
    """Seconds of a command that ends well; 3 says that some cases were rejected."""
    started = time.perf_counter()
    done = subprocess.run(_command(words), capture_output=True, env=piped_environment(), check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 3):
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise MedadError(f"medad {words[0]} failed: {lines[-1]}")
    return seconds


def _to_first_part(words: Sequence[str], scratch: Path) -> float:
    """Seconds from the start of a screening to its first part of slices; it is terminated then."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        first = Path(folder) / "run" / "slices" / "_parts" / "00000.json"
        started = time.perf_counter()
        process = subprocess.Popen(
            _command([*words, str(Path(folder) / "run")]),
            env=piped_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not first.exists():
                if process.poll() is not None or time.perf_counter() - started > DEADLINE_S:
                    raise MedadError(f"medad screen ended with {process.poll()} before it had made a slice")
                time.sleep(_LOOK_S)
            return time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()
