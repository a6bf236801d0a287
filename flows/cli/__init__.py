"""What the command line shows: progress, tables, the doctor. Used by `flows.cli` only; the core never prints."""
