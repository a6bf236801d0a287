"""How numbers and names are written.

One decision: three decimals everywhere, because the intervals of a few dozen patients make a fourth meaningless; a
percent sign stands only beside what the paper printed itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from medad_core.metrics.printed import DASH, interval_text, value_text
from medad_core.reproduce.presentation.sheet import Line
from medad_core.reproduce.schema import PHANTOMS

# Table 1 of the paper: AUC and accuracy in percent, on its own patients and split.
PAPER = {
    "autoencoder": (49.98, 55.00),
    "masked-autoencoder": (55.59, 41.01),
    "memory-autoencoder": (60.57, 82.93),
    "proposed": (89.07, 85.90),
}
KINDS = {
    "paper": "Rows of the paper",
    "baseline": "Strong and trivial baselines",
    "ablation": "Ablations of the proposed scheme",
}
RULES = {
    "max_recall": "highest recall",
    "youden": "Youden",
    "f1": "best F1",
    "answer": "answer of the LLM",
    "always": "always the commoner class",
    "dice": "best Dice",
}
GENERATED = "Generated pictures: these numbers say that the software runs, and nothing about patients."


def heading(group: str) -> str:
    """Name of a group where it stands alone."""
    return "Generated phantoms, not patients" if group == PHANTOMS else "Patients"


def small(value: float | None) -> str:
    """As `value_text`, but a threshold close to 0 keeps two digits that count."""
    if value is None or value == 0 or abs(value) >= 0.001:
        return value_text(value)
    return f"{value:.2g}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference, with its sign unless it is 0.000."""
    text = value_text(value)
    if text in ("−0.000", "0.000"):
        return "0.000"
    return text if value is None or value < 0 else f"+{text}"


def bracketed(low: float | None, high: float | None, write: Callable[[float | None], str] = value_text) -> str:
    """An interval in brackets, with the space before them; empty where there is none."""
    return "" if low is None or high is None else f" ({interval_text(low, high, write)})"


def p_value(p: float | None) -> str:
    """A p-value, floored at what three decimals can say."""
    return "< 0.001" if p is not None and p < 0.001 else value_text(p)


def mean(line: Line | None) -> str:
    """Value, and ± its standard deviation over seeds where there are several."""
    if line is None or line.value is None:
        return DASH
    return value_text(line.value) + (f" ± {value_text(line.sd)}" if line.sd is not None else "")


def paper_numbers(row: str) -> str:
    """AUC / accuracy that the paper printed for a row, empty for a row it has not."""
    return " / ".join(f"{value:.2f} %" for value in PAPER[row]) if row in PAPER else ""


def rule_words(rule: str, patient_slices: int) -> str:
    """A rule in words; those of patients say first how slices are joined."""
    *how, last = rule.split("/")
    joined = {"any": "any slice", "k_of_n": f"at least {patient_slices} slices", "mean": "mean of slices"}
    return ", ".join(joined.get(part, RULES.get(part, part)) for part in (*how, last) if part)


def metric_words(metric: str) -> str:
    """Name of a metric within a sentence."""
    short = {"auroc": "AUROC", "ap": "AP", "aupro": "AUPRO", "dice": "Dice", "f1": "F1", "ece": "calibration error"}
    return short.get(metric, metric.replace("_", " "))


def bullets(sentences: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)
