"""`medad deploy` on a real server: what is registered, what is listed, what is orphaned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker
from test_cli import expect_line, medad

from flows import standing
from flows.deployments import FILE, read_entries
from flows.gpu import LIMIT
from flows.pools import TEMPLATE
from medad_core.config import Settings
from medad_core.errors import ConfigError

pytest_plugins = ("prefect_harness",)
pytestmark = pytest.mark.usefixtures("untouched")
NIGHTLY = "screen-cohort/nightly-ward"


@pytest.fixture
def client(server):
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch):
    """The server of the tests schedules nothing; test_serve has one that does."""
    monkeypatch.setattr(standing, "SCHEDULER_S", 0)


def deploy(tmp_path: Path, *words: object):
    return medad("deploy", "--inbox", tmp_path / "in", "--cohort", tmp_path / "ward", *words)


def registered(client, name: str) -> dict:
    """What the server has of a deployment, times and counts aside."""
    deployment = client.read_deployment_by_name(name)
    schedules = [schedule.model_dump(include={"slug", "schedule", "active"}) for schedule in deployment.schedules]
    kept = deployment.model_dump(
        include={"id", "tags", "parameters", "entrypoint", "work_pool_name", "concurrency_options", "job_variables"}
    )
    return {**kept, "schedules": schedules, "pull_steps": deployment.pull_steps or []}


def test_pools_limit_and_deployments_are_made_once_and_can_be_made_again(client, tmp_path):
    assert deploy(tmp_path, "data.last_slice=90").exit_code == 0
    nightly = registered(client, NIGHTLY)
    assert {"medad", "cohort:ward"} == set(nightly["tags"])
    assert nightly["parameters"]["inbox"] == str(tmp_path / "in")
    assert nightly["parameters"]["cohort"] == str(tmp_path / "ward")
    assert registered(client, "verify/verify-ward")["parameters"]["folder"] == str(tmp_path / "ward")
    assert Settings.model_validate(nightly["parameters"]["settings"]).data.last_slice == 90
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert not nightly["pull_steps"] and ":" not in nightly["entrypoint"]
    assert {client.read_work_pool(name).type for name in ("medad-cpu", "medad-gpu")} == {"process"}
    assert client.read_global_concurrency_limit_by_name(LIMIT).limit == 1
    client.upsert_global_concurrency_limit_by_name(LIMIT, 2)
    assert deploy(tmp_path, "data.last_slice=90").exit_code == 0
    assert registered(client, NIGHTLY) == nightly
    assert client.read_global_concurrency_limit_by_name(LIMIT).limit == 2, "what somebody has set was set back"


def test_cron_timezone_and_pool_of_the_command_win_and_a_schedule_that_is_off_stays_off(client, tmp_path):
    deploy(tmp_path)
    deployment = client.read_deployment_by_name(NIGHTLY)
    client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=False)
    assert deploy(tmp_path, "--cron", "30 1 * * *", "--timezone", "Asia/Seoul", "--pool", "medad-gpu").exit_code == 0
    (schedule,) = registered(client, NIGHTLY)["schedules"]
    assert schedule["schedule"]["cron"] == "30 1 * * *"
    assert schedule["schedule"]["timezone"] == "Asia/Seoul"
    assert schedule["active"] is False
    (verification,) = registered(client, "verify/verify-ward")["schedules"]
    assert verification["schedule"]["cron"] == "0 12 * * *" and verification["schedule"]["timezone"] == "Asia/Seoul"
    for name in (NIGHTLY, "evaluate/report", "reproduce/tables"):
        assert registered(client, name)["work_pool_name"] == "medad-gpu"


def test_without_a_cohort_what_can_be_started_by_hand_is_registered(client, tmp_path):
    result = medad("deploy")
    assert result.exit_code == 0 and "screen-cohort/nightly-* is not registered now" in result.stderr
    assert registered(client, "evaluate/report")["parameters"] == {}
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name("screen-cohort/nightly-")


def test_what_is_ours_and_not_in_the_file_is_orphaned(client, tmp_path):
    whole = FILE.read_text()
    file = tmp_path / "prefect.yaml"
    report = whole[whole.index("- name: report") : whole.index("- name: tables")]
    file.write_text(whole + report.replace("name: report", "name: weekly"))
    assert deploy(tmp_path, "--file", file).exit_code == 0
    file.write_text(whole.replace("slug: nightly", "slug: early"))
    result = deploy(tmp_path, "--file", file)
    orphaned = "evaluate/weekly: orphaned, prefect.yaml does not have it"
    assert f"{orphaned}: prefect deployment delete 'evaluate/weekly'" in result.stderr
    assert f"{NIGHTLY}: schedule nightly is orphaned" in result.stderr
    assert "evaluate/report: orphaned" not in result.stderr
    client.delete_deployment(client.read_deployment_by_name("evaluate/weekly").id)
    client.delete_deployment(client.read_deployment_by_name(NIGHTLY).id)


def test_a_pool_without_a_worker_is_named_with_the_command_that_starts_one(client, tmp_path):
    result = deploy(tmp_path)
    assert "reproduce/tables: no worker is online for it: medad serve --pool medad-gpu" in result.stderr


def test_a_pool_that_takes_commands_is_closed_and_a_pool_of_another_kind_stays(client, tmp_path):
    open_to_all = ProcessWorker.get_default_base_job_template()
    client.create_work_pool(WorkPoolCreate(name="old", type="process", base_job_template=open_to_all))
    client.create_work_pool(WorkPoolCreate(name="other", type="kubernetes", base_job_template=open_to_all))
    for pool in ("old", "other"):
        assert deploy(tmp_path, "--pool", pool).exit_code == 0
    assert client.read_work_pool("old").base_job_template == TEMPLATE
    assert client.read_work_pool("other").base_job_template == open_to_all


def test_a_file_that_gives_a_pool_variables_is_refused(tmp_path, server):
    file = tmp_path / "prefect.yaml"
    variables = "work_pool: {name: medad-cpu, job_variables: {env: {A: b}}}"
    file.write_text(FILE.read_text().replace("work_pool: {name: medad-cpu}", variables))
    expect_line(deploy(tmp_path, "--file", file), 2, "job_variables: pool medad-cpu takes none")


def test_prefect_takes_the_file_too(client, tmp_path):
    deploy(tmp_path)
    ours = registered(client, NIGHTLY)
    client.delete_deployment(ours["id"])
    variables = {
        "MEDAD_INBOX": str(tmp_path / "in"),
        "MEDAD_COHORT": str(tmp_path / "ward"),
        "MEDAD_COHORT_NAME": "ward",
    }
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    words = [*prefect, "deploy", "--prefect-file", str(FILE), "--name", "nightly-{{ $MEDAD_COHORT_NAME }}"]
    environment = {
        **os.environ,
        **variables,
        "PREFECT_API_URL": PREFECT_API_URL.value(),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = registered(client, NIGHTLY)
    for key in ("tags", "parameters", "entrypoint", "work_pool_name", "concurrency_options", "job_variables"):
        assert theirs[key] == ours[key]
    assert str(tmp_path) not in str(theirs["pull_steps"])
    assert theirs["schedules"][0]["schedule"] == ours["schedules"][0]["schedule"]


def test_without_a_server_it_is_one_clear_line(tmp_path):
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        expect_line(deploy(tmp_path), 2, "PREFECT_API_URL is not set", "medad serve")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        expect_line(deploy(tmp_path), 2, "no Prefect server answers at http://127.0.0.1:9/api")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--inbox", "in"], "--inbox and --cohort go together"),
        (["--inbox", "in", "--cohort", "ward", "--cron", "at two"], "cron 'at two'"),
        (["--inbox", "in", "--cohort", "ward", "--timezone", "Berlin"], "timezone 'Berlin'"),
        (["--file", "no.yaml"], "no.yaml: no deployments can be read"),
        (["data.modalty=t2"], "did you mean data.modality?"),
        (["notify.webhook=http://hooks.example/s3cr3t"], "set MEDAD_WEBHOOK where the worker is started"),
    ],
)
def test_what_is_wrong_is_one_clear_line(server, words, text):
    result = medad("deploy", *words)
    expect_line(result, 2, text)
    assert "s3cr3t" not in result.output


def test_settings_of_the_environment_are_read_as_those_of_the_command_are(client, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDAD_SETTINGS", "notify: {webhook: 'http://hooks.example/s3cr3t'}")
    result = deploy(tmp_path)
    expect_line(result, 2, "set MEDAD_WEBHOOK where the worker is started")
    monkeypatch.setenv("MEDAD_SETTINGS", "data: {last_slice: 91}")
    assert deploy(tmp_path).exit_code == 0
    assert Settings.model_validate(registered(client, NIGHTLY)["parameters"]["settings"]).data.last_slice == 91


def test_folders_in_settings_are_found_by_a_worker_in_another_folder(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert deploy(tmp_path, "models.weights=mine", "llm.model=./mine", "models.encoder=dinov2-small").exit_code == 0
    chosen = Settings.model_validate(registered(client, NIGHTLY)["parameters"]["settings"])
    assert chosen.models.weights == str(tmp_path / "mine")
    assert chosen.llm.model == str(tmp_path / "mine")
    assert chosen.models.encoder == "dinov2-small"


def test_a_file_that_is_no_list_of_deployments_is_named(tmp_path):
    (tmp_path / "prefect.yaml").write_text("deployments: 5\n")
    with pytest.raises(ConfigError, match=r"prefect\.yaml: no deployments"):
        read_entries(tmp_path / "prefect.yaml")


def test_the_file_names_no_folder_of_any_machine():
    assert not [line for line in FILE.read_text().splitlines() if "/" in line and not line.lstrip().startswith("#")]
