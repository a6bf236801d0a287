"""The entry point of `medad`: it starts again where Python was started in a way that nothing can mend later.

One decision: inside, everything is UTF-8, also names of files and files that a library opens without naming an
encoding; only what is printed is in the encoding of the terminal. And no module comes from the folder that medad is
called in, which an empty entry of PYTHONPATH means. Python decides both when it starts. So a command that was started
otherwise starts again, as the same process, before anything is imported that could be a file of that folder.
"""

from __future__ import annotations

import codecs
import os
import sys

from medad_core.surroundings.processes import without_relative


def main() -> None:
    """Run the command line."""
    start_again_if_needed()
    from flows.cli.app import main as run

    run()


def start_again_if_needed() -> None:
    """Start this command again in Python's UTF-8 mode, without relative entries of PYTHONPATH. May not return."""
    path = os.environ.get("PYTHONPATH", "")
    is_utf8 = sys.flags.utf8_mode or codecs.lookup(sys.getfilesystemencoding()).name == "utf-8"
    if (is_utf8 and without_relative(path) == path) or sys.flags.ignore_environment or not sys.executable:
        return
    os.environ["PYTHONPATH"] = without_relative(path)
    if not is_utf8:
        os.environ["PYTHONUTF8"] = "1"
        if sys.stdout is not None and sys.stdout.encoding:
            os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
