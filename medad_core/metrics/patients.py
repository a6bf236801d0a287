"""From slices to patients.

One decision: a patient has tumour where any of its slices has. Its score is the highest, the k-th highest or the mean
of its slices' scores, and its verdict a vote of theirs, in which an open slice counts only where it could turn the
vote.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medad_core.metrics.arrays import FloatArray
from medad_core.metrics.decisions import Decision
from medad_core.metrics.statistic import Policy
from medad_core.metrics.units import Units


def patient_units(slices: Units) -> Units:
    """One unit a patient, positive where any of its labelled slices is."""
    return Units("patient", np.arange(slices.patients), slices.fold, _kth_highest(slices, slices.label, 1))


def highest_scores(slices: Units, score: FloatArray, k: int, policy: Policy) -> FloatArray:
    """The k-th highest of each patient's scores (N,), as (P,).

    NaN where it has fewer than k, or where one of them is NaN and the policy leaves nothing out.
    """
    highest = _kth_highest(slices, score, k)
    incomplete = slices.count(np.isnan(score)) > 0
    return highest if policy.leave_out else np.where(incomplete, np.nan, highest)


def mean_scores(slices: Units, score: FloatArray) -> FloatArray:
    """The mean score (N,) of each patient, (P,); NaN where one of them is, and for a patient without slices."""
    order = np.argsort(slices.patient, kind="stable")
    ends = np.cumsum(np.bincount(slices.patient, minlength=slices.patients))
    own = np.split(score[order], ends[:-1])
    return np.array([np.mean(scores) if len(scores) else np.nan for scores in own], float)


def vote(slices: Units, decision: Decision, least: int) -> Decision:
    """Yes for a patient where at least `least` slices are; undecided where open or missing slices could change that."""
    asked = np.ones(len(slices.label), bool) if decision.asked is None else decision.asked
    yes = slices.count(asked & (decision.verdict == 1))
    undecided = slices.count(asked & np.isnan(decision.verdict))
    count = slices.count(asked)
    is_no = (count >= least) & (yes + undecided < least)
    verdict = np.where(yes >= least, 1.0, np.where(is_no, 0.0, np.nan))
    return replace(decision, verdict=verdict, asked=count > 0)


def majority_vote(slices: Units, decision: Decision) -> Decision:
    """Yes for a patient where at least half of its slices are; undecided where those that are open could turn it."""
    count = slices.count(np.ones(len(slices.label), bool))
    yes = slices.count(decision.verdict == 1)
    undecided = slices.count(np.isnan(decision.verdict))
    is_no = (yes + undecided) / count < 0.5
    return replace(decision, verdict=np.where(yes / count >= 0.5, 1.0, np.where(is_no, 0.0, np.nan)))


def _kth_highest(slices: Units, values: FloatArray, k: int) -> FloatArray:
    """The k-th highest of each patient's values that are not NaN, (P,); NaN where there are fewer."""
    known = ~np.isnan(values)
    patient = slices.patient[known]
    ascending = values[known][np.lexsort((values[known], patient))]
    sizes = np.bincount(patient, minlength=slices.patients)
    enough = sizes >= k
    highest = np.full(slices.patients, np.nan)
    highest[enough] = ascending[(np.cumsum(sizes) - k)[enough]]
    return highest
