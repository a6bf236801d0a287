"""How much `medad benchmark encode` measures.

One decision: a slow model gets fewer slices, so that no model takes more than its share of the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Effort:
    """Batch sizes tried, rounds and the least seconds of each.

    The stage and the naive loop run `stage_rounds` rounds on `cases` generated cases of `slices` slices, of which the
    naive loop takes `naive_slices`. A slow model gets as few slices as fill `stage_s` seconds a round, and no batch
    that takes longer than a sixth of that.
    """

    batches: tuple[int, ...]
    rounds: int
    least_s: float
    cases: int
    slices: int
    naive_slices: int
    stage_rounds: int
    stage_s: float = 30.0

    def for_rate(self, slices_s: float) -> Effort:
        """The same for an encoder of `slices_s` slices a second. The naive loop gets a quarter of the time."""
        slices_a_round = slices_s * self.stage_s
        each_case = max(1, round(slices_a_round / self.cases))
        naive = max(2, round(slices_a_round / 4))
        return replace(self, slices=min(self.slices, each_case), naive_slices=min(self.naive_slices, naive))


EFFORT = {
    "cuda": Effort(
        (1, 8, 16, 32, 64, 128, 256, 512), rounds=7, least_s=1.0, cases=96, slices=41, naive_slices=100, stage_rounds=3
    ),
    "cpu": Effort((1, 2, 4, 8, 16, 32), rounds=5, least_s=2.0, cases=2, slices=41, naive_slices=10, stage_rounds=3),
    "mps": Effort((1, 8, 16, 32, 64), rounds=5, least_s=1.0, cases=8, slices=41, naive_slices=30, stage_rounds=3),
}
