"""Prefect flows: the order of stages, the task runners, and the artifacts. Flows take references and settings."""
