"""Arrays to rows and back: the only module that knows how Parquet stores pictures, grids and tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from medad_core.data.read import DISPLAY_ORIENTATION, CaseSlices
from medad_core.data.window import frames_of
from medad_core.errors import CaseError
from medad_core.models.decoder import render_maps
from medad_core.store import MAPS, PROMPTS, SLICES
from medad_core.store.schemas import CONTEXT, WINDOW

_AT_ONCE = 8  # maps that are drawn together: more do not fit into a cache of the CPU


def slice_rows(case: CaseSlices, split: str) -> pa.Table:
    """One row per slice; with the columns CONTEXT where the encoder sees neighbours."""
    count, height, width = case.images.shape
    # Slice by slice: along axes NumPy counts flags ten times slower.
    pixels = None if case.masks is None else np.array([np.count_nonzero(mask) for mask in case.masks])
    rows = pa.table(
        {
            "case_id": [case.case_id] * count,
            "slice_index": case.slice_index,
            "height": [height] * count,
            "width": [width] * count,
            "image": [image.tobytes() for image in case.images],
            "brain": [np.packbits(brain).tobytes() for brain in case.brain],
            "mask": [None] * count if case.masks is None else [np.packbits(mask).tobytes() for mask in case.masks],
            "label": [None] * count if pixels is None else (pixels > 0).astype(np.int8),
            "tumour_pixels": [None] * count if pixels is None else pixels.astype(np.int32),
            "split": [split] * count,
            "spacing_mm": [list(case.spacing_mm)] * count,
            "stored_orientation": [case.stored_orientation] * count,
            "display_orientation": [DISPLAY_ORIENTATION] * count,
        },
        schema=SLICES,
    )
    if case.step is None:
        return rows
    columns = ([case.step] * count, _outside(case, case.below), _outside(case, case.above))
    for field, values in zip(CONTEXT, columns, strict=True):
        rows = rows.append_column(field, pa.array(values, field.type))
    return rows


def _outside(case: CaseSlices, neighbours: np.ndarray) -> list[bytes | None]:
    """The pictures of neighbours that are no slices of the range."""
    own = range(case.first, case.first + len(case.images))
    return [None if number in own else case.around[number].tobytes() for number in neighbours.tolist()]


def rendered_maps(maps: pa.Table, height: int, width: int) -> np.ndarray:
    """Rows of MAPS of one case to its maps (N, height, width), float32 from 0 to 1."""
    grids = torch.from_numpy(grids_of(maps))
    windows = windows_of(maps)
    drawn = [
        render_maps(grids[some], height, width, None if windows is None else windows[some])
        for some in (slice(start, start + _AT_ONCE) for start in range(0, len(grids), _AT_ONCE))
    ]
    return torch.cat(drawn).numpy()


def pictures_of(table: pa.Table) -> np.ndarray:
    """Rows of one case to what the encoder sees of each: uint8 (N, 3, H, W), below, itself and above.

    A slice stands in for a neighbour that the volume does not have. Raises CaseError as `images_of` does.
    """
    images = images_of(table)
    step = table["step"][0].as_py()
    pictures = np.stack([images] * 3, axis=1)
    if step:
        pictures[step:, 0] = images[:-step]
        pictures[:-step, 2] = images[step:]
    for channel, name in ((0, "below"), (2, "above")):
        for number, picture in enumerate(table[name]):
            if picture.is_valid:
                pictures[number, channel] = np.frombuffer(picture.as_buffer(), np.uint8).reshape(images.shape[1:])
    return pictures


def images_of(table: pa.Table) -> np.ndarray:
    """Rows of one case to uint8 (N, H, W), read-only: a view on Arrow's memory, without a copy.

    Raises CaseError if there are no rows, or a picture has a different size than its row says.
    """
    case_id, sizes = (
        str(table["case_id"][0]) if len(table) else "",
        pc.binary_length(table["image"]).unique().to_pylist(),
    )
    shapes = set(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
    if len(shapes) != 1 or sizes != [np.prod(next(iter(shapes)))]:
        raise CaseError(
            case_id,
            f"its slices cannot be used: pictures of {sizes} bytes for shapes {sorted(shapes)}; "
            "delete the run's slices to make them again",
        )
    image = table["image"].combine_chunks()
    start = np.frombuffer(image.buffers()[1], np.int32)[image.offset]
    return np.frombuffer(image.buffers()[2], np.uint8)[start : start + len(image) * sizes[0]].reshape(
        len(image), *shapes.pop()
    )


def brains_of(table: pa.Table) -> np.ndarray:
    """The brains of rows of one case, bool (N, H, W)."""
    return np.stack([bits_of(row, "brain") for row in table.select(["height", "width", "brain"]).to_pylist()])


def bits_of(row: Mapping, column: str) -> np.ndarray | None:
    """A packed column (`brain`, `mask`) of one row to bool (H, W); None if null."""
    if row[column] is None:
        return None
    shape = row["height"], row["width"]
    return np.unpackbits(np.frombuffer(row[column], np.uint8), count=shape[0] * shape[1]).reshape(shape).astype(bool)


def map_rows(
    keys: pa.Table,
    grids: np.ndarray,
    scores: np.ndarray,
    peaks: np.ndarray,
    embeddings: np.ndarray | None = None,
    windows: np.ndarray | None = None,
) -> pa.Table:
    """Rows of one case: grids (N, taps, gh, gw) float16, scores (N,), peaks (N, 2) as row and column of the picture.

    `embeddings` (N, joint) float16, if the weights need them; `windows` (N, 3), if the maps are of windows only.
    """
    count, taps, height, width = grids.shape
    rows = pa.table(
        {
            "case_id": keys["case_id"],
            "slice_index": keys["slice_index"],
            "taps": [taps] * count,
            "grid_height": [height] * count,
            "grid_width": [width] * count,
            "grid": [grid.tobytes() for grid in grids],
            "anomaly_score": scores.astype(np.float32),
            "peak_y": peaks[:, 0].astype(np.float32),
            "peak_x": peaks[:, 1].astype(np.float32),
            "embedding": [None] * count if embeddings is None else [row.tobytes() for row in embeddings],
        },
        schema=MAPS,
    )
    if windows is not None:
        places = [keys["height"], keys["width"], *map(pa.array, windows.T)]
        for column, values in zip(WINDOW, places, strict=True):
            rows = rows.append_column(column, values)
    return rows


def windows_of(table: pa.Table) -> np.ndarray | None:
    """The windows (N, 3) int32 of rows of maps; None where the maps are of whole pictures."""
    if WINDOW[0].name not in table.column_names:
        return None
    return np.stack([table[column.name].to_numpy() for column in WINDOW[2:]], axis=1)


def map_frames(table: pa.Table) -> np.ndarray | None:
    """The windows of rows of maps of one case as `data.window.frames_of` gives them; None as `windows_of` does."""
    windows = windows_of(table)
    if windows is None:
        return None
    return frames_of(windows, table["height"][0].as_py(), table["width"][0].as_py())


def grids_of(table: pa.Table) -> np.ndarray:
    """Rows of maps to float16 (N, taps, gh, gw)."""
    shape = tuple(table[column][0].as_py() for column in ("taps", "grid_height", "grid_width"))
    return np.stack([np.frombuffer(grid.as_buffer(), np.float16).reshape(shape) for grid in table["grid"]])


def embeddings_of(table: pa.Table) -> np.ndarray | None:
    """Rows of maps to float16 (N, joint); None if the weights need no embeddings."""
    column = table["embedding"]
    return None if column.null_count else np.stack([np.frombuffer(row.as_buffer(), np.float16) for row in column])


def prompt_rows(keys: pa.Table, tokens: np.ndarray) -> pa.Table:
    """Rows of one case with the tokens of its slices (N, T, width) float16."""
    count, length, width = tokens.shape
    return pa.table(
        {
            "case_id": keys["case_id"],
            "slice_index": keys["slice_index"],
            "tokens": [length] * count,
            "width": [width] * count,
            "embeddings": [row.tobytes() for row in tokens],
        },
        schema=PROMPTS,
    )


def tokens_of(table: pa.Table) -> np.ndarray:
    """Rows of prompts to float16 (N, T, width)."""
    shape = table["tokens"][0].as_py(), table["width"][0].as_py()
    return np.stack([np.frombuffer(row.as_buffer(), np.float16).reshape(shape) for row in table["embeddings"]])
