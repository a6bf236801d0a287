"""The command `medad`, in a process where something goes wrong.

    python faulty.py FAULT CASE [FILE] -- screen DATA --out RUN …

It is a script, and no patch in the test: pools of processes import it again, so the fault is in their workers too.
FAULT is what happens when the volume of CASE is read:

raise   an error of no known kind
die     the process dies as under the kernel's out-of-memory killer
hold    once: the process number is written to FILE, and the call takes an hour, in which a signal may come

Word `slices` instead of `screen` runs that stage alone: `slices RUN key=value…`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from medad_core.stages import slices

fault, poisoned, *rest = sys.argv[1 : sys.argv.index("--")]
words = sys.argv[sys.argv.index("--") + 1 :]
_read_slices = slices.read_slices


def read_slices(case, settings):
    if case.case_id == poisoned:
        if fault == "raise":
            raise RuntimeError("poisoned")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "hold" and not Path(rest[0]).exists():
            Path(rest[0]).write_text(str(os.getpid()))
            time.sleep(3600)
    return _read_slices(case, settings)


slices.read_slices = read_slices


def main() -> None:
    if words[0] == "slices":
        from flows.cli.quiet import prepare_process
        from flows.cli.server import start_temporary_server
        from flows.cli.terminal import terminal
        from flows.stages import slices as flow
        from medad_core.config import load_settings

        prepare_process(False, terminal(stderr=True))
        start_temporary_server()
        flow(words[1], load_settings(None, words[2:]))
        return
    from flows.cli.app import app

    app(words)


if __name__ == "__main__":
    main()
