"""Tries a chat template that somebody else wrote, in a process that ends it: it may loop, or fill all memory.

One decision: the trial judges time and memory alone. It needs Jinja and nothing of `transformers`, so it takes a
quarter of a second. What a template says, and whether it is one, is judged by `transformers`, after it passed.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from medad_core.errors import WeightsError
from medad_core.surroundings.processes import piped_environment, python_command

SECONDS = 5  # of the processor; templates of published models take a thousandth
BYTES = 1 << 30  # of memory; Python with Jinja takes 40 MB
WALL_SECONDS = 60  # on a machine with other work
_SPENT = 3  # the exit code of a template that is too expensive


def check_template(template: str, messages: Sequence[Mapping[str, str]]) -> None:
    """Raise WeightsError where rendering `template` with `messages` takes too much time or memory."""
    _try(template, json.dumps(list(messages)))


@cache
def _try(template: str, messages: str) -> None:
    command = python_command(str(Path(__file__)))
    given = json.dumps([template, messages])
    try:
        code = subprocess.run(
            command,
            input=given,
            capture_output=True,
            encoding="utf-8",
            timeout=WALL_SECONDS,
            env=piped_environment(),
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        code = _SPENT
    if code < 0 or code == _SPENT:
        raise WeightsError(
            f"llm.template: the chat template takes more than {SECONDS} s or {BYTES >> 20} MiB for one question; "
            "get the tokenizer's files again, or set llm.template=anomalygpt"
        )


def _render(template: str, messages: list[dict[str, Any]]) -> int:
    """In the process of its own: the exit code."""
    import resource

    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals["strftime_now"] = lambda form: form
    try:
        for _ in environment.from_string(template).generate(messages=messages, add_generation_prompt=True):
            pass
    except MemoryError:
        return _SPENT
    except Exception:  # of the template, or of a name that only transformers knows
        return 0
    return 0


if __name__ == "__main__":
    import sys

    _template, _messages = json.loads(sys.stdin.read())
    sys.exit(_render(_template, json.loads(_messages)))
