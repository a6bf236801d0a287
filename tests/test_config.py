"""Settings: what is accepted, what is refused, and in which words."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flows.parameters import SettingsParameter
from medad_core.config import (
    Settings,
    known_keys,
    load_settings,
    settings_from_yaml,
    settings_to_yaml,
    stored_settings,
)
from medad_core.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
SECRET = "https://hooks.example/s3cr3t"


def _keys(tree: dict, prefix: str = "") -> list[str]:
    return [
        name
        for key, value in tree.items()
        for name in [prefix + key, *(_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [])]
    ]


def message(overrides=(), file=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(file, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_default_yaml_equals_the_defaults():
    assert load_settings(CONFIGS / "default.yaml") == Settings()


def test_default_yaml_shows_every_key():
    shown = _keys(yaml.safe_load((CONFIGS / "default.yaml").read_text()))
    assert shown == list(known_keys())


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(file):
    load_settings(file)


def test_nothing_given_means_the_defaults():
    assert load_settings() == Settings()


def test_overrides_win_over_the_file_and_later_ones_over_earlier(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  first_slice: 50\n  last_slice: 90\n")
    settings = load_settings(file, ["data.first_slice=61", "data.first_slice=62"])
    assert (settings.data.first_slice, settings.data.last_slice) == (62, 90)


def test_override_values_are_yaml():
    settings = load_settings(
        None,
        ["models.threads=2", "flow.retry_delay_s=5e-1", "flow.ray_address=ray://host:10001"],
    )
    assert settings.models.threads == 2
    assert (settings.flow.retry_delay_s, settings.flow.ray_address) == (0.5, "ray://host:10001")
    assert load_settings(None, ["models.threads=2", "models.threads=null"]).models.threads is None


def test_a_mapping_sets_several_keys_and_leaves_the_others():
    scaling = load_settings(None, ["data.scaling.k=2.5", "data.scaling={kind: median, low: 1}"]).data.scaling
    assert (scaling.kind, scaling.low, scaling.k, scaling.high) == ("median", 1.0, 2.5, 99.5)


def test_text_that_looks_like_a_date_stays_text():
    assert load_settings(None, ["models.weights=2024-01-01"]).models.weights == "2024-01-01"


def test_a_section_left_empty_means_its_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("llm:\n# nothing changed\n")
    assert load_settings(file) == Settings()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("data.modalty", "data.modality"),
        ("first_slice", "data.first_slice or train.first_slice"),
        ("llm.device", "models.device"),
        ("modles.encoder", "models.encoder"),
        ("data.modality.name", "data.modality"),
        ("data.scaling.knid", "data.scaling.kind"),
    ],
)
def test_an_unknown_override_names_the_nearest_known_key(key, meant):
    assert message([f"{key}=1"]) == f"unknown key {key}: did you mean {meant}?"


def test_an_unknown_key_with_nothing_near_lists_the_sections():
    assert "the sections are data, models, llm, evaluate, report, flow, store, inbox, notify, train" in message(
        ["xyzzy=1"]
    )


def test_an_unknown_key_in_a_file_names_file_and_key(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  modalty: t2\n")
    assert message(file=file) == f"{file}: unknown key data.modalty: did you mean data.modality?"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("flow.runner=dask", "flow.runner=\"dask\": should be 'thread', 'process' or 'ray'"),
        ("data.modality=flare", "data.modality=\"flare\": should be 'flair', 't1', 't1ce' or 't2'"),
        ("data.first_slice=yes", "data.first_slice=true: should be a valid integer"),
        ("data.first_slice=-1", "data.first_slice=-1: should be greater than or equal to 0"),
        ("models.batch_size=2.5", "models.batch_size: should be auto or a whole number from 1, not 2.5"),
        ("models.device=gpu", "models.device='gpu': should be auto, cpu, cuda, cuda:N or mps"),
        ("models.encoder=", "models.encoder=null: should be a valid string"),
        ("data.first_slice=120", "data: first_slice (120) must not be after last_slice (100)"),
        ("data.split.test=0.5", "data.split: train + validation + test must be 1, not 1.4"),
        ("data.scaling.low=99.9", "data.scaling: low (99.9) must be below high (99.5)"),
        ("data=5", "data=5: should be an object"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_allowed(override, expected):
    assert message([override]) == expected


def test_every_wrong_value_is_named_at_once():
    text = message(["models.batch_size=0", "llm.batch_size=0"])
    assert "models.batch_size: should be" in text and "llm.batch_size=0" in text


@pytest.mark.parametrize("word", ["data.first_slice", "=3", ""])
def test_a_word_that_is_not_key_value_says_how_to_write_it(word):
    assert message([word]) == f"cannot read {word!r}: write key=value, for example data.first_slice=70"


def test_a_key_given_twice_in_a_file_is_an_error_with_its_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  first_slice: 60\n  first_slice: 70\n")
    assert message(file=file) == f"{file} line 3: not valid YAML: key first_slice is given twice"


@pytest.mark.parametrize("content", [b"data: [1, ", b"- a\n- b\n", b"\xff\xfe", b"1: 2\n", b"!!python/object:os.x {}"])
def test_a_file_that_is_not_settings_is_named(tmp_path, content):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    assert str(file) in message(file=file)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    assert message(file=tmp_path / "no.yaml").endswith("no.yaml: No such file or directory")
    assert message(file=tmp_path).endswith("Is a directory")


def test_settings_cannot_be_changed_after_loading():
    with pytest.raises(Exception, match="frozen"):
        load_settings().data.first_slice = 3


@pytest.mark.parametrize("word", ["da\0\n.ce=6=", "l\n\x16\n=[l", "data.patients=[\n"])
def test_a_word_with_line_breaks_is_refused_in_one_line(word):
    assert "\n" not in message([word])


@given(
    first=st.integers(0, 70),
    weights=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1),
    low=st.floats(0, 90),
    threads=st.none() | st.integers(1, 64),
)
@example(first=0, weights="1e5", low=0.0, threads=None)  # a folder may be called so
def test_writing_and_reading_settings_gives_the_same_settings(first, weights, low, threads):
    settings = Settings.model_validate(
        {
            "data": {"first_slice": first, "scaling": {"low": low}},
            "models": {"weights": weights, "threads": threads},
        }
    )
    assert stored_settings(settings_to_yaml(settings)) == settings


def test_a_key_that_is_no_longer_one_is_passed_over_in_a_run_made_with_it_and_explained_to_who_writes_it(tmp_path):
    text = "llm:\n  mode: verdict\n  structured: true\n"
    assert stored_settings(text).llm.structured
    deployed = TypeAdapter(SettingsParameter).validate_python
    assert deployed(text) == deployed({"llm": {"mode": "verdict", "structured": True}}) == stored_settings(text)
    (tmp_path / "mine.yaml").write_text(text)
    for read in (
        lambda: load_settings(tmp_path / "mine.yaml"),
        lambda: load_settings(None, ["llm.mode=verdict"]),
        lambda: settings_from_yaml(text),
    ):
        with pytest.raises(ConfigError, match=r"llm.mode is no longer a key: leave it out"):
            read()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_settings_survive_json_as_a_flow_parameter_does_and_fit_their_schema(file):
    settings = load_settings(file)
    dumped = json.loads(settings.model_dump_json())
    assert Settings.model_validate(dumped) == settings
    jsonschema.validate(dumped, Settings.model_json_schema(), jsonschema.Draft202012Validator)


def test_the_schema_refuses_what_settings_refuse():
    schema = Settings.model_json_schema()
    for wrong in ({"data": {"modality": "flare"}}, {"data": {"modalty": "t2"}}, {"llm": {"batch_size": 0}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema, jsonschema.Draft202012Validator)


def test_the_address_of_the_webhook_is_in_nothing_that_is_dumped():
    settings = load_settings(None, [f"notify.webhook={SECRET}"])
    assert settings.notify.webhook.get_secret_value() == SECRET
    for level in (settings, settings.notify):
        dumps = (level.model_dump(), level.model_dump(mode="json"), level.model_dump_json(), level.model_json_schema())
        for text in (repr(level), str(level), *map(repr, dumps)):
            assert "s3cr3t" not in text
        assert "webhook" not in level.model_dump_json()
    assert load_settings() == Settings.model_validate_json(settings.model_dump_json())


@pytest.mark.parametrize("value", ["ftp://s3cr3t", ["s3cr3t"], {"s3cr3t": 1}])
def test_an_error_of_the_model_itself_does_not_quote_the_address(value):
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"notify": {"webhook": value}})
    assert "s3cr3t" not in str(caught.value) + repr(caught.value)
