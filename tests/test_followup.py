"""Follow-up: what two examinations of a patient have in common, in which order, and what cannot be compared."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import BRAIN, FAR, SHAPE, SPOT, TO_RAS, WIDE, Made, make_run, member, moved, place
from scipy import ndimage

from medad_core.data.place import Place
from medad_core.data.visits import in_order, visit_of
from medad_core.facts.followup import LASTING, NEW, TOO_SMALL, VANISHED, Seen, compare, why_apart
from medad_core.facts.followup_rows import NOTHING, NUMBERS, ON_GRID, FollowUp, remarks, signed_text
from medad_core.facts.lesions import Grid
from medad_core.media import read_csv
from medad_core.run.run import Run
from medad_core.stages.facts import CASES_FILE
from medad_core.stages.followup import FOLLOWUP_FILES, Examination, follow, read_followups, write_followup
from medad_core.store import FOLLOWUP_LESIONS, join, open_stages, read_table


def seen(above: np.ndarray, first: int = 60, where: Place | None = None, brain: np.ndarray = BRAIN) -> Seen:
    return Seen(above, brain[: len(above)], Grid((1.0, 1.0, 1.0), first, where or place()))


def box(*corners: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for corner in corners:
        mask[corner] = True
    return mask


ONE = np.s_[5:10, 10:20, 10:15]  # 250 voxels
OTHER = np.s_[5:10, 10:20, 20:25]
BRIDGE = np.s_[7:8, 14:16, 15:20]
NOTHING_SEEN = np.zeros(SHAPE, bool)


def counts(earlier: np.ndarray, later: np.ndarray, smallest_ml: float = 0.05) -> dict[str, int]:
    comparison = compare(seen(earlier), seen(later), smallest_ml)
    states = {state: comparison.count(state) for state in (LASTING, NEW, VANISHED, TOO_SMALL)}
    return {**states, "merged": comparison.merged, "split": comparison.split}


def test_lesions_last_vanish_and_appear():
    none = {LASTING: 0, NEW: 0, VANISHED: 0, TOO_SMALL: 0, "merged": 0, "split": 0}
    assert counts(box(ONE), box(ONE)) == {**none, LASTING: 1}
    assert counts(box(ONE), box(OTHER)) == {**none, NEW: 1, VANISHED: 1}
    assert counts(box(ONE), NOTHING_SEEN) == {**none, VANISHED: 1}
    assert counts(NOTHING_SEEN, box(ONE, OTHER)) == {**none, NEW: 2}
    assert counts(NOTHING_SEEN, NOTHING_SEEN) == none


def test_lesions_that_become_one_are_merged_and_the_reverse_is_split():
    apart, joined = box(ONE, OTHER), box(ONE, OTHER, BRIDGE)
    assert counts(apart, joined) == {LASTING: 2, NEW: 0, VANISHED: 0, TOO_SMALL: 0, "merged": 1, "split": 0}
    assert counts(joined, apart) == {LASTING: 1, NEW: 0, VANISHED: 0, TOO_SMALL: 0, "merged": 0, "split": 1}


def test_a_lesion_that_is_too_small_to_count_in_the_other_map_is_neither_new_nor_vanished():
    remains = box(np.s_[5:6, 10:15, 10:15])  # 25 voxels
    assert counts(box(ONE), remains)[TOO_SMALL] == counts(remains, box(ONE))[TOO_SMALL] == 1
    assert counts(box(ONE), remains)[VANISHED] == counts(remains, box(ONE))[NEW] == 0
    assert counts(box(ONE), remains, smallest_ml=0.025)[LASTING] == 1


def test_volumes_are_those_of_the_slices_that_both_have_and_numbers_those_of_all():
    earlier = seen(box(np.s_[0:4, 5:25, 5:15], ONE))  # the first lesion, the larger, ends at slice 63
    later = seen(box(ONE)[2:12], first=62)
    comparison = compare(earlier, later, 0.05)
    assert comparison.slices == range(62, 72)
    assert comparison.earlier.volume_ml == pytest.approx((2 * 200 + 250) / 1000)
    assert comparison.earlier.is_cut and not comparison.later.is_cut
    assert [(pair.earlier, pair.later, pair.state) for pair in comparison.pairs] == [
        (2, 1, LASTING),
        (1, None, VANISHED),
    ]
    assert comparison.pairs[0].overlap_ml == pytest.approx(0.25)
    assert comparison.later.placed[0].lesion.first_slice == 65


def test_a_lesion_with_a_sliver_in_the_common_slices_is_left_out_and_makes_no_other_new():
    earlier = seen(box(np.s_[0:6, 10:20, 10:14]))
    later = seen(box(ONE)[5:15], first=65)  # of the earlier only 40 voxels are in these slices
    comparison = compare(earlier, later, 0.05)
    assert comparison.earlier.placed == () and comparison.count(NEW) == 0 and comparison.count(TOO_SMALL) == 1


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.2))
def test_every_lesion_is_counted_once_and_the_reverse_comparison_is_the_mirror(seed, share):
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.standard_normal((6, 40, 40)), 1.5) for _ in range(2)]
    maps = [one > np.quantile(one, 1 - share) for one in smooth]
    there = compare(seen(maps[0]), seen(maps[1]), 0.01)
    back = compare(seen(maps[1]), seen(maps[0]), 0.01)
    earlier = [pair.earlier for pair in there.pairs if pair.earlier is not None]
    later = [pair.later for pair in there.pairs if pair.later is not None]
    assert set(earlier) == set(range(1, 1 + len(there.earlier.placed)))
    assert set(later) == set(range(1, 1 + len(there.later.placed)))
    assert (there.count(NEW), there.count(VANISHED)) == (back.count(VANISHED), back.count(NEW))
    assert (there.merged, there.split) == (back.split, back.merged)
    assert sum(pair.overlap_ml for pair in there.pairs) <= min(there.earlier.volume_ml, there.later.volume_ml) + 1e-9


def test_voxels_are_compared_on_one_grid_only():
    one = seen(box(ONE))
    assert why_apart(one, seen(box(OTHER))) == ""
    assert why_apart(one, seen(box(ONE), where=place(to_ras=moved(0.09)))) == ""
    assert why_apart(one, seen(box(ONE), where=place(to_ras=moved(0.2)))) == "their grids lie up to 0.2 mm apart"
    turned = (*TO_RAS[:8], 1, 0, 0.01, -70)  # 0.01 mm a column: nothing at the first column, 0.39 mm at the last
    assert "0.4 mm apart" in why_apart(one, seen(box(ONE), where=place(to_ras=turned)))
    assert "155x40x40 and 182x40x40" in why_apart(one, seen(box(ONE), where=place(slices=182)))
    assert "earlier version" in why_apart(one, replace(one, grid=replace(one.grid, place=None)))


def test_slices_that_nobody_screened_twice_and_brains_that_lie_elsewhere_are_not_compared():
    one = seen(box(ONE))
    assert "no slice was screened in both: 60 to 79 and 80 to 99" in why_apart(one, seen(box(ONE), first=80))
    shifted = np.roll(BRAIN, 8, axis=2)
    assert "their brains do not lie on each other (Dice 0.80)" in why_apart(one, seen(box(ONE), brain=shifted))
    assert "Dice 0.00" in why_apart(one, seen(box(ONE), brain=NOTHING_SEEN))


def order(*visits: tuple[str, str]) -> tuple[list[str], str]:
    """Names and the rule, of visits as (name, date)."""
    known = in_order([visit_of(f"case-{number}", name, day) for number, (name, day) in enumerate(visits)])
    return [visit.case_id.removeprefix("case-") for visit in known.visits], known.by


@pytest.mark.parametrize(
    ("visits", "expected"),
    [
        ([("", "2024-05-01"), ("", "2023-12-31")], (["1", "0"], "date")),
        ([("20.12.2023", ""), ("15.01.2024", "")], (["0", "1"], "")),  # their numbers sort by the day of the month
        ([("20122023", ""), ("15012024", "")], (["0", "1"], "")),
        ([("ses-12-20-2023", ""), ("ses-01-15-2024", "")], (["0", "1"], "")),
        ([("1", "2024-05-01"), ("2", "2023-01-01"), ("3", "")], (["0", "1", "2"], "")),  # the dates contradict them
        ([("1", "2023-01-01"), ("2", ""), ("3", "2024-05-01")], (["0", "1", "2"], "visit")),
        ([("ses-2", "2024-05-01"), ("ses-1", "2024-06-01")], (["0", "1"], "date")),  # a date before a name
        ([("101", ""), ("100", "")], (["1", "0"], "visit")),
        ([("week-044", ""), ("week-000-2", ""), ("week-000-1", "")], (["2", "1", "0"], "visit")),
        ([("ses-10", ""), ("ses-9", "")], (["1", "0"], "visit")),  # as numbers, not as text
        ([("20240131", ""), ("2023-02-01", "")], (["1", "0"], "date")),
        ([("scan2", "2024-05-01"), ("scan1", "2024-05-01")], (["1", "0"], "date")),  # one day, in the order of scans
        ([("", "2024-05-01"), ("", "2024-05-01")], (["0", "1"], "")),
        ([("pre", ""), ("post", "")], (["0", "1"], "")),
        ([("ses-1", ""), ("week-2", "")], (["0", "1"], "")),
        ([("ses-1", ""), ("ses-01", "")], (["0", "1"], "")),
        ([("ses-1", ""), ("", "2024-05-01")], (["0", "1"], "")),
        ([("", ""), ("", "")], (["0", "1"], "")),
        ([("20241341", ""), ("20231341", "")], (["1", "0"], "visit")),  # no dates, but numbers
    ],
)
def test_the_order_is_that_of_dates_or_else_of_numbers_or_it_is_not_known(visits, expected):
    assert order(*visits) == expected


# --- runs, with maps that are made up ---------------------------------------------------------------------------------


def written(run: Run) -> list[FollowUp]:
    write_followup(run, run.write_rejected())
    return read_followups(run.uri)


def test_a_pair_on_one_grid_has_the_numbers_of_the_facts_and_goes_by_date(tmp_path):
    early, late = member("b", date="2024-01-31"), member("a", date="2024-03-01")
    run = make_run(tmp_path, Made(late, (WIDE, FAR)), Made(early))
    (row,) = written(run)
    assert (row.earlier, row.later, row.days, row.ordered_by) == ("b", "a", 30, "date")
    assert (row.compared, row.reason, row.brain_dice) == (ON_GRID, None, 1.0)
    facts = {one["case_id"]: one for one in read_table(join(run.uri, CASES_FILE)).to_pylist()}
    for name in ("volume_ml", "longest_mm", "lesions", "is_cut"):
        assert getattr(row, f"{name}_earlier") == facts["b"][name] and getattr(row, f"{name}_later") == facts["a"][name]
    assert row.change_ml == row.volume_ml_later - row.volume_ml_earlier > 0
    assert row.change_percent == pytest.approx(100 * row.change_ml / row.volume_ml_earlier)
    assert (row.lasting, row.new, row.vanished) == (1, 1, 0)
    pairs = read_table(join(run.uri, "followup_lesions.parquet"))
    assert pairs.schema.equals(FOLLOWUP_LESIONS)
    lesions = read_table(join(run.uri, "lesions.parquet")).to_pylist()
    volume = {(one["case_id"], one["lesion"]): one["volume_ml"] for one in lesions}
    for pair in pairs.to_pylist():
        for name in ("earlier", "later"):
            if pair[f"lesion_{name}"] is not None:
                assert pair[f"volume_ml_{name}"] == volume[pair[name], pair[f"lesion_{name}"]]
    (line,) = read_csv((tmp_path / "followup.csv").read_text(encoding="utf-8"))
    assert line["change_ml"] == f"{row.change_ml:+.2f}" and line["when_earlier"] == "2024-01-31"
    assert line["volume_ml_later"] == f"{row.volume_ml_later:.2f}" and line["slices"] == "60 to 79"


def test_where_nobody_was_examined_twice_there_are_no_files_and_earlier_ones_go(tmp_path):
    for name in FOLLOWUP_FILES:
        (tmp_path / name).touch()
    run = make_run(tmp_path, Made(member("a", "P")), Made(member("b", "Q")))
    assert written(run) == [] and not any((tmp_path / name).exists() for name in FOLLOWUP_FILES)


def test_three_visits_make_two_pairs_and_one_that_was_rejected_is_named(tmp_path):
    visits = [Made(member(f"v{number}", visit=f"00{number}")) for number in (0, 1, 3)]
    run = make_run(tmp_path, *visits, Made(member("v2", visit="002"), fails="no brain can be found"))
    rows = written(run)
    assert [(row.earlier, row.later, row.compared) for row in rows] == [
        ("v0", "v1", ON_GRID),
        ("v1", "v3", ON_GRID),
        (None, None, NOTHING),
    ]
    assert rows[-1].reason == "v2 is not compared (slices: no brain can be found)"
    assert all(row.change_ml == 0 and row.change_percent == 0 and row.lasting == 1 for row in rows[:2])


def test_a_patient_whose_only_other_visit_was_rejected_is_told_of_it(tmp_path):
    run = make_run(tmp_path, Made(member("v0")), Made(member("v1"), fails="no brain"))
    assert [row.reason for row in written(run)] == ["v1 is not compared (slices: no brain)"]


@pytest.mark.parametrize(
    ("first", "second"),
    [({"date": "2024-01-31"}, {"date": "2024-01-31"}), ({}, {}), ({"visit": "pre"}, {"visit": "post"})],
)
def test_nothing_signed_is_written_where_the_order_is_not_known(tmp_path, first, second):
    run = make_run(tmp_path, Made(member("a", **first)), Made(member("b", **second), (WIDE,)))
    (row,) = written(run)
    assert row == FollowUp("P", NOTHING, row.reason, phantom=False)
    assert row.reason.startswith("the order of a, b is not known (") and row.reason.endswith("dates in data.patients")
    (line,) = read_csv((tmp_path / "followup.csv").read_text(encoding="utf-8"))
    assert {name for name, value in line.items() if value} == {"patient", "compared", "remarks"}


def test_on_other_grids_only_numbers_are_compared(tmp_path):
    elsewhere = Made(member("b", visit="2"), (WIDE,), where=place(to_ras=moved(5)))
    run = make_run(tmp_path, Made(member("a", visit="1")), elsewhere)
    (row,) = written(run)
    assert (row.compared, row.reason) == (NUMBERS, "their grids lie up to 5.0 mm apart")
    assert row.change_ml > 0 and row.longest_change_mm > 0 and row.new is None and row.first_slice is None
    assert not len(read_table(join(run.uri, "followup_lesions.parquet")))


def test_of_other_ranges_only_the_common_slices_are_compared_and_it_is_said(tmp_path):
    run = make_run(tmp_path, Made(member("a", visit="1"), first=60), Made(member("b", visit="2"), first=50))
    (row,) = written(run)
    assert (row.first_slice, row.last_slice, row.compared) == (60, 69, ON_GRID)
    assert row.reason == "only slices 60 to 69, which both have" and row.is_cut_earlier and row.is_cut_later
    (line,) = read_csv((tmp_path / "followup.csv").read_text(encoding="utf-8"))
    assert line["volume_ml_later"].startswith("≥ ") and "end within a lesion" in line["remarks"]


def test_maps_without_lesions_have_a_change_and_no_percent(tmp_path):
    visits = [Made(member(f"v{number}", visit=str(number)), cells) for number, cells in enumerate(((), (), (SPOT,)))]
    none, more = written(make_run(tmp_path, *visits))
    assert (none.change_ml, none.change_percent, none.new, none.longest_change_mm) == (0, None, 0, None)
    assert more.change_ml == more.volume_ml_later > 0 and more.change_percent is None and more.new == 1


def test_a_phantom_is_not_shown_as_a_patient(tmp_path):
    visits = [Made(member(f"v{number}", visit=str(number), phantom=True)) for number in (1, 2)]
    (row,) = written(make_run(tmp_path, *visits))
    assert row.phantom and remarks(row).startswith("generated phantom, not a patient")


def test_hostile_names_stay_text(tmp_path):
    visits = [Made(member(f"=cmd{number}", "<img src=x>\u202e", visit=str(number))) for number in (1, 2)]
    written(make_run(tmp_path, *visits))
    text = (tmp_path / "followup.csv").read_text(encoding="utf-8")
    assert "\u202e" not in text and ",'=cmd1," in text
    (line,) = read_csv(text)
    assert (line["patient"], line["earlier"]) == ("<img src=x>\u202e", "=cmd1")


def two_batches(tmp_path: Path, **later) -> list[Examination]:
    """The visits of a patient in two runs, as batches 1 and 2 of a cohort."""
    batches = []
    for number, cells in ((1, (SPOT,)), (2, (WIDE,))):
        one = Made(member(f"v{number}", visit=str(number)), cells)
        run = make_run(tmp_path / str(number), one, **(later if number == 2 else {}))
        (facts,) = read_table(join(run.uri, CASES_FILE)).to_pylist()
        batches.append(Examination(one.member, facts, run, "same models", number))
    return batches


def test_a_comparison_across_batches_is_made_once(tmp_path):
    batches = two_batches(tmp_path)
    first = follow(batches)
    assert (first.rows[0].batch_earlier, first.rows[0].batch_later, first.rows[0].compared) == (1, 2, ON_GRID)
    shutil.rmtree(tmp_path / "1" / "maps")  # as `medad prune` does
    for one in batches:
        one.run.stages.update(open_stages(one.run.uri))
    assert follow(batches, known=first) == first
    (row,) = follow(batches).rows
    assert (row.compared, row.reason) == (
        NUMBERS,
        "maps cannot be read (those of batch 1 were removed by `medad prune`)",
    )
    assert row.change_ml == first.rows[0].change_ml


def test_other_models_or_limits_are_not_compared(tmp_path):
    one, other = two_batches(tmp_path, smallest_ml=0.06)
    (row,) = follow([one, other]).rows
    assert row.compared == NOTHING and "smallest lesion differ (0.05 and 0.06)" in row.reason
    (row,) = follow([one, replace(other, models="others", facts=one.facts)]).rows
    assert row.compared == NOTHING and "different models" in row.reason and row.change_ml is None


def test_a_change_has_a_sign_and_no_change_has_none():
    assert [signed_text(value, 1) for value in (0.26, -0.26, 0.0, -0.04, None)] == ["+0.3", "-0.3", "0.0", "0.0", ""]
