"""From a YAML file and `key=value` words to `Settings`, or to one line that says what is wrong.

One decision: values are checked in pydantic's strict JSON mode. YAML already gives typed values, and lax mode would
read `first_slice: yes` as slice 1.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from medad_core.config.settings import Settings
from medad_core.config.yaml_reader import StrictDumper, StrictLoader
from medad_core.errors import ConfigError, first_line
from medad_core.media import visible

# Keys that runs and deployments made before have in their settings, and that change nothing any more.
RETIRED = {"llm.mode": "leave it out; llm.structured=true generates no more of a sentence than decides it"}


def load_settings(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read settings: defaults, then `file` where given, then `overrides` in order.

    `overrides` are words like `data.first_slice=70`. Keys are dotted; values are YAML (`null`, `1e-3`, `[a, b]`), and a
    mapping sets several keys of a section.

    Raises ConfigError: one line that names every wrong key or value and what is allowed.
    """
    tree = _read_file(Path(file)) if file is not None else {}
    for word in overrides:
        key, value = _parse_override(word)
        tree = _merge(tree, _nest(key.split("."), value))
    return _validate(tree, source=str(file) if file is not None else None)


@lru_cache(maxsize=8)  # every stage and task reads the same text; settings are frozen
def settings_from_yaml(text: str, source: str = "settings") -> Settings:
    """Settings from YAML text that somebody wrote. Raises ConfigError."""
    return _validate(_read_mapping(text, source), source=source)


@lru_cache(maxsize=8)
def stored_settings(text: str) -> Settings:
    """Settings from YAML text that `settings_to_yaml` of this version or an earlier one wrote. Raises ConfigError."""
    return _validate(without_retired(_read_mapping(text, "settings")), source="settings")


def without_retired(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings that medad wrote, without the keys that it has no longer."""
    kept = dict(tree)
    for section, key in (retired.split(".") for retired in RETIRED):
        if isinstance(kept.get(section), Mapping):
            kept[section] = {name: value for name, value in kept[section].items() if name != key}
    return kept


def settings_to_yaml(settings: Settings) -> str:
    """The complete settings as YAML, in field order, less the webhook, which is secret.

    `stored_settings` gives equal settings back.
    """
    return yaml.dump(settings.model_dump(mode="json"), Dumper=StrictDumper, sort_keys=False, allow_unicode=True)


def known_keys(model: type[BaseModel] = Settings) -> tuple[str, ...]:
    """Dotted names of all sections and values, in field order."""
    return tuple(_walk(model, ""))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, f"{prefix}{name}.")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read settings file {path}: {reason}") from error
    return _read_mapping(text, str(path))


def _read_mapping(text: str, source: str) -> dict[str, Any]:
    tree = _parse_yaml(text, source)
    if tree is None:  # an empty file means: all defaults
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected sections such as 'data:', found a {type(tree).__name__}")
    return tree


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=StrictLoader)
    except RecursionError as error:
        raise ConfigError(f"{source}: not valid settings: brackets within brackets without end") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"{source}{where}: not valid YAML: {problem}") from error


def _parse_override(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"cannot read {word!r}: write key=value, for example data.first_slice=70")
    if key not in known_keys():
        raise ConfigError(visible(_unknown(key)))
    return key, _parse_yaml(text, visible(word))


def _nest(path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {first: _nest(rest, value) if rest else value}


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _validate(tree: Mapping[str, Any], source: str | None) -> Settings:
    # A section that is named but left empty ("llm:") means its defaults, not null.
    tree = {key: value for key, value in tree.items() if value is not None or key not in Settings.model_fields}
    try:
        return Settings.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        faults = "; ".join(_describe(item) for item in error.errors(include_url=False))
        raise ConfigError(visible(f"{source}: {faults}" if source else faults)) from error


def _describe(item: ErrorDetails) -> str:
    key = ".".join(str(step) for step in item["loc"])
    if item["type"] == "extra_forbidden":
        return _unknown(key)
    if item["type"] == "value_error":  # a rule between several keys of one section: its text has the values already
        return f"{key}: {item['ctx']['error']}"
    if item["type"] == "string_pattern_mismatch":
        return f"{key}={item['input']!r}: {_help_of(item['loc'])}"
    return f"{key}={_shown(item['input'])}: {item['msg'].replace('Input should', 'should')}"


def _help_of(loc: Sequence[str | int]) -> str:
    model: Any = Settings
    for step in loc[:-1]:
        model = model.model_fields[step].annotation
    field = model.model_fields[loc[-1]]
    return f"should be {field.description}" if field.description else f"should match {field.metadata}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown(key: str) -> str:
    if key in RETIRED:
        return f"{key} is no longer a key: {RETIRED[key]}"
    near = _nearest_keys(key)
    if near:
        return f"unknown key {key}: did you mean {' or '.join(near[:3])}?"
    sections = ", ".join(Settings.model_fields)
    return f"unknown key {key}: the sections are {sections} (configs/default.yaml has every key)"


def _nearest_keys(key: str) -> list[str]:
    """Known keys that `key` may stand for: the right name in the wrong section first, then the nearest spelling."""
    known = known_keys()
    last = _last_word(key)
    same_name = [name for name in known if _last_word(name) == last]
    if same_name:
        return same_name
    spelt_alike = difflib.get_close_matches(key, known, 1, 0.6)
    if spelt_alike:
        return spelt_alike
    by_last_word = {_last_word(name): name for name in reversed(known)}
    return [by_last_word[match] for match in difflib.get_close_matches(last, by_last_word, 1, 0.6)]


def _last_word(key: str) -> str:
    return key.rsplit(".", 1)[-1]
