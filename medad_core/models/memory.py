"""Memory that models no longer need."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    """Free what unused models still hold. Hooks make an encoder a reference cycle, which only the collector frees."""
    gc.unfreeze()  # an engine may have frozen what its predecessor left
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
