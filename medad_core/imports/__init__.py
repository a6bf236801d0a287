"""Checkpoints of other projects, read without their code: tensors in, folders that `transformers` loads out.

One decision: an importer accounts for every tensor of its file by name. What it does not know is an error that lists it, never skipped.
"""
