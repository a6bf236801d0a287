"""How long work reports how far it is: one callback for each kind of report, whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

ReportProgress = Callable[[int, int], None]  # steps done, and of how many
ReportStep = Callable[[str, int, int], None]  # the name of the step, how much of it is done, and of how much
ReportText = Callable[[str], None]  # what is done now, in words
