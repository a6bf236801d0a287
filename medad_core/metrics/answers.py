"""What the sentences of the language model are worth.

One decision: an answer that could not be read says neither yes nor no, and is never guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medad_core.metrics.arrays import BoolArray, FloatArray
from medad_core.metrics.decisions import Decision
from medad_core.metrics.ranking import ratio
from medad_core.metrics.statistic import Statistic
from medad_core.metrics.units import Units


@dataclass(frozen=True)
class Answers:
    """The answers for N slices.

    answered: (N,) bool, an answer exists. says_yes, says_no: (N,) bool, the answer could be read and says so; neither
    for an unparsed one. names_location: (N,) bool. location_steps: (N,) float, see `location.cell_steps`.
    """

    answered: BoolArray
    says_yes: BoolArray
    says_no: BoolArray
    names_location: BoolArray
    location_steps: FloatArray

    @property
    def decision(self) -> Decision:
        """The verdicts as a decision by the rule "answer". An answer that could not be read is wrong."""
        verdict = np.select([self.says_yes, self.says_no], [1.0, 0.0], np.nan)
        return Decision("answer", verdict, undecided_is_wrong=True, asked=self.answered)


def answer_statistics(slices: Units, answers: Answers, map_score: FloatArray, map_threshold: float) -> list[Statistic]:
    """What the sentences say beside their verdict; the first three metrics need no labels.

    `map_score` (N,) is NaN where absent; at `map_threshold` or above, the map says yes.
    """
    readable = answers.says_yes | answers.says_no
    comparable = readable & ~np.isnan(map_score)
    agrees = (map_score >= map_threshold) == answers.says_yes
    right_yes = slices.positive & answers.says_yes
    exact = answers.location_steps == 0
    near = answers.location_steps <= 1
    tumour_free = slices.negative & answers.answered

    def share(metric: str, subset: str, flags: BoolArray, among: BoolArray, undefined: str) -> Statistic:
        part = slices.count(flags & among)
        whole = slices.count(among)

        def values(weights: FloatArray) -> FloatArray:
            return ratio(weights @ part, weights @ whole)

        return Statistic(metric, "text", subset, int(among.sum()), values, undefined)

    no_map = "no parsed answers with a map score"
    no_yes = "no true positives"
    no_free = "no tumour-free slices with an answer"
    return [
        share("unparsed_share", "all", ~readable, answers.answered, "no answers"),
        share("yes_share", "all", answers.says_yes, answers.answered, "no answers"),
        share("verdict_map_agreement", "parsed", agrees, comparable, no_map),
        share("location_exact", "true_positive", exact, right_yes, no_yes),
        share("location_exact_or_neighbour", "true_positive", near, right_yes, no_yes),
        share("hallucinated_location_share", "tumour_free", answers.names_location, tumour_free, no_free),
    ]
