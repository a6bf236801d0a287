"""Prefect tasks: each hands one range of parts, or one whole-run step, to the core."""
