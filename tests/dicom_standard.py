"""The DICOM standard as dicom-validator takes it, from the tables that highdicom carries.

One decision: dicom-validator downloads the standard's text, which tests may not. highdicom has the attributes of every
module with their types, so attributes that are missing, empty or in no module are seen. Conditions (types 1C and 2C,
modules of usage C) are not in its tables, and are not checked.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path

from dicom_validator.validator.dicom_file_validator import DicomFileValidator
from dicom_validator.validator.dicom_info import DicomInfo
from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag

_GROUPS = (["SharedFunctionalGroupsSequence"], ["PerFrameFunctionalGroupsSequence"])


def errors_of(path: Path) -> list[str]:
    """What dicom-validator finds in a file, as `module: tag: what`."""
    (result,) = DicomFileValidator(_standard(), log_level=50).validate(path).values()
    found = [
        f"{module}: {tag}: {error.code}" for module, tags in result.module_errors.items() for tag, error in tags.items()
    ]
    return found or ([] if result.errors == 0 else [str(result.status)])


@cache
def _standard() -> DicomInfo:
    iod_of, modules_of = _table("sop_class_iod_map"), _table("iod_module_map")
    modules = {name: _module(rows) for name, rows in _table("module_attribute_map").items()}
    iods = {
        uid: {
            "title": name,
            "group_macros": {},
            "modules": {
                module["key"]: {"ref": module["key"], "use": "M" if module["usage"] == "M" else "U"}
                for module in modules_of[name]
                if module["key"] in modules
            },
        }
        for uid, name in iod_of.items()
    }
    return DicomInfo({}, iods, modules)


def _table(name: str) -> dict:
    return json.loads(resources.files("highdicom").joinpath(f"_standard/{name}.json").read_text(encoding="utf-8"))


def _module(rows: list[dict]) -> dict:
    """Attributes by tag, each with those of the items of its sequence; without attributes that pydicom retired."""
    module: dict = {}
    for row in sorted(rows, key=lambda row: len(row["path"])):
        if tag_for_keyword(row["keyword"]) is None:
            continue
        level = module
        for keyword in row["path"]:
            level = level.setdefault(_tag(keyword), {"name": keyword, "type": "3"}).setdefault("items", {})
        # A macro stands in the shared groups or in those of each frame; the tables demand it of both.
        kind = "3" if row["path"] in _GROUPS else row["type"]
        level.setdefault(_tag(row["keyword"]), {}).update(name=row["keyword"], type=kind)
    return module


def _tag(keyword: str) -> str:
    tag = Tag(keyword)
    return f"({tag.group:04X},{tag.element:04X})"
