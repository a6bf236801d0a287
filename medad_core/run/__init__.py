"""A run, opened once and passed on (`medad_core.run.run.Run`), and the files that describe it.

Nothing is imported here, so that `cohort`, `info` and `rejected` can be imported without any model library.
"""
