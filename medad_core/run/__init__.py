"""A run, opened once and handed down (`medad_core.run.run.Run`); what its folder says of itself.

Nothing is imported here: `cohort`, `info` and `rejected` are read without any model library.
"""
