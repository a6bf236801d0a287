"""The stages of a run: `slices`, `maps`, `prompts` and `answers`, a module each, and `evaluate` after them.

A stage is two functions, `plan(run)` and `run_parts(run, numbers)`. `complete` runs one stage, `screen` all of them.
"""
