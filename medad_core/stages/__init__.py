"""The stages of a run: `slices`, `maps`, `prompts` and `answers`, a module each, and `evaluate` after them.

A stage is three functions: `plan(run)`, `opened(run)`, which gives its models, and `run_parts(run, numbers)`.
`complete` runs one stage, `screen` all of them.
"""
