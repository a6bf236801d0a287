"""Lesions of maps and masks counted by another program: panoptica (Kofler et al. 2023) beside `cases.parquet`.

    python tests/measure_lesions.py arrays RUN lesions.npz      # with medad's environment, of a finished labelled RUN
    uv venv panoptica && uv pip install --python panoptica/bin/python panoptica==2.1.7
    panoptica/bin/python tests/measure_lesions.py compare lesions.npz

One decision: panoptica needs other versions of packages than medad, so the arrays go through a file, and the second
half of this script imports nothing of medad. There, cc3d counts lesions and their sizes. panoptica gives a lesion
of the map to one lesion of the mask at most, so a lesion that it does not find is looked at once more, alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def save_arrays(run_folder: str, target: str) -> None:
    """Write maps above the threshold and masks of the labelled cases of a run, with what `lesions.parquet` counts."""
    from medad_core.models.decoder import render_map
    from medad_core.run.run import Run
    from medad_core.stages.rows import bits_of, grids_of, windows_of
    from medad_core.store import join, read_table

    run = Run.reopen(run_folder)
    lesions = read_table(join(run.uri, "lesions.parquet")).to_pylist()
    arrays: dict[str, np.ndarray] = {}
    counted = []
    for facts in read_table(join(run.uri, "cases.parquet")).to_pylist():
        if facts["lesions_true"] is None:
            continue
        case_id = facts["case_id"]
        slices = run.stage("slices").read_case(case_id)
        rows = slices.select(["height", "width", "mask"]).to_pylist()
        maps = run.stage("maps").read_case(case_id)
        windows = windows_of(maps)
        size = rows[0]["height"], rows[0]["width"]
        above = [
            render_map(grid, *size, None if windows is None else windows[at]) >= facts["threshold"]
            for at, grid in enumerate(grids_of(maps))
        ]
        arrays[f"map {case_id}"] = np.stack(above)
        arrays[f"mask {case_id}"] = np.stack([bits_of(row, "mask") for row in rows])
        voxel_ml = float(np.prod(slices["spacing_mm"][0].as_py())) / 1000
        own = [lesion for lesion in lesions if lesion["case_id"] == case_id]
        counted.append(
            {
                "case": case_id,
                "smallest": int(np.ceil(facts["smallest_ml"] / voxel_ml - 1e-9)),
                "lesions": facts["lesions_true"],
                "found": sum(lesion["matched"] for lesion in own if lesion["source"] == "mask"),
                "false": sum(not lesion["matched"] for lesion in own if lesion["source"] == "map"),
            }
        )
    np.savez_compressed(target, counted=json.dumps(counted), **arrays)


def compare(source: str) -> None:
    """Print a line a case: lesions, those found and false ones, by medad and by panoptica; and every difference."""
    import cc3d
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )
    from panoptica.metrics import Metric

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=NaiveThresholdMatching(Metric.IOU, 0.0, allow_many_to_one=True, strict_threshold=True),
        instance_metrics=[Metric.IOU],
        global_metrics=[],
    )

    def counts(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int]:
        result = evaluator.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8), verbose=False)["ungrouped"]
        return int(result.n_ref_instances), int(result.tp), int(result.fp)

    stored = np.load(source)
    totals = np.zeros((2, 3), int)
    print(f"{'case':<24}{'lesions':>14}{'found':>12}{'false':>12}   medad, panoptica")
    for own in json.loads(str(stored["counted"])):
        seen, mask = stored[f"map {own['case']}"], stored[f"mask {own['case']}"]
        large = [cc3d.dust(one.astype(np.uint8), own["smallest"], connectivity=26) > 0 for one in (seen, mask)]
        theirs = counts(*large)
        ours = own["lesions"], own["found"], own["false"]
        totals += [ours, theirs]
        print(f"{own['case']:<24}" + "".join(f"{f'{a}, {b}':>13}" for a, b in zip(ours, theirs, strict=True)))
        if ours != theirs:
            _explain(counts, cc3d, seen, mask, large)
    print(f"{'all':<24}" + "".join(f"{f'{a}, {b}':>13}" for a, b in totals.T.tolist()))


def _explain(counts, cc3d, seen: np.ndarray, mask: np.ndarray, large: list[np.ndarray]) -> None:
    """Each lesion by itself: whether panoptica finds it in the whole other volume, small parts and all."""
    for name, one, other, whole in (("mask", large[1], large[0], seen), ("map", large[0], large[1], mask)):
        labels, number = cc3d.connected_components(one.astype(np.uint8), connectivity=26, return_N=True)
        for lesion in range(1, number + 1):
            alone = labels == lesion
            touches = [counts(volume & alone, alone)[1] for volume in (other, whole)]
            if name == "mask" or touches[0] != touches[1]:
                print(
                    f"    lesion {lesion} of the {name}, {int(alone.sum())} voxels: lesions there: "
                    f"{'yes' if touches[0] else 'no'}, or anything: {'yes' if touches[1] else 'no'}"
                )


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "arrays":
        save_arrays(sys.argv[2], sys.argv[3])
    elif len(sys.argv) == 3 and sys.argv[1] == "compare" and Path(sys.argv[2]).exists():
        compare(sys.argv[2])
    else:
        sys.exit(__doc__)
