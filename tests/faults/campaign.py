"""The processes of the fault campaign: one prepared parent that forks a fresh screening on request.

So a life costs seconds. Run as `python campaign.py`: it reads one line a life (JSON: inbox, cohort, words), and writes
the child's pid, then its exit code.
"""

from __future__ import annotations

import json
import os
import sys
import traceback


def prepare() -> None:
    """Import what a screening needs. Nothing of it may start a thread: threads do not survive a fork."""
    import medad_core.llm.transformers_engine
    import medad_core.stages.answers
    import medad_core.stages.evaluate
    import medad_core.stages.maps  # noqa: F401


def screen(inbox: str, cohort: str, words: list[str]) -> None:
    """One life: the real flow on the real server."""
    from flows.screen import screen_cohort
    from medad_core.config import load_settings

    screen_cohort(inbox, cohort, load_settings(None, words))


def main() -> None:
    prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                screen(**json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
