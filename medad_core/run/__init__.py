"""A run, opened once and handed down."""
