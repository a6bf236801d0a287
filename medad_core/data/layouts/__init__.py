"""Layouts of datasets: which file is which modality of whom. One YAML file a layout; adding one needs no code.

One decision: a file is used only if a pattern of a layout matches the end of its path. The layouts are tried in the
order of their file names, and the first pattern that matches decides. `rules.py` says how a layout is written.
"""

from medad_core.data.layouts.match import Match, Matcher, the_matcher
from medad_core.data.layouts.rules import ROLES, Layout, load_layouts

__all__ = ["ROLES", "Layout", "Match", "Matcher", "load_layouts", "the_matcher"]
