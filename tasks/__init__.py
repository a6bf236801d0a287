"""Prefect tasks: each passes one range of parts, or one step of a whole run, to the core."""
