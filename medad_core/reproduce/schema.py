"""The rows of the table, and the columns in which its numbers are kept.

One decision: the table is kept long, one line a number, and every printed form of it (CSV, Markdown, LaTeX, figure)
is made from these lines; a number that is undefined stays, null and with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

PATIENTS = "patients"
PHANTOMS = "phantoms"
PROPOSED = "proposed"


NOTHING, NORMAL, MASKS, LABELS = "none", "tumour-free slices", "masks", "image labels"


@dataclass(frozen=True)
class Row:
    """A row of the table; `kind` is paper (of its own table), baseline (ours) or ablation (of the proposed scheme).

    `supervision` is what it learns from. Thresholds of all come from labels of validation patients.
    """

    name: str
    title: str
    kind: str
    supervision: str
    what: str


ROWS = {
    row.name: row
    for row in (
        Row("autoencoder", "Autoencoder with perceptual loss", "paper", NORMAL, "Shvetsova et al. 2021"),
        Row("masked-autoencoder", "Masked autoencoder", "paper", NORMAL, "He et al. 2022 as a detector"),
        Row("memory-autoencoder", "Memory autoencoder", "paper", NORMAL, "Gong et al. 2019"),
        Row(PROPOSED, "Proposed scheme", "paper", MASKS, "p(yes) and verdict of the LLM; no threshold"),
        Row("patchcore", "PatchCore", "baseline", NORMAL, "Roth et al. 2022 on the same encoder's features"),
        Row("anomaly-dino", "AnomalyDINO", "baseline", NORMAL, "Damm et al. 2025 on the same encoder's features"),
        Row("brightness", "FLAIR brightness", "baseline", NOTHING, "99.5th percentile of the brain's pixels"),
        Row("majority", "Majority class", "baseline", LABELS, "always the commoner class of the training slices"),
        Row("without-knowledge", "Proposed without knowledge tokens", "ablation", MASKS, "trained anew without them"),
        Row(
            "without-llm",
            "Proposed without the LLM",
            "ablation",
            MASKS,
            "score of the anomaly map, threshold from validation",
        ),
        Row(
            "shuffled",
            "Proposed, map of another slice",
            "ablation",
            MASKS,
            "must be at chance: the answer comes from the map",
        ),
    )
}

TABLE = pa.schema(
    [
        ("row", pa.string()),
        ("title", pa.string()),
        ("group", pa.string()),  # patients or phantoms
        ("level", pa.string()),  # image, pixel, patient or text
        ("metric", pa.string()),
        ("rule", pa.string()),  # how a score became a decision; empty where there is none
        ("subset", pa.string()),
        ("value", pa.float64()),  # mean over seeds
        ("sd", pa.float64()),  # over seeds; null for one
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("difference", pa.float64()),  # to the proposed scheme
        ("difference_low", pa.float64()),
        ("difference_high", pa.float64()),
        ("p_bootstrap", pa.float64()),
        ("p_delong", pa.float64()),
        ("n", pa.int64()),  # units of the level (slices for text)
        ("seeds", pa.int64()),
        ("reason", pa.string()),
    ]
)
