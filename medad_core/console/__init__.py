"""What the command line shows: progress, tables, the doctor. Used by `medad_core.cli` only; the core never prints."""
