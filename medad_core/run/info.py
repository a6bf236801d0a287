"""`RUN/run.json`: the settings and the data of a run, for people and for later commands.

One decision: no fingerprint depends on it. It contains the complete settings as YAML text, like those in `configs/`.
"""

from __future__ import annotations

import msgspec

from medad_core.config import Settings, settings_to_yaml, stored_settings
from medad_core.errors import StoreError
from medad_core.store import join
from medad_core.store.files import make_folder, read_bytes, write_bytes
from medad_core.store.records import Record

NAME = "run.json"
EVALUATED = "_evaluated.json"  # `medad_core.run.evaluated`, whose imports take a second


class RunInfo(Record, frozen=True):
    """The settings and data of the command. `versions` are those of the relevant packages.

    `settings` are complete, as YAML that `medad_core.config.stored_settings` reads.
    """

    settings: str
    data_root: str
    versions: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, data_root: str, versions: dict[str, str]) -> RunInfo:
        """The info of a run. The webhook's address is removed from its settings."""
        return cls(settings=settings_to_yaml(settings), data_root=data_root, versions=versions)

    def parsed_settings(self) -> Settings:
        """The settings of the run. Raises ConfigError if this version does not know one of them."""
        return stored_settings(self.settings)


def write_run_info(run: str, info: RunInfo) -> None:
    """Write `RUN/run.json`, replacing an earlier one. Raises StoreError."""
    make_folder(run)
    write_bytes(join(run, NAME), info.to_json())


def has_run_info(run: str) -> bool:
    """Whether the run already has a `run.json`."""
    return read_bytes(join(run, NAME)) is not None


def has_results(run: str) -> bool:
    """Whether the run in the folder `run` was evaluated: it may be finished. Raises StoreError."""
    return read_bytes(join(run, EVALUATED)) is not None


def read_run_info(run: str) -> RunInfo:
    """Read `RUN/run.json`. Raises StoreError if `run` is not a run of medad, or the file is damaged."""
    data = read_bytes(join(run, NAME))
    if data is None:
        raise StoreError(f"{run} is not a run of medad (no run.json); make one with `medad screen DATA --out {run}`")
    try:
        return RunInfo.from_json(data)
    except ValueError as error:
        raise StoreError(f"{run}/run.json is damaged; run `medad screen DATA --out {run}` again") from error
