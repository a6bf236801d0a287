"""YAML as people mean it: `1e-3` is a number, a date is text, and a key given twice is an error.

PyYAML follows YAML 1.1, where `1e-3` is a string, `2024-01-01` a date object that JSON cannot hold, and the last of two
equal keys silently wins.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's own, by the first character of a value, without those of dates and numbers with a point."""
    resolvers = {}
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items():
        resolvers[first] = [entry for entry in entries if not entry[0].endswith((":timestamp", ":float"))]
    return resolvers


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with the three differences named above, and a table of resolvers of its own."""

    # PyYAML has it on the class, its type stubs on instances.
    yaml_implicit_resolvers: ClassVar = _resolvers()  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node. Raises ConstructorError for a key that is no text, or given twice."""
        keys: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in keys:
                raise ConstructorError(None, None, f"key {key} is given twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


class StrictDumper(yaml.SafeDumper):
    """SafeDumper that also quotes a text which `StrictLoader` would take for a number, such as `1e5`."""


for _kind in (StrictLoader, StrictDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)\Z"),
        list("-+0123456789."),
    )
