"""Checkpoints of other projects, read without their code: tensors in, folders that `transformers` loads out.

One decision: an importer accounts for every tensor of its file by name. An unknown one is an error that names it.
"""
