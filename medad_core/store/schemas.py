"""Arrow schemas of the data between stages; medad_core/README.md, "Stages on disk", describes the rows.

One decision: a field is nullable only if a missing value has a meaning (an unlabelled case, an unparsed answer),
and the store refuses a null anywhere else. Keys are (case_id, slice_index), and the question where several are asked.
Arrays are stored as raw bytes in
row-major order, little-endian, with their shape in other columns: float16 and packed bits have no compact Arrow type.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa


def _field(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


_KEYS = [_field("case_id", pa.string()), _field("slice_index", pa.int32())]

SLICES = pa.schema(
    [
        *_KEYS,
        _field("height", pa.int32()),
        _field("width", pa.int32()),
        _field("image", pa.binary()),  # uint8 (height, width), display orientation
        _field("brain", pa.binary()),  # np.packbits of bool (height, width)
        _field("mask", pa.binary(), True),  # as brain; null if the case has no segmentation
        _field("label", pa.int8(), True),  # 1 if the mask has a pixel
        _field("tumour_pixels", pa.int32(), True),
        _field("split", pa.string()),  # train, validation, test; screen if unlabelled
        _field("spacing_mm", pa.list_(pa.field("item", pa.float32(), nullable=False), 3)),  # row, column, slice
        _field("stored_orientation", pa.string()),  # axis codes of the file, such as LPS
        _field("display_orientation", pa.string()),
    ]
)

# Further columns of slices whose neighbours the encoder sees: how many slices away they are, and their pictures, as
# `image`, where they are no slices of the range; null also where the volume ends.
CONTEXT = (_field("step", pa.int16()), _field("below", pa.binary(), True), _field("above", pa.binary(), True))

MAPS = pa.schema(
    [
        *_KEYS,
        _field("taps", pa.int8()),
        _field("grid_height", pa.int16()),
        _field("grid_width", pa.int16()),
        _field("grid", pa.binary()),  # float16 (taps, grid_height, grid_width), logit difference abnormal - normal
        _field("anomaly_score", pa.float32()),  # [0, 1]
        _field("peak_y", pa.float32()),  # native display pixels
        _field("peak_x", pa.float32()),
        _field(
            "embedding", pa.binary(), True
        ),  # float16 (joint,), of the slice in the joint space; null unless the converter asks for it
    ]
)

# Further columns of maps that are of a window only: the picture's size, and where the window lies in it or beside it.
WINDOW = tuple(_field(name, pa.int32()) for name in ("height", "width", "window_top", "window_left", "window_side"))

PROMPTS = pa.schema(
    [
        *_KEYS,
        _field("tokens", pa.int16()),
        _field("width", pa.int32()),
        _field("embeddings", pa.binary()),  # float16 (tokens, width) of the slice: the image's, if any, then the map's
    ]
)

ANSWERS = pa.schema(
    [
        *_KEYS,
        _field("answer", pa.string()),
        _field("answer_parsed", pa.bool_()),
        _field("verdict", pa.string(), True),  # yes, no; null if the answer does not parse
        _field("location", pa.string(), True),  # one of nine cells; null for no, and if the answer does not parse
        _field("p_yes", pa.float32()),  # P(Yes) / (P(Yes) + P(No)) of the first token
        _field("finish_reason", pa.string()),
        _field("tokens", pa.int16()),
    ]
)

PREDICTIONS = pa.schema(
    [
        *_KEYS,
        _field("patient", pa.string()),
        _field("split", pa.string()),
        _field("label", pa.int8(), True),
        _field("tumour_pixels", pa.int32(), True),
        _field("anomaly_score", pa.float32()),
        _field("p_yes", pa.float32()),
        _field("verdict", pa.string(), True),
        _field("answer", pa.string()),
        _field("answer_parsed", pa.bool_()),
        _field("location", pa.string(), True),
        _field("location_true", pa.string(), True),  # cell of the mask's centroid; null if empty or unlabelled
        _field("location_anatomical", pa.string(), True),  # `location` in anatomical terms
        _field("peak_y", pa.float32()),
        _field("peak_x", pa.float32()),
        _field("unstable", pa.bool_(), True),  # the verdict may flip with the engine's load; null: not known
        _field("model_fingerprint", pa.string()),
    ]
)

# The view of an incremental cohort: which content of a case was screened, and in which batch.
COHORT_PREDICTIONS = pa.schema([*PREDICTIONS, _field("revision", pa.int32()), _field("batch", pa.int32())])


# Further columns of answers to several questions, one row a slice and question: which one, and the value that the
# answer has (medad_core.llm.questions), null if it does not parse. `p_yes` is NaN where nobody is asked for yes or no.
ASKED = (_field("question", pa.string()), _field("value", pa.string(), True))

# One row a slice and question: the answers beside the truth of the masks.
QUESTIONS = pa.schema(
    [
        *_KEYS,
        _field("patient", pa.string()),
        _field("split", pa.string()),
        _field("question", pa.string()),
        _field("answer", pa.string()),
        _field("value", pa.string(), True),
        _field("value_true", pa.string(), True),  # null if unlabelled
    ]
)


def _lesions(suffix: str, nullable: bool) -> list[pa.Field]:
    """What is known of all lesions of a case together."""
    return [
        _field("lesions" + suffix, pa.int32(), nullable),
        _field("volume_ml" + suffix, pa.float64(), nullable),
        _field("longest_mm" + suffix, pa.float64(), True),  # axial diameter; null without lesion
        _field("side" + suffix, pa.string(), True),  # left, right, both; null without lesion
        _field("regions" + suffix, pa.list_(pa.string()), True),  # null where they are not named
        _field("is_cut" + suffix, pa.bool_(), nullable),  # the range of slices ends within one: volume is at least this
    ]


# One row a case (medad_core.facts): the lesions of its map, and of its mask where there is one.
CASES = pa.schema(
    [
        _field("case_id", pa.string()),
        _field("patient", pa.string()),
        _field("split", pa.string()),
        _field("first_slice", pa.int32()),
        _field("last_slice", pa.int32()),
        _field("threshold", pa.float64()),  # of the map
        _field("smallest_ml", pa.float64()),  # of a lesion
        *_lesions("", False),
        *_lesions("_true", True),
        _field("regions_not_named", pa.string(), True),  # why
    ]
)

# One row a lesion in three dimensions.
LESIONS = pa.schema(
    [
        _field("case_id", pa.string()),
        _field("source", pa.string()),  # map, mask
        _field("lesion", pa.int32()),  # from 1, by falling volume
        _field("volume_ml", pa.float64()),
        _field("first_slice", pa.int32()),
        _field("last_slice", pa.int32()),
        _field("diameter_mm", pa.float64()),  # longest axial one, in `widest_slice`
        _field("perpendicular_mm", pa.float64()),
        _field("widest_slice", pa.int32()),
        *(_field(name, pa.float64()) for name in ("slice", "row", "column")),  # centroid, as in the pictures
        *(_field(name, pa.float64(), True) for name in ("x_mm", "y_mm", "z_mm")),  # centroid in RAS+
        _field("side", pa.string()),
        _field("right", pa.float64()),  # share of its volume on the patient's right
        _field("crosses_midline", pa.bool_()),
        _field("is_cut", pa.bool_()),
        _field("regions", pa.list_(pa.string()), True),
        _field("matched", pa.bool_(), True),  # the other source shows something there too; null if unlabelled
    ]
)

_BOTH = ("earlier", "later")

# One row a pair of consecutive examinations of a patient (medad_core.facts.followup). What is null was not compared.
FOLLOWUPS = pa.schema(
    [
        _field("patient", pa.string()),
        *(_field(name, pa.string(), True) for name in _BOTH),  # case ids; null where their order is not known
        *(_field(f"visit_{name}", pa.string(), True) for name in _BOTH),
        *(_field(f"date_{name}", pa.string(), True) for name in _BOTH),  # ISO
        _field("days", pa.int32(), True),
        _field("ordered_by", pa.string(), True),  # date, visit
        _field("phantom", pa.bool_()),
        _field("compared", pa.string()),  # on the common grid, numbers only, nothing
        _field("reason", pa.string(), True),
        _field("threshold", pa.float64(), True),  # of both maps
        _field("smallest_ml", pa.float64(), True),  # of a lesion
        _field("first_slice", pa.int32(), True),  # of those compared
        _field("last_slice", pa.int32(), True),
        _field("brain_dice", pa.float64(), True),  # of both brains in these slices
        *(_field(f"volume_ml_{name}", pa.float64(), True) for name in _BOTH),
        _field("change_ml", pa.float64(), True),
        _field("change_percent", pa.float64(), True),  # null where the earlier map shows no lesion
        *(_field(f"longest_mm_{name}", pa.float64(), True) for name in _BOTH),
        _field("longest_change_mm", pa.float64(), True),
        *(_field(f"is_cut_{name}", pa.bool_(), True) for name in _BOTH),  # the slices compared end within a lesion
        *(_field(f"lesions_{name}", pa.int32(), True) for name in _BOTH),
        *(_field(name, pa.int32(), True) for name in ("lasting", "new", "vanished", "too_small", "merged", "split")),
        *(_field(f"batch_{name}", pa.int32(), True) for name in _BOTH),  # of an incremental cohort
    ]
)

# One row a pair of lesions that share voxels, and one a lesion that has no other.
FOLLOWUP_LESIONS = pa.schema(
    [
        _field("patient", pa.string()),
        *(_field(name, pa.string()) for name in _BOTH),
        *(_field(f"lesion_{name}", pa.int32(), True) for name in _BOTH),  # numbers of LESIONS, source map
        _field("state", pa.string()),  # lasting, new, vanished, too small in the other
        _field("overlap_ml", pa.float64()),
        *(_field(f"volume_ml_{name}", pa.float64(), True) for name in _BOTH),  # in the slices compared
    ]
)

# The fields of fingerprints that say that there are further columns.
_FURTHER = {"context_mm": CONTEXT, "window_mm": WINDOW, "questions": ASKED}


def with_view(schema: pa.Schema, fingerprint: Mapping[str, str]) -> pa.Schema:
    """The schema of rows with this fingerprint: without context and window, the columns of earlier versions."""
    return pa.schema([*schema, *(column for name in _FURTHER if name in fingerprint for column in _FURTHER[name])])


# The stages of a run, in order: the name, which is also the folder's, and the schema of the rows.
PART_STAGES = {"slices": SLICES, "maps": MAPS, "prompts": PROMPTS, "answers": ANSWERS}
