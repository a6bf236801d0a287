"""The words for metrics, shared by `metrics.md` and the page.

One decision: every metric has a plain name and a definition in one place, so that two outputs cannot explain it
differently.
"""

from __future__ import annotations

LEVELS = {
    "image": "Slices",
    "pixel": "Pixels",
    "case": "Cases",
    "patient": "Patients",
    "text": "Answers of the language model",
}

SUBSETS = {
    "all": "",
    "tumour": "with tumour",
    "tumour_free": "tumour-free",
    "lesions": "lesions",
    "true_positive": "true positives",
    "parsed": "readable answers",
}

# The numbers that a run is known by, in the order in which they are shown: (metric, level).
MAIN_METRICS = (
    ("map_auroc", "image"),
    ("p_yes_auroc", "image"),
    ("verdict_balanced_accuracy", "image"),
    ("verdict_accuracy", "image"),
    ("majority_class_accuracy", "image"),
    ("map_auroc", "pixel"),
    ("map_dice", "pixel"),
    ("location_exact", "text"),
    ("unparsed_share", "text"),
)

_NAMES = {
    "map_auroc": "Map, AUROC",
    "map_ap": "Map, average precision",
    "map_aupro": "Map, AUPRO (false positive rate up to 0.3)",
    "p_yes_auroc": "p(yes) of the LLM, AUROC",
    "p_yes_ap": "p(yes) of the LLM, average precision",
    "brightness_auroc": "Brightness baseline, AUROC",
    "brightness_ap": "Brightness baseline, average precision",
    "p_yes_ece": "p(yes) of the LLM, calibration error (0 is best)",
    "map_sensitivity_at_specificity_95": "Map, sensitivity at 95 % specificity",
    "map_specificity_at_sensitivity_95": "Map, specificity at 95 % sensitivity",
    "p_yes_sensitivity_at_specificity_95": "p(yes) of the LLM, sensitivity at 95 % specificity",
    "p_yes_specificity_at_sensitivity_95": "p(yes) of the LLM, specificity at 95 % sensitivity",
    "brightness_sensitivity_at_specificity_95": "Brightness baseline, sensitivity at 95 % specificity",
    "brightness_specificity_at_sensitivity_95": "Brightness baseline, specificity at 95 % sensitivity",
    "verdict_accuracy": "Verdict, accuracy",
    "verdict_balanced_accuracy": "Verdict, balanced accuracy",
    "verdict_sensitivity": "Verdict, sensitivity",
    "verdict_sensitivity_by_area": "Verdict, sensitivity by size",
    "verdict_specificity": "Verdict, specificity",
    "verdict_f1": "Verdict, F1",
    "majority_class_accuracy": "Accuracy of always answering the commoner class",
    "map_dice": "Map, Dice",
    "map_lesion_sensitivity": "Map, lesions that it touches",
    "map_false_lesions_per_slice": "Map, false lesions per tumour-free slice (0 is best)",
    "map_volume_bias_ml": "Map, volume minus that of the mask, ml (0 is best)",
    "map_volume_limit_low_ml": "Map, lower limit of agreement of volumes, ml",
    "map_volume_limit_high_ml": "Map, upper limit of agreement of volumes, ml",
    "map_volume_absolute_error_ml": "Map, error of the volume, ml (0 is best)",
    "map_volume_relative_error": "Map, error of the volume as a share of it (0 is best)",
    "map_diameter_absolute_error_mm": "Map, error of the longest axial diameter, mm (0 is best)",
    "map_side_f1": "Map, side, F1",
    "map_region_f1": "Map, regions, F1",
    "map_case_lesion_sensitivity": "Map, lesions in 3-D that it touches",
    "map_false_lesions_per_case": "Map, false lesions in 3-D per case (0 is best)",
    "unparsed_share": "Answers that could not be read",
    "yes_share": "Answers that say yes",
    "verdict_map_agreement": "Verdict agrees with the thresholded map score",
    "location_exact": "Location exact",
    "question_accuracy": "Question, right value",
    "question_commonest": "Question, always the commonest value",
    "question_size_near": "Question, right size or the next, of tumours",
    "location_exact_or_neighbour": "Location exact or neighbouring",
    "hallucinated_location_share": "Location named where there is no tumour",
}

READING = (
    "A slice is positive when the expert mask holds any tumour in it. Intervals are 95 % percentile intervals of a "
    "bootstrap over patients: patients are drawn with replacement, all slices of a patient together.",
    "Map score is the highest anomaly probability of a slice, unless configured otherwise; p(yes) is the LLM's "
    "probability of “Yes” against “No”, at the temperature of the weights where they have one. Brightness is the "
    "99.5th percentile of the slice's brain pixels: a detector that does not beat it has learned little.",
    "Accuracy means nothing without the line “always answering the commoner class”: most slices of a glioma cohort "
    "contain tumour. An answer that could not be read counts as wrong.",
    "Sensitivity at 95 % specificity has the threshold that these very slices ask for: it shows what a threshold could "
    "do, not what one chosen before did. Area is that of the tumour in the slice. The calibration error is the mean "
    "distance between p(yes) and the share of slices with tumour, in 15 bins.",
    "Patients: tumour in any slice, highest score of any slice, yes in any slice; Dice is taken per patient and "
    "averaged. Pixels: all pixels pooled; Dice over slices with tumour only; AUPRO gives every connected lesion of a "
    "slice the same weight, however small. Locations: nine cells of the picture, judged among the true positives.",
    "A lesion is a connected part of a slice's mask, of any size. The map touches it where it is above its threshold "
    "in one of its pixels; a false lesion is a connected part of the map above it in a tumour-free slice.",
    "Cases: lesions in three dimensions, connected voxels of map or mask of at least the smallest volume. Volume and "
    "diameter are those within the range of slices. Limits of agreement are the mean difference of volumes and 1.96 "
    "standard deviations on either side of it (Bland and Altman). Side: mean F1 of left, right and both; regions: F1 "
    "of all names that hold a tenth of a lesion.",
    "A question is right where the value of its answer is that of the mask. Tumour-free slices count too: there, the "
    "right answer is that there is no anomaly. “Always the commonest value” is what an answer without a look gets.",
    "Supervision is what a model has learned from: tables of models that saw masks, image labels or tumour-free slices "
    "only cannot be compared without it.",
    "A dash is a metric that this cohort leaves undefined; the note says why. Cases of the train split were seen in "
    "training when the weights were trained on this cohort, and flatter “all cases”.",
)


# What the trivial detectors have learned from; all else is as the weights say.
_SUPERVISION = {
    "brightness": "none",
    "majority": "the labels themselves",
    "question_commonest": "the labels themselves",
}


def supervision_of(metric: str, learned_from: str) -> str:
    """What the model behind a metric has learned from; `learned_from` is that of decoder and converter."""
    return _SUPERVISION.get(metric) or _SUPERVISION.get(metric.split("_", maxsplit=1)[0], learned_from)


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1: no number of lesions, no ml, no mm."""
    return not any(unit in f"{metric}_" for unit in ("_per_", "_ml_", "_mm_", "_relative_error_"))


def metric_name(metric: str) -> str:
    """Plain name of a metric; one unknown here keeps its own."""
    return _NAMES.get(metric, metric.replace("_", " "))
