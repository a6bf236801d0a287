"""Frozen models and trained weights: image and text encoders, decoder, converter."""
