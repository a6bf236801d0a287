"""Prefect flows: what follows what, where tasks run, and what a server is shown. Flows take references and settings."""
