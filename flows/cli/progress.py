"""Progress of a run on the terminal, read from the run's own files.

One decision: the bars are driven by part records and not by callbacks. So they are right for every runner, and for a
second terminal. Where there is no terminal, a line is written whenever a part is done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from medad_core.errors import MedadError
from medad_core.media import visible
from medad_core.store import Stage, open_stages

POLL_S = 0.5
OPENING = "cases"  # the first bar: until the first stage has a plan
CLOSING = "results"  # the last: after the last stage


class Board:
    """Named bars on a terminal, lines elsewhere; the same calls for both."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<14}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self.progress = Progress(*columns, console=console, disable=not self.live)
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, tuple[int, int | None, str]] = {}

    def show(self, name: str, done: int, of: int | None, note: str = "") -> None:
        """Set a bar; `of` None is a step of unknown length."""
        name = visible(name)
        note = visible(note)
        if self._last.get(name) == (done, of, note):
            return
        self._last[name] = (done, of, note)
        if not self.live:
            count = "…" if of is None else f"{done} of {of}"
            self.console.print(f"{name}: {count}, {note}" if note else f"{name}: {count}")
            return
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task(name, total=of, note=note)
        self.progress.update(self._tasks[name], completed=done, total=of, note=note)

    def retire(self, name: str) -> None:
        """Take the bar of a finished step from the terminal."""
        if name in self._tasks:
            self.progress.remove_task(self._tasks.pop(name))

    def begin(self, name: str) -> None:
        """Show a step that has started, unless it is shown already."""
        if name not in self._last:
            self.show(name, 0, None)

    def end(self, name: str) -> None:
        """Mark a step of unknown length as done."""
        if self._last.get(name, (0, 1))[1] is None:
            self.show(name, 1, 1)


class RunWatcher:
    """Looks at the stage files of the run that `find` names, None for none yet, and moves the bars."""

    def __init__(self, find: Callable[[], str | None], board: Board) -> None:
        self.find = find
        self.board = board
        self.run: str | None = None
        self._unfinished: list[Stage] = []

    def look(self) -> None:
        """One look. Files that are being replaced are looked at again next time."""
        with suppress(MedadError):
            self._look()

    def _look(self) -> None:
        run = self.find()
        if run is None:
            return
        if run != self.run:
            self.run = run
            self._unfinished = list(open_stages(run).values())
        while self._unfinished:
            stage = self._unfinished[0]
            if stage.find_plan() is None:
                return
            progress = stage.progress()
            self.board.end(OPENING)
            rejected = f", {progress.failed} rejected" if progress.failed else ""
            cases = f"{progress.done} of {progress.requested} cases{rejected}"
            self.board.show(stage.name, progress.parts_done, progress.parts, f"{cases}, {progress.rows} slices")
            if not progress.finished:
                return
            self._unfinished.pop(0)
        self.board.begin(CLOSING)


@contextmanager
def watching(find: Callable[[], str | None], console: Console) -> Iterator[None]:
    """Show the progress of the run that `find` names while the block runs."""
    board = Board(console)
    watcher = RunWatcher(find, board)
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            watcher.look()

    thread = threading.Thread(target=poll, name="medad-progress", daemon=True)
    with board.progress:
        board.begin(OPENING)
        thread.start()
        try:
            yield
            stop.set()
            thread.join()
            watcher.look()
            board.end(CLOSING)
        finally:
            stop.set()
            thread.join()


class _Steps(logging.Handler):
    """Turns the log lines `"%s %d of %d"` of a long task into bars.

    The bar of a finished step goes, unless it is one to `keep`.
    """

    def __init__(self, board: Board, keep: Collection[str] | None) -> None:
        super().__init__()
        self.board = board
        self.keep = keep

    def emit(self, record: logging.LogRecord) -> None:
        """Show the step of a record; other records are left to other handlers."""
        if isinstance(record.args, tuple) and len(record.args) == 3:
            name = str(record.args[0])
            done = int(str(record.args[1]))
            of = int(str(record.args[2]))
            self.board.show(name, done, of)
            if done == of and self.keep is not None and name not in self.keep:
                self.board.retire(name)


@contextmanager
def following(logger: str, console: Console, keep: Collection[str] | None = None) -> Iterator[None]:
    """Show the steps that `logger` reports while the block runs.

    Of many steps, only the bars to `keep` outlast their end.
    """
    board = Board(console)
    handler = _Steps(board, keep)
    logging.getLogger(logger).addHandler(handler)
    try:
        with board.progress:
            yield
    finally:
        logging.getLogger(logger).removeHandler(handler)
