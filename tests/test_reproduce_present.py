"""The printed table says what the long table says: numbers, intervals, who wins, what failed, why a cell is empty."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from medad_core.errors import StoreError
from medad_core.media import markdown_text
from medad_core.metrics.printed import value_text
from medad_core.reproduce.presentation import Facts, GalleryRow, GallerySlice, GroupFacts, ThresholdNote, write_results
from medad_core.reproduce.presentation.figure import figure_png
from medad_core.reproduce.presentation.gallery import render_gallery
from medad_core.reproduce.presentation.latex import escaped, render_latex
from medad_core.reproduce.presentation.markdown import render_markdown
from medad_core.reproduce.presentation.sheet import Sheet
from medad_core.reproduce.presentation.wide import thresholds_csv, wide_csv
from medad_core.reproduce.presentation.words import p_value, signed, small
from medad_core.reproduce.schema import ROWS, TABLE
from medad_core.store import read_table

AUROC = {
    "autoencoder": 0.61,
    "masked-autoencoder": 0.66,
    "proposed": 0.93,
    "patchcore": 0.91,
    "anomaly-dino": 0.905,
    "brightness": 0.95,
    "majority": 0.5,
    "without-knowledge": 0.925,
    "without-llm": 0.94,
    "shuffled": 0.51,
}
FAILED = "fold 0, seed 1: loss is not a number | see *log*\nsecond line"
ONE_CLASS = "one class only: no tumour-free patients"
SIZES = ("area 0 to 100 mm²", "area 100 to 500 mm²", "area from 500 mm²")
SPEAKING = ("proposed", "without-knowledge", "shuffled")


def line(row: str, group: str, level: str, metric: str, value: float | None, rule="", subset="all", **more) -> dict:
    head = {
        "row": row,
        "title": ROWS[row].title,
        "group": group,
        "level": level,
        "metric": metric,
        "rule": rule,
        "subset": subset,
    }
    seeds = 1 if row in (*SPEAKING, "brightness", "majority") else 2
    if value is None:
        return {**head, "n": 40, "seeds": seeds, **more}
    spread = {
        "value": value,
        "sd": 0.004 if seeds == 2 else None,
        "ci_low": value - 0.03,
        "ci_high": min(1.0, value + 0.02),
    }
    gap = value - AUROC["proposed"]
    compared = (
        {}
        if row == "proposed"
        else {
            "difference": gap,
            "difference_low": gap - 0.02,
            "difference_high": gap + 0.02,
            "p_bootstrap": 0.0004 if gap < -0.1 else 0.214,
        }
    )
    return {**head, **spread, **compared, "n": 287, "seeds": seeds, **more}


def rules(row: str) -> tuple[str, ...]:
    return {"majority": ("always",)}.get(row, ("answer",) if row in SPEAKING else ("max_recall", "youden", "f1"))


def lines_of(row: str, group: str, rng: np.random.Generator) -> list[dict]:
    base = AUROC[row]
    no_maps = {"value": None, "reason": "this row draws no map of its own"}
    of_maps = no_maps if row == "majority" else {"value": base}
    calibration = {"value": 0.05} if row == "proposed" else {"value": None, "reason": "the score is no probability"}
    pixel = (("auroc", ""), ("ap", ""), ("aupro", ""), ("dice", "validation"), ("dice", "0.5"))
    made = [
        line(row, group, "image", "auroc", base, p_delong=None if row == "proposed" else 0.003),
        line(row, group, "image", "ap", base),
        line(row, group, "image", "ece", **calibration),
        *(line(row, group, "pixel", metric, rule=rule, **of_maps) for metric, rule in pixel),
        *(line(row, group, "patient", "auroc", None, how, reason=ONE_CLASS) for how in ("any", "k_of_n", "mean")),
    ]
    for rule in rules(row):
        lower = {"max_recall": 0.3, "f1": 0.05}.get(rule, 0.02)
        made += [
            line(row, group, "image", metric, base - lower, rule) for metric in ("accuracy", "balanced_accuracy", "f1")
        ]
        made += [
            line(row, group, "image", "sensitivity", 0.98, rule, "tumour"),
            line(row, group, "image", "specificity", base - lower, rule, "tumour_free"),
        ]
        made += [
            line(row, group, "image", "sensitivity", float(rng.uniform(0.5, 1)), rule, size, n=31) for size in SIZES
        ]
        made += [
            line(row, group, "patient", metric, base - lower, f"{how}/{rule}")
            for how in ("any", "mean")
            for metric in ("accuracy", "sensitivity")
        ]
    if row in SPEAKING:
        made += [
            line(row, group, "text", metric, base)
            for metric in ("verdict_map_agreement", "location_exact", "location_exact_or_neighbour")
        ]
        made += [
            line(row, group, "text", metric, 1 - base) for metric in ("unparsed_share", "hallucinated_location_share")
        ]
    return made


def long_table(**changes: float) -> pa.Table:
    """Both groups, `memory-autoencoder` failed; `changes` are values of image AUROC of patients by row."""
    rng = np.random.default_rng(3)
    lines = [made for group in ("patients", "phantoms") for row in AUROC for made in lines_of(row, group, rng)]
    for made in lines:
        if (made["group"], made["level"], made["metric"]) == ("patients", "image", "auroc") and made["row"] in changes:
            made["value"] = changes[made["row"]]
    return pa.Table.from_pylist(lines, schema=TABLE)


def facts(**changes) -> Facts:
    keys = product(
        ("patients", "phantoms"), ("patchcore", "brightness"), ("max_recall", "youden", "f1"), (0, 1), (0, 1)
    )
    thresholds = [
        ThresholdNote(row, group, fold, seed, "image", rule, 0.4 + 0.01 * fold) for group, row, rule, fold, seed in keys
    ]
    undefined = ThresholdNote(
        "patchcore", "patients", 2, 0, "image", "youden", None, "one class only: no tumour-free slices"
    )
    values = {
        "data": "brats2021",
        "groups": (
            GroupFacts("patients", 12, 12, 492, 59, ((6, 2, 4), (6, 2, 4))),
            GroupFacts("phantoms", 6, 6, 246, 80),
        ),
        "folds": 3,
        "seeds": (0, 1),
        "rule": "max_recall",
        "patient_slices": 3,
        "failed": {row: FAILED if row == "memory-autoencoder" else None for row in ROWS},
        "thresholds": (*thresholds, undefined),
        "settings": "reproduce:\n  folds: 3\n",
    }
    return Facts(**{**values, **changes})


def wrong(kind: str, score: float, **changes) -> GallerySlice:
    mask = np.zeros((40, 50), bool)
    mask[10:15, 20:24] = kind == "false negative"
    image = np.zeros((40, 50), np.uint8)
    image[5:35, 10:40] = 120
    values = {
        "kind": kind,
        "case_id": "p1",
        "slice_index": 60,
        "score": score,
        "threshold": 0.5,
        "label": int(mask.any()),
        "area_mm2": 20.0 * mask.any(),
        "image": image,
        "mask": mask,
        "anomaly_map": np.full((20, 25), 0.3, np.float32),
        "answer": None,
    }
    return GallerySlice(**{**values, **changes})


GALLERY = (
    GalleryRow(
        "proposed",
        "Proposed scheme",
        "patients",
        "answer",
        (wrong("false positive", 0.9, threshold=None, answer="Yes <b>&"),),
    ),
    GalleryRow(
        "patchcore",
        "PatchCore",
        "patients",
        "max_recall",
        (wrong("false positive", 0.6, slice_index=61), wrong("false positive", 0.9)),
        false_positives=87,
    ),
    GalleryRow("brightness", "FLAIR brightness", "patients", "max_recall", ()),
    GalleryRow(
        "patchcore",
        "PatchCore",
        "phantoms",
        "max_recall",
        (wrong("false negative", 0.1, case_id="Phantom_00001", anomaly_map=None),),
    ),
)


def sheet(table: pa.Table | None = None, about: Facts | None = None) -> Sheet:
    return Sheet.of(long_table() if table is None else table, about or facts())


def markdown(table: pa.Table | None = None, about: Facts | None = None) -> str:
    return render_markdown(sheet(table, about))


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def page(about: Facts | None = None) -> str:
    return render_gallery(sheet(about=about), GALLERY)


def section(text: str, group: str, title: str | None = None) -> str:
    """The part of table.md of one group, or one of its tables (the main one without a title)."""
    part = re.split(r"^## ", text, flags=re.M)[{"patients": 1, "phantoms": 2}[group]]
    parts = re.split(r"^### ", part, flags=re.M)
    return parts[0] if title is None else next(part for part in parts if part.startswith(title))


def cells(table: str, row: str) -> list[str]:
    return next(
        [cell.strip() for cell in re.split(r"(?<!\\)\|", text_line)[2:-1]]
        for text_line in table.splitlines()
        if text_line.startswith(f"| {row} |")
    )


def test_all_files_are_written_and_the_long_table_is_kept_whole(tmp_path):
    written = write_results(str(tmp_path), long_table(), facts(), GALLERY)
    assert sorted(vars(written).values()) == sorted(map(str, tmp_path.iterdir())) and len(vars(written)) == 7
    assert read_table(written.table).equals(long_table())


def test_every_row_of_every_group_has_one_csv_line_and_empty_fields_where_undefined():
    records_of_csv = records(wide_csv(sheet()))
    assert [(record["group"], record["row"]) for record in records_of_csv] == [
        (group, row) for group in ("patients", "phantoms") for row in ROWS
    ]
    by_row = {record["row"]: record for record in records_of_csv if record["group"] == "patients"}
    proposed, failed = by_row["proposed"], by_row["memory-autoencoder"]
    assert (proposed["status"], proposed["decision_rule"], proposed["seeds"], proposed["tumour_free"]) == (
        "ok",
        "answer",
        "1",
        "59",
    )
    assert [proposed[name] for name in ("image_auroc", "image_auroc_low", "image_auroc_high", "image_auroc_sd")] == [
        "0.93",
        "0.9",
        "0.95",
        "",
    ]
    assert by_row["patchcore"]["image_auroc_sd"] == "0.004" and by_row["patchcore"]["decision_rule"] == "max_recall"
    assert by_row["patchcore"]["patient_auroc"] == "" and by_row["majority"]["pixel_dice"] == ""
    assert failed["status"].startswith("failed: fold 0, seed 1: loss") and set(list(failed.values())[7:]) == {""}


def test_the_main_table_gives_value_spread_interval_and_the_papers_number_apart():
    main = section(markdown(), "patients")
    header = next(text_line for text_line in main.splitlines() if text_line.startswith("| row |"))
    assert header.endswith("| seeds | paper AUC / acc |")
    assert cells(main, "PatchCore")[0] == "0.910 ± 0.004 (0.880 to 0.930)"
    assert cells(main, "Proposed scheme")[0] == "0.930 (0.900 to 0.950)"
    assert cells(main, "Proposed scheme")[-2:] == ["1", "89.07 % / 85.90 %"]
    assert cells(main, "PatchCore")[-1] == ""
    assert "paper AUC" not in section(markdown(), "phantoms"), "the paper measured no phantoms"


def test_the_best_value_of_a_column_is_bold_and_no_other():
    main = section(markdown(), "patients")
    first = {row.title: cells(main, row.title)[0] for row in ROWS.values()}
    assert [title for title, text in first.items() if "**" in text] == ["FLAIR brightness"]
    assert first["FLAIR brightness"].startswith("**0.950**")


def test_values_equal_as_printed_are_both_best():
    main = section(markdown(long_table(patchcore=0.9502, brightness=0.9498)), "patients")
    assert cells(main, "PatchCore")[0].startswith("**0.950**") and cells(main, "FLAIR brightness")[0].startswith(
        "**0.950**"
    )


def test_rows_are_grouped_by_kind_and_keep_their_order():
    main = section(markdown(), "patients")
    firsts = re.findall(r"^\| ([^|]+?) \|", main, flags=re.M)[2:]
    kinds = [title for title in firsts if title.startswith("*")]
    assert kinds == ["*Rows of the paper*", "*Strong and trivial baselines*", "*Ablations of the proposed scheme*"]
    assert [title for title in firsts if title not in kinds] == [row.title for row in ROWS.values()]


def test_a_failed_row_is_in_every_table_with_its_reason_on_one_line():
    text = markdown()
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(tables) == 16
    reason = "failed: fold 0, seed 1: loss is not a number \\| see \\*log\\* second line"
    assert all(cells(table, "Memory autoencoder")[0] == reason for table in tables)
    assert cells(section(text, "patients"), "Memory autoencoder")[-1] == "60.57 % / 82.93 %"


def test_every_line_of_a_table_has_as_many_cells_as_its_header():
    for table in re.findall(r"(?:^\|.*\n)+", markdown(), flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", text_line)) for text_line in table.splitlines()}) == 1


def test_a_baseline_that_wins_is_named_in_words_with_both_numbers():
    main = section(markdown(), "patients")
    assert (
        "FLAIR brightness has a higher image AUROC than the proposed scheme: "
        "0.950 against 0.930 (difference 0.000 to +0.040);" in main
    )
    assert "Autoencoder with perceptual loss has" not in main


def test_a_row_that_wins_by_another_threshold_rule_is_named_with_that_rule():
    main = section(markdown(), "patients")
    # 0.65 at the highest recall, 0.93 at Youden's threshold; the proposed scheme decides with 0.91.
    assert "; also a higher balanced accuracy by the rule “Youden”: 0.930 against 0.910" in main


@pytest.mark.parametrize(("value", "wins"), [(0.02, True), (0.09, False)])
def test_of_a_calibration_error_the_lower_one_wins(value, wins):
    made = [
        {**entry, "value": value} if (entry["row"], entry["metric"]) == ("brightness", "ece") else entry
        for entry in long_table().to_pylist()
    ]
    main = section(markdown(pa.Table.from_pylist(made, schema=TABLE)), "patients")
    assert (f"also a lower calibration error: {value:.3f} against 0.050" in main) == wins
    assert ("**0.020**" in cells(main, "FLAIR brightness")[4]) == wins and (
        "**0.050**" in cells(main, "Proposed scheme")[4]
    ) != wins


def test_lesion_sizes_are_not_taken_for_all_slices():
    backwards = pa.Table.from_pylist(long_table().to_pylist()[::-1], schema=TABLE)
    assert (
        cells(section(markdown(backwards), "patients", "Decisions"), "Proposed scheme")[3] == "0.980 (0.950 to 1.000)"
    )


def test_a_proposed_scheme_that_nobody_beats_is_said_so():
    unbeaten = [made for made in long_table().to_pylist() if made["row"] in ("proposed", "autoencoder")]
    text = markdown(pa.Table.from_pylist(unbeaten, schema=TABLE), facts(failed={"autoencoder": None, "proposed": None}))
    assert "No other row is better than the proposed scheme in any of: image AUROC" in section(text, "patients")


def test_differences_are_against_the_proposed_scheme_with_both_p_values():
    table = section(markdown(), "patients", "Differences")
    assert cells(table, "Autoencoder with perceptual loss")[:2] == ["0.003", "−0.320 (−0.340 to −0.300), p < 0.001"]
    assert cells(table, "FLAIR brightness")[1] == "+0.020 (0.000 to +0.040), p 0.214"
    assert "| Proposed scheme |" not in table


def test_without_the_proposed_scheme_nothing_is_compared():
    rest = pa.Table.from_pylist([made for made in long_table().to_pylist() if made["row"] != "proposed"], schema=TABLE)
    text = markdown(rest, facts(failed={**facts().failed, "proposed": "out of memory"}))
    assert "has no numbers" in section(text, "patients", "Differences") and "nothing is compared" in section(
        text, "patients"
    )
    assert cells(section(text, "patients"), "Proposed scheme")[0] == "failed: out of memory"


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (0.51, "at chance, as it must be"),
        (0.7, "not at chance, which it must be"),
        (0.3, "not at chance, which it must be"),
    ],
)
def test_the_shuffled_control_is_judged_by_its_interval(value, verdict):
    made = [
        {**entry, "ci_low": value - 0.03, "ci_high": value + 0.02, "value": value}
        if entry["row"] == "shuffled"
        else entry
        for entry in long_table().to_pylist()
    ]
    assert f"image AUROC {value:.3f} ({value - 0.03:.3f} to {value + 0.02:.3f}), {verdict}" in markdown(
        pa.Table.from_pylist(made, schema=TABLE)
    )


def test_few_phantoms_accuse_nobody_of_not_being_at_chance():
    made = [
        {**entry, "ci_low": 0.6, "ci_high": 0.7, "value": 0.65}
        if entry["row"] == "shuffled" and entry["metric"] == "auroc"
        else entry
        for entry in long_table().to_pylist()
    ]
    text = markdown(pa.Table.from_pylist(made, schema=TABLE))
    assert "not at chance" in section(text, "patients")
    assert "6 phantoms are too few for the interval" in section(text, "phantoms") and "not at chance" not in section(
        text, "phantoms"
    )


def test_a_row_of_more_seeds_wins_only_by_the_difference_over_those_of_both():
    def claimed(difference: float) -> str:
        rows = long_table(autoencoder=0.95).to_pylist()
        for entry in rows:
            if (entry["row"], entry["group"], entry["level"], entry["metric"]) == (
                "autoencoder",
                "patients",
                "image",
                "auroc",
            ):
                entry |= {
                    "seeds": 5,
                    "difference": difference,
                    "difference_low": difference - 0.02,
                    "difference_high": difference + 0.02,
                }
        return section(markdown(pa.Table.from_pylist(rows, schema=TABLE)), "patients")

    assert "Autoencoder with perceptual loss has a higher image AUROC" not in claimed(-0.05)
    assert "(difference over the seeds of both +0.030 to +0.070)" in claimed(0.05)


def test_phantoms_come_second_and_are_never_shown_as_patients():
    text = markdown()
    assert text.index("## Patients") < text.index("## Generated phantoms, not patients")
    assert "nothing about patients" in section(text, "phantoms") and "nothing about patients" not in section(
        text, "patients"
    )


def test_sizes_and_the_accuracy_of_the_commoner_class_are_stated():
    text = markdown()
    assert (
        "12 patients, 12 of them tested on 492 slices, 59 tumour-free; "
        "always answering the commoner class has an accuracy of 0.880." in text
    )
    assert "Train / validation / test patients a fold: 6 / 2 / 4; 6 / 2 / 4." in text


def test_empty_cells_are_listed_once_a_reason_with_the_rows():
    empty = section(markdown(), "patients", "Empty cells")
    mentions = [entry for entry in empty.splitlines() if ONE_CLASS in entry]
    assert mentions == [f"- {ONE_CLASS}: AUROC at patient level (all rows)."]
    assert "- this row draws no map of its own: AUROC, AP, AUPRO, Dice at pixel level (Majority class)." in empty
    assert "- Memory autoencoder failed: fold 0" in empty


def test_rules_without_a_threshold_are_named_together():
    gone = {"value": None, "ci_low": None, "ci_high": None, "sd": None, "reason": "fold 0: one class"}
    made = [
        {**entry, **gone} if entry["rule"] in ("youden", "f1") and entry["metric"] in ("accuracy", "f1") else entry
        for entry in long_table().to_pylist()
    ]
    empty = section(markdown(pa.Table.from_pylist(made, schema=TABLE)), "patients", "Empty cells")
    assert "- fold 0: one class: accuracy, F1 at image level by Youden / by best F1 (" in empty


def test_a_cell_without_any_line_is_listed_too():
    made = [entry for entry in long_table().to_pylist() if (entry["row"], entry["level"]) != ("brightness", "pixel")]
    empty = section(markdown(pa.Table.from_pylist(made, schema=TABLE)), "patients", "Empty cells")
    assert "- the row has no such number: AUROC, AP, AUPRO, Dice at pixel level (FLAIR brightness)." in empty


def test_a_value_without_interval_stands_with_its_reason():
    made = [
        {**entry, "ci_low": None, "ci_high": None, "reason": "one patient"}
        if (entry["row"], entry["metric"]) == ("brightness", "auroc")
        else entry
        for entry in long_table().to_pylist()
    ]
    text = markdown(pa.Table.from_pylist(made, schema=TABLE))
    assert cells(section(text, "patients"), "FLAIR brightness")[0] == "**0.950**"
    assert (
        "- one patient (the value stands): AUROC at image level, AUROC at pixel level (FLAIR brightness)."
        in section(text, "patients", "Empty cells")
    )


def test_a_nan_in_the_long_table_is_an_empty_cell_and_not_a_number():
    broken = sheet(long_table(brightness=float("nan")))
    assert "nan" not in render_markdown(broken) + wide_csv(broken) + render_latex(broken)
    assert cells(section(render_markdown(broken), "patients"), "FLAIR brightness")[0] == "–"


def test_lesion_sizes_have_a_column_each_with_their_n():
    table = section(markdown(), "patients", "Sensitivity by lesion size")
    assert "| 0 to 100 mm², n = 31 | 100 to 500 mm², n = 31 | from 500 mm², n = 31 |" in table
    assert len(cells(table, "PatchCore")) == 3


def test_every_decision_rule_has_its_line():
    table = section(markdown(), "patients", "Decisions")
    assert re.findall(r"^\| PatchCore \| ([^|]+) \|", table, flags=re.M) == ["highest recall", "Youden", "best F1"]
    assert cells(table, "Majority class")[0] == "always the commoner class"


def test_thresholds_are_shown_by_fold_and_kept_in_full():
    table = section(markdown(), "patients", "Thresholds")
    assert cells(table, "PatchCore") == ["image", "highest recall", "0.400 · 0.400", "0.410 · 0.410", "–"]
    assert "one class only: no tumour-free slices: threshold at image level, fold 2 (PatchCore)" in table
    kept = records(thresholds_csv(facts().thresholds))
    assert len(kept) == 49 and kept[-1] == {
        "row": "patchcore",
        "group": "patients",
        "fold": "2",
        "seed": "0",
        "level": "image",
        "rule": "youden",
        "value": "",
        "reason": "one class only: no tumour-free slices",
    }


def test_latex_is_balanced_plain_ascii_with_equal_columns():
    text = render_latex(sheet(about=facts(data="50% of A_b & C")))
    assert text.isascii() and r"50\% of A\_b \& C" in text
    assert (
        re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular"] * 2
        and re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "table"] * 2
    )
    bare = re.sub(r"\\[\\{}&%$#_]", lambda match: "\n" if match[0] == "\\\\" else "", text)
    depth = np.cumsum([{"{": 1, "}": -1}.get(character, 0) for character in bare])
    assert depth.min() == 0 and depth[-1] == 0 and bare.count("$") % 2 == 0
    body = [text_line for text_line in text.splitlines() if text_line.endswith(r"\\")]
    spans = [
        text_line.count(" & ") + sum(int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", text_line)) + 1
        for text_line in body
    ]
    assert spans == [8] * spans.count(8) + [7] * spans.count(7), (
        "patients with the paper's numbers, then phantoms without"
    )
    assert (
        r"\textbf{0.950}" in text
        and "failed: fold 0, seed 1: loss is not a number \\textbar{} see *log* second line" in text
    )


def test_what_latex_and_markdown_would_read_as_their_own_is_escaped():
    assert (
        escaped("a_b & 50% #1 $x {y} ~ ^ \\z\nµ – ²")
        == r"a\_b \& 50\% \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}z ? -- $^2$"
    )
    assert markdown_text("a|b <i> *c*\n`d` [e]") == r"a\|b \<i> \*c\* \`d\` \[e]"


def test_numbers_are_written_without_false_zeros():
    assert [
        value_text(None),
        value_text(-0.0),
        value_text(0.12345),
        signed(-0.0004),
        signed(0.0004),
        signed(-0.25),
        signed(0.25),
    ] == ["–", "0.000", "0.123", "0.000", "0.000", "−0.250", "+0.250"]
    assert [small(0.00012), small(0.5), small(0.0), p_value(0.0002), p_value(0.04), p_value(None)] == [
        "0.00012",
        "0.500",
        "0.000",
        "< 0.001",
        "0.040",
        "–",
    ]


def test_the_figure_has_a_pair_of_panels_a_group_and_is_the_same_every_time():
    both, one = (
        Image.open(io.BytesIO(figure_png(sheet(about=facts(groups=groups)))))
        for groups in (facts().groups, facts().groups[:1])
    )
    assert both.width == one.width >= 1200 and both.height > 1.8 * one.height
    assert figure_png(sheet()) == figure_png(sheet())


class Page(HTMLParser):
    """Tags with their attributes; complains of tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_gallery_asks_nothing_of_the_network_and_stores_a_slice_once():
    text = page()
    parsed = Page(text)
    assert parsed.open == [] and not re.search(r"https?:|url\(|@import|<script", text)
    references = [attributes[name] for _, attributes in parsed.tags for name in ("src", "href") if name in attributes]
    assert all(reference.startswith(("data:image/webp;base64,", "#")) for reference in references)
    known = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    assert {reference[1:] for reference in references if reference.startswith("#")} <= known
    # p1 slice 60 is an error of two rows, slice 61 of one, the phantom of one.
    assert len([1 for tag, attributes in parsed.tags if tag == "image" and "id" in attributes]) == 3


def test_the_gallery_shows_the_worst_first_and_how_many_there_are():
    text = page()
    patchcore = text.split('<h3 id="patients-patchcore">')[1].split("<h3")[0]
    assert re.findall(r"<dt>Score</dt><dd>([\d.]+)</dd>", patchcore) == ["0.900", "0.600"]
    assert "2 of 87" in patchcore and "No false negatives." in patchcore
    assert text.count("No false positives.") == 2  # brightness, and PatchCore on phantoms


def test_a_failed_and_an_undecided_row_give_their_reason_instead_of_no_errors():
    note = ThresholdNote(
        "brightness", "patients", 1, 0, "image", "max_recall", None, "one class only: no tumour slices"
    )
    text = page(facts(thresholds=(note,)))
    brightness, failed = (
        text.split(f'<h3 id="patients-{row}">')[1].split("<h3")[0] for row in ("brightness", "memory-autoencoder")
    )
    assert (
        "no decisions: fold 1 has no threshold (one class only: no tumour slices)" in brightness
        and "No false" not in brightness
    )
    assert "failed: fold 0, seed 1: loss is not a number" in failed and "No false" not in failed


def test_every_card_of_a_phantom_is_labelled_and_no_card_of_a_patient():
    text = page()
    phantoms = text.split("<h2>Generated phantoms, not patients</h2>")[1]
    assert text.count('tag phantom">generated phantom') == phantoms.count('<article class="card">') == 1
    assert (
        "Generated phantom, slice 60 of case Phantom_00001" in phantoms
        and "<figcaption>Phantom. Expert</figcaption>" in phantoms
    )
    assert "Phantom. " not in text.replace(phantoms, "")


def test_answers_in_the_gallery_are_escaped_and_marked_as_the_models():
    text = page()
    assert "The language model wrote</span><q>Yes &lt;b&gt;&amp;</q>" in text and "Yes <b>" not in text


@pytest.mark.parametrize("changes", [{"label": 1}, {"score": 0.4}])
def test_a_slice_that_was_right_cannot_enter_the_gallery(changes):
    with pytest.raises(ValueError, match="p1, slice 60"):
        replace(wrong("false positive", 0.9), **changes)


def test_a_study_without_any_group_still_gives_all_files(tmp_path):
    written = write_results(str(tmp_path), TABLE.empty_table(), facts(groups=(), thresholds=()), ())
    assert all((tmp_path / path).stat().st_size for path in vars(written).values())


def test_a_table_of_other_columns_is_refused(tmp_path):
    with pytest.raises(StoreError):
        write_results(str(tmp_path), pa.table({"row": ["proposed"]}), facts(), ())
