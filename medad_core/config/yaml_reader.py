"""YAML as people mean it: `1e-3` is a number, a date is text, and a key given twice is an error.

PyYAML follows YAML 1.1, where `1e-3` is a string, `2024-01-01` a date object that JSON cannot hold, and the last of two
equal keys silently wins.
"""

from __future__ import annotations

import re
from typing import ClassVar

import yaml


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with the three differences named above, and without shared tables of resolvers."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in entries if not tag.endswith((":timestamp", ":float"))]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)$"),
    list("-+0123456789."),
)
