"""Pixel metrics of a cohort: medad's histograms beside the metrics that are computed from all pixels.

One decision: nobody else can hold 51,000 maps, so peers are measured on as many as they can take, in turn with medad on
the same maps. medad is measured on all of them too; what a peer would take for them is extrapolated in proportion,
which is too little wherever it sorts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from medad_core.benchmark.duel import PAIRS, Act, Contender, Contest, DuelReport, Fact, Result, duel
from medad_core.benchmark.memory import peak_mb
from medad_core.benchmark.peers.real_maps import RealMaps
from medad_core.metrics.pixel import FPR_LIMIT, PixelHistogram
from medad_core.progress import ReportText

MAPS = 51_000
SAMPLE = {"scikit-learn": 300, "torchmetrics": 300, "anomalib": 12}  # maps; anomalib sorts all of them for each region


@dataclass(frozen=True)
class Pixels:
    """The first `count` of the repeated maps."""

    real: RealMaps
    count: int

    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """All maps and masks at once (n, H, W)."""
        maps, masks = zip(*self.real.repeated(self.count), strict=True)
        return np.stack(maps), np.stack(masks)


def benchmark_pixel_metrics(
    uri: str,
    against: Sequence[str] = (),
    pairs: int = PAIRS,
    progress: ReportText = lambda _text: None,
    maps: int = MAPS,
) -> DuelReport:
    """Measure on `maps` maps, made of those of the run at `uri`. Raises as `RealMaps.of` and `duel`."""
    chosen = PIXEL.chosen(against)
    real = RealMaps.of(uri)
    progress(f"pixel-metrics: medad on {maps:,} maps")
    started = time.perf_counter()
    _by_medad(Pixels(real, maps))()
    seconds = time.perf_counter() - started
    facts = [Fact("maps", maps, ""), Fact("medad, all maps", seconds, "s"), Fact("medad, peak memory", peak_mb(), "MB")]
    reports = []
    for peer in chosen:
        sample = min(SAMPLE[peer.name], maps)
        described = f"{maps:,} maps, repeated from {len(real.maps)} real ones with noise; peers on the first of them"
        one = duel(PIXEL, Pixels(real, sample), described, [peer.name], pairs, progress)
        (pairing,) = one.pairings
        named = replace(pairing, what=f"{pairing.what}; on {sample} maps")
        hours = pairing.theirs_s.median * maps / sample / 3600
        facts.append(Fact(f"{peer.name}, all maps, extrapolated", hours, "h"))
        reports.append(replace(one, pairings=(named,)))
    pairings = tuple(pairing for one in reports for pairing in one.pairings)
    return replace(reports[0], pairings=pairings).with_facts(*facts)


def _by_medad(given: Pixels) -> Act:
    def act() -> Callable[[], Result]:
        histogram = PixelHistogram()
        for anomaly_map, mask in given.real.repeated(given.count):
            histogram.accumulate(anomaly_map, mask)
        values = {"auroc": histogram.auroc, "ap": histogram.average_precision, "aupro": histogram.aupro}
        return lambda: {name: np.array(value) for name, value in values.items()}

    return act


def _by_sklearn(given: Pixels) -> Act:
    from sklearn.metrics import average_precision_score, roc_auc_score

    def act() -> Callable[[], Result]:
        maps, masks = given.whole()
        truth = masks.ravel()
        scores = maps.ravel()
        values = {"auroc": roc_auc_score(truth, scores), "ap": average_precision_score(truth, scores)}
        return lambda: {name: np.array(value) for name, value in values.items()}

    return act


def _by_torchmetrics(given: Pixels) -> Act:
    import torch
    from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

    def act() -> Callable[[], Result]:
        metrics = {"auroc": BinaryAUROC(), "ap": BinaryAveragePrecision()}
        for anomaly_map, mask in given.real.repeated(given.count):
            for metric in metrics.values():
                metric.update(torch.from_numpy(anomaly_map), torch.from_numpy(mask).long())
        values = {name: metric.compute().item() for name, metric in metrics.items()}
        return lambda: {name: np.array(value) for name, value in values.items()}

    return act


def _as_anomalib(given: Pixels) -> Act:
    """A ROC of every region against all background, cut at the limit and averaged on a grid of false positive rates.

    After `anomalib.metrics.pro` (Open Edge Platform, Apache-2.0).
    """
    from sklearn.metrics import roc_curve

    def act() -> Callable[[], Result]:
        maps, masks = given.whole()
        labels, count = ndimage.label(masks, np.ones((1, 3, 3), int) * np.array([0, 1, 0])[:, None, None])
        background = maps[~masks]
        rates = np.linspace(0, FPR_LIMIT, 2001)
        overlap = np.zeros_like(rates)
        for region in range(1, count + 1):
            own = maps[labels == region]
            truth = np.r_[np.zeros(len(background), bool), np.ones(len(own), bool)]
            rate, found, _ = roc_curve(truth, np.r_[background, own])
            overlap += np.interp(rates, rate, found)
        area = np.trapezoid(overlap / count, rates) / FPR_LIMIT
        return lambda: {"aupro": np.array(area)}

    return act


PIXEL: Contest[Pixels] = Contest(
    work="pixel-metrics",
    ours=Contender("medad", "histograms: AUROC, average precision and AUPRO in one pass", _by_medad),
    peers=(
        Contender("scikit-learn", "real: roc_auc_score, average_precision_score", _by_sklearn, ("scikit-learn",)),
        Contender("torchmetrics", "real: BinaryAUROC, BinaryAveragePrecision", _by_torchmetrics, ("torchmetrics",)),
        Contender("anomalib", "re-stated: AUPRO as anomalib computes it", _as_anomalib),
    ),
    tolerance={"auroc": 1e-4, "ap": 1e-4, "aupro": 1e-3},
)
