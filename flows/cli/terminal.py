"""The two consoles of a command: stdout and stderr.

One decision: a string that is printed is one line of text and nothing else. It may hold the name of a patient's folder,
and `[/]`, `:smile:` or an escape sequence in it is printed as it is spelt. Rich reads no markup in what `terminal`
returns, whichever way a string gets to it; colours are given by `rich.text.Text`.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from medad_core.media import visible

FILE_WIDTH = 160  # a log file has no width; tables must not be folded to that of an old terminal


class Terminal(Console):
    """A console for which every string is one line of plain text: printed, in a table, or beside a spinner."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """What Rich makes of every string that it is given."""
        return Text(
            visible(text),
            style=options.get("style", ""),
            justify=options.get("justify"),
            overflow=options.get("overflow"),
        )

    def status(self, status: RenderableType, **options: Any) -> Status:
        """See `Console.status`."""
        return _Status(status, console=self, **options)


class _Status(Status):
    """A spinner: Rich reads markup in its text, whatever the console says."""

    def __init__(self, status: RenderableType, **options: Any) -> None:
        super().__init__(_plain(status), **options)

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        """See `Status.update`."""
        super().update(_plain(status), **options)


def _plain(text: Any) -> Any:
    return Text(visible(text)) if isinstance(text, str) else text


def terminal(*, stderr: bool = False) -> Terminal:
    """stdout or stderr; wide where it is no terminal."""
    console = Terminal(stderr=stderr)
    return console if console.is_terminal else Terminal(stderr=stderr, width=FILE_WIDTH)
