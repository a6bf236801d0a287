"""How far p(yes) may be taken at its word: one temperature, fitted on validation patients and kept with the converter.

One decision: the log-odds of p(yes) are divided by it, so no verdict changes, and no two slices change places; those
that are nearer to 0 or 1 than 1e-12 become equal.
Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

UNCHANGED = 1.0
_LIMITS = (0.5, 20.0)  # below, what is unlike would become 1 in 32 bits
_LEAST = 1e-12  # probabilities of 0 and 1 have no log-odds


def tempered(p_yes: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (n,) float64 with their log-odds divided by `temperature`."""
    if temperature == UNCHANGED:
        return p_yes
    return expit(logit(np.clip(p_yes, _LEAST, 1 - _LEAST)) / temperature)


def fit_temperature(p_yes: np.ndarray, label: np.ndarray) -> float:
    """The temperature from 0.5 to 20 that makes the labels (n,) bool likeliest; 1 where all of them are the same."""
    if label.all() or not label.any():
        return UNCHANGED

    def loss(log_temperature: float) -> float:
        p = np.clip(tempered(p_yes, float(np.exp(log_temperature))), _LEAST, 1 - _LEAST)
        return float(-np.mean(np.where(label, np.log(p), np.log1p(-p))))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_LIMITS), method="bounded").x))
