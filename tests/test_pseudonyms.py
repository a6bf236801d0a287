"""With `data.pseudonyms`, no name is in anything that is written, printed or sent; who has the key finds it again."""

from __future__ import annotations

import csv
import json
import shutil
import urllib.request
from datetime import date
from pathlib import Path

import nibabel
import pandas as pd
import pyarrow.parquet as pq
import pytest
from prefect_harness import WORDS, break_case, write_case
from typer.testing import CliRunner

from flows.cli.app import app
from medad_core.config import DataSettings, Settings, load_settings
from medad_core.data.pseudonyms import Pseudonyms, make_key, with_pseudonyms
from medad_core.data.source import find_cases, find_named_cases
from medad_core.errors import StoreError, UsageError
from medad_core.models.weights import trained_on, weights_folder
from medad_core.run.cohort import Cohort, Member
from medad_core.stages.caveats import caveats

pytest_plugins = ("prefect_harness",)
NAMES = ("DOE", "Jane", "MUSTER", "Erika", "20190131", "20190202", "HORVAT")


def medad(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("safe") / "study.key"
    make_key(path)
    return path


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """Two visits of one patient, a truncated volume, and a case with two volumes for one role."""
    root, scratch = tmp_path_factory.mktemp("ward"), tmp_path_factory.mktemp("scratch")
    for number, visit in enumerate(("ses-20190131", "ses-20190202")):
        write_case(scratch, visit, seed=number, tumour=range(60 + number, 64))
        for kind in ("flair", "seg"):
            place = root / "DOE_Jane" / visit
            place.mkdir(parents=True, exist_ok=True)
            image = nibabel.load(scratch / visit / f"{visit}_{kind}.nii.gz")
            image.header["descrip"] = image.header["db_name"] = b"DOE^Jane"
            nibabel.save(image, place / f"{kind}.nii.gz")
    write_case(root, "MUSTER_Erika", seed=3)
    break_case(root, "MUSTER_Erika")
    write_case(root, "HORVAT_I", seed=4)
    shutil.copy(root / "HORVAT_I" / "HORVAT_I_flair.nii.gz", root / "HORVAT_I" / "HORVAT_I-flair.nii.gz")
    return root


def texts_below(folder: Path) -> dict[str, str]:
    """All that a reader of the folder sees, by file: names of files, rows and metadata of tables, and other bytes."""
    texts = {"": " ".join(str(path.relative_to(folder)) for path in folder.rglob("*"))}
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            columns = [name for name in table.schema.names if str(table.schema.field(name).type) == "string"]
            texts[str(path)] = f"{table.select(columns).to_pylist()} {table.schema.metadata}"
        elif path.is_file():
            texts[str(path)] = path.read_bytes().decode("latin-1")
    return texts


def seen_names(text: str) -> list[str]:
    return [name for name in NAMES if name in text]


def counted_names(text: str) -> dict[str, int]:
    """How often each name occurs: other tests share the server."""
    return {name: text.count(name) for name in NAMES}


def server_texts(server: str) -> str:
    """All that the server keeps of runs, parameters, tasks, logs and artifacts."""
    answers = []
    for what in ("flow_runs", "task_runs", "logs", "artifacts"):
        request = urllib.request.Request(
            f"{server}/{what}/filter", json.dumps({"limit": 200}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            answers.append(answer.read().decode())
    return "".join(answers)


def test_no_name_is_in_a_run_its_messages_or_the_server(server, named, key, tmp_path):
    run, before = tmp_path / "run", server_texts(server)
    result = medad("screen", named, "--out", run, f"data.pseudonyms={key}", *WORDS)
    assert result.exit_code == 3, result.output
    rows = pd.read_parquet(run / "predictions.parquet")
    assert rows["case_id"].nunique() == 2 and rows["patient"].nunique() == 1
    leaks = {path: seen_names(text) for path, text in texts_below(run).items() if seen_names(text)}
    assert not leaks and not seen_names(result.output)
    assert counted_names(server_texts(server)) == counted_names(before)
    rejected = pd.read_csv(run / "rejected.csv")
    assert len(rejected) == 2 and rejected["reason"].str.contains("medad pseudonyms").sum() == 1
    evaluated = medad("evaluate", run)
    assert evaluated.exit_code == 3 and not seen_names(evaluated.output), evaluated.output


def test_rows_are_those_of_the_same_run_without_pseudonyms(server, named, key, tmp_path):
    hidden, plain = tmp_path / "hidden", tmp_path / "plain"
    assert medad("screen", named, "--out", hidden, f"data.pseudonyms={key}", *WORDS).exit_code == 3
    assert medad("screen", named, "--out", plain, *WORDS).exit_code == 3
    names = tmp_path / "names.csv"
    assert medad("pseudonyms", key, named, "--out", names).exit_code == 0
    assert names.stat().st_mode & 0o777 == 0o600
    with names.open(newline="") as stream:
        table = {row["pseudonym"]: row for row in csv.DictReader(stream) if row["pseudonym"]}
    rows = pd.read_parquet(hidden / "predictions.parquet")
    rows["patient"] = [table[case_id]["patient"] for case_id in rows["case_id"]]
    rows["case_id"] = [table[case_id]["case_id"] for case_id in rows["case_id"]]
    rows = rows.sort_values(["case_id", "slice_index"], ignore_index=True)
    own = ["split", "model_fingerprint"]  # both are of the names of patients and cases
    expected = pd.read_parquet(plain / "predictions.parquet").sort_values(["case_id", "slice_index"], ignore_index=True)
    pd.testing.assert_frame_equal(rows.drop(columns=own), expected.drop(columns=own))
    reasons = [row["reason"] for row in table.values() if row["reason"]]
    assert len(reasons) == 1 and "HORVAT" in reasons[0]


def test_a_cohort_holds_no_name_and_is_not_mixed_with_names_or_another_key(server, named, key, tmp_path):
    cohort, words, before = tmp_path / "cohort", [*WORDS, "inbox.settle_s=0"], server_texts(server)
    first = medad("screen", named, "--cohort", cohort, f"data.pseudonyms={key}", *words)
    again = medad("screen", named, "--cohort", cohort, f"data.pseudonyms={key}", *words)
    assert first.exit_code == again.exit_code == 3 and "nothing new" in again.output, first.output + again.output
    leaks = {path: seen_names(text) for path, text in texts_below(cohort).items() if seen_names(text)}
    assert not leaks and not seen_names(first.output + again.output)
    assert counted_names(server_texts(server)) == counted_names(before)
    make_key(tmp_path / "other.key")
    for other in (words, [*words, f"data.pseudonyms={tmp_path / 'other.key'}"]):
        refused = medad("screen", named, "--cohort", cohort, *other)
        assert refused.exit_code == 1 and "data.pseudonyms" in refused.stderr, refused.output


def test_a_run_is_not_resumed_with_another_key(named, key, tmp_path):
    from medad_core.run.run import Run

    def settings(path: Path) -> Settings:
        return load_settings(None, [*WORDS, f"data.pseudonyms={path}"])

    make_key(tmp_path / "other.key")
    Run.open(str(named), str(tmp_path / "run"), settings(key))
    with pytest.raises(StoreError, match="was made of other data"):
        Run.open(str(named), str(tmp_path / "run"), settings(tmp_path / "other.key"))


def test_the_same_names_have_the_same_pseudonyms_and_links_follow_their_files(named, key, tmp_path):
    settings = DataSettings(pseudonyms=str(key))
    first = find_cases(named, settings)
    moved = Path(shutil.copytree(named, tmp_path / "moved"))
    second = find_cases(moved, settings)
    assert [case.case_id for case in first.cases] == [case.case_id for case in second.cases]
    link = Path(second.cases[0].volumes["flair"].path)
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    find_cases(moved, settings)
    assert link.is_file() and link.resolve().is_relative_to(moved)
    assert link.parents[2].stat().st_mode & 0o777 == 0o700


def test_a_patient_written_in_capitals_later_keeps_the_pseudonym(key):
    pseudonyms = Pseudonyms.read(key)
    assert pseudonyms.patient("Doe_Jane") == pseudonyms.patient("DOE_JANE") != pseudonyms.patient("Doe_Jan")


def test_links_inside_the_data_are_no_cases(named, tmp_path):
    data = Path(shutil.copytree(named, tmp_path / "data"))
    make_key(data / "study.key")
    settings = DataSettings(pseudonyms=str(data / "study.key"))
    assert len(find_cases(data, settings).cases) == len(find_cases(data, settings).cases) == 3


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0, "no such file"),
        ("secret\n", 0o600, "is no key"),
        (f"{'a' * 64}\n", 0o640, "other users may read it"),
    ],
)
def test_a_key_that_cannot_be_trusted_is_refused(tmp_path, content, mode, said):
    path = tmp_path / "study.key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(UsageError, match=said):
        Pseudonyms.read(path)


def test_a_key_is_never_replaced(key):
    before = key.read_text()
    result = medad("pseudonyms", key, "--new")
    assert result.exit_code == 2 and "is there already" in result.stderr and key.read_text() == before
    assert key.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_listed_is_said_without_its_names(tmp_path, key):
    (tmp_path / "DOE" / "imagesTr").mkdir(parents=True)
    (tmp_path / "DOE" / "imagesTr" / "DOE_2019_0000.nii.gz").write_bytes(b"")
    with pytest.raises(UsageError, match="DOE"):
        find_cases(tmp_path, DataSettings())
    with pytest.raises(UsageError, match="medad pseudonyms") as refusal:
        find_cases(tmp_path, DataSettings(pseudonyms=str(key)))
    assert not seen_names(str(refusal.value).replace(str(tmp_path), ""))


def test_cases_that_trained_the_weights_are_known_under_their_pseudonyms(key):
    learned = sorted(trained_on(weights_folder("embedded")))[0]
    patient = Pseudonyms.read(key).patient(learned)
    cohort = Cohort(root="data", members=(Member(case_id="c-x", split="test", patient=patient),))
    assert "1 of the 1 cases" in caveats(cohort, load_settings(None, [f"data.pseudonyms={key}"]))[1]
    assert len(caveats(cohort, Settings())) == 1  # the limits of the weights
    assert "cannot tell" in caveats(cohort, load_settings(None, ["data.pseudonyms=/nowhere/key"]))[0]


def test_two_names_with_one_pseudonym_are_refused(named, key, monkeypatch):
    pseudonyms = Pseudonyms.read(key)
    monkeypatch.setattr(Pseudonyms, "case", lambda self, case_id: "c-same")
    with pytest.raises(UsageError, match="two cases have the pseudonym"):
        with_pseudonyms(find_named_cases(named, DataSettings()), named, pseudonyms)


def test_dates_are_moved_so_that_days_between_examinations_stay(key):
    pseudonyms = Pseudonyms.read(key)
    moved = [date.fromisoformat(pseudonyms.date(day, "Doe")) for day in ("2024-01-31", "2024-03-01")]
    assert (moved[1] - moved[0]).days == 30 and date(2014, 1, 1) < moved[0] < date(2024, 1, 31)
    assert pseudonyms.date("2024-01-31", "DOE") == moved[0].isoformat() != pseudonyms.date("2024-01-31", "Roe")
    assert pseudonyms.date("", "Doe") == ""


def test_the_date_of_a_table_is_in_no_case_with_a_pseudonym(named, key, tmp_path):
    names = [case.case_id for case in find_cases(named, DataSettings()).cases]
    table = tmp_path / "patients.csv"
    table.write_text("\n".join(["case_id,patient,date", *(f"{name},Doe,2024-01-2{n}" for n, name in enumerate(names))]))
    settings = DataSettings(patients=str(table), pseudonyms=str(key))
    cases = find_cases(named, settings).cases
    assert len(cases) > 1 and "2024-01-2" not in repr(cases)
    days = sorted(date.fromisoformat(case.date) for case in cases)
    assert (days[-1] - days[0]).days == len(days) - 1
