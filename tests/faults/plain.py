"""A screening without Prefect: `plain.py DATA RUN key=value…`."""

from __future__ import annotations

import sys

from medad_core.config import load_settings
from medad_core.stages.screen import screen

if __name__ == "__main__":
    data, run, *words = sys.argv[1:]
    screen(data, run, load_settings(None, words))
