"""Prefect flows: what follows what. Every flow takes references and settings as YAML text (empty for the defaults)."""
