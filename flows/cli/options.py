"""Options and arguments that several commands have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; configs/default.yaml shows all.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings, such as data.first_slice=70.")
]
RunUri = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report there too.")]


def absolute(uri: str) -> str:
    """A local path made absolute, because workers may have another working folder; other URIs as they are."""
    return uri if re.match("[A-Za-z][A-Za-z0-9+.-]*://", uri) else str(Path(uri).expanduser().absolute())
