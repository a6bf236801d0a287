"""One life of the fault campaign: the nightly screening of an inbox, the real flow on the real server.

Run as `campaign.py INBOX COHORT key=value…`.
"""

from __future__ import annotations

import sys

from flows.screen import screen_cohort
from medad_core.config import load_settings

if __name__ == "__main__":
    inbox, cohort, *words = sys.argv[1:]
    screen_cohort(inbox, cohort, load_settings(None, words))
