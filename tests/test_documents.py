"""Documents: what they tell a reader to type works, what they point to is there.

One decision: a command that is cheap is run. One that is not is parsed by the very application that would run it, so
an option, a command or a setting that does not exist fails here. What cannot be checked may not stand in a block.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import medad_core
from flows.cli.app import app
from medad_core.config import load_settings
from medad_core.store import read_table

pytest_plugins = ("prefect_harness",)
ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
METHOD = ROOT / "medad_core" / "README.md"
GLOSSARY = """
    case study volume slice mask finding question part range stage run batch cohort revision
    plan record manifest fingerprint quarantine
"""
FENCE = "```"
TOOLS = ("medad", "make", "prefect", "python", "ruff", "mypy", "export")
VARIABLE = re.compile(r"[A-Z_]+=")
SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+=")
MACHINE_PATH = re.compile(r"(?<![\w:/.}])/(?:home|root|tmp|work|Users|mnt|opt|usr|var|etc|srv|media|scratch)/")
OTHERS = re.compile(r"(^|/)\.|^(demo|build)/|\.egg-info/|__pycache__/")  # made on this machine
REPOSITORY_PATH = re.compile(r"`((?:medad_core|flows|tasks|tests|configs)/[a-z0-9_./-]*)`")


def tracked(*patterns: str) -> list[Path]:
    """Files of the project that match, sorted: those that git has, and new ones that it does not ignore."""
    if not (ROOT / ".git").exists():  # unpacked from an archive, which has nothing but the project's files at first
        files = {path for pattern in patterns for path in ROOT.rglob(pattern) if path.is_file()}
        return sorted(path for path in files if not OTHERS.search(str(path.relative_to(ROOT))))
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({ROOT / name for name in listed if (ROOT / name).is_file()})


DOCUMENTS = tracked("*.md")
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """A block of code: `line` is its first, from 1; `language` is that of a fence, None of an indented block."""

    document: Path
    line: int
    language: str | None
    lines: tuple[str, ...]

    @property
    def is_shell(self) -> bool:
        if self.language is None:
            return any(tool_of(words_of(line)) in TOOLS for line in self.lines if line.strip())
        return self.language in ("sh", "bash", "shell", "console")


def blocks(document: Path) -> Iterator[Block]:
    """Fenced blocks, and those that are indented by four spaces after an empty line."""
    lines = document.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        start = number
        number += 1
        if line.startswith(FENCE):
            while not lines[number].startswith(FENCE):
                number += 1
            yield Block(document, start + 2, line.removeprefix(FENCE).strip(), tuple(lines[start + 1 : number]))
            number += 1
        elif line.startswith("    ") and not lines[start - 1].strip():
            while number < len(lines) and lines[number].startswith("    "):
                number += 1
            yield Block(document, start + 1, None, tuple(text[4:] for text in lines[start:number]))


def words_of(line: str) -> list[str]:
    """A command's words, without comment, variables of the environment before it, and the & after it."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # no command: a sentence in a drawing
        return []
    while words and VARIABLE.match(words[0]):
        words = words[1:]
    return words[:-1] if words[-1:] == ["&"] else words


def tool_of(words: list[str]) -> str:
    return Path(words[0]).name if words and not words[0].endswith("/") else ""


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
COMMANDS = [
    pytest.param(words_of(line), id=f"{block.document.relative_to(ROOT)}: {line.split('#')[0].strip()}")
    for block in BLOCKS
    if block.is_shell
    for line in block.lines
]
PYTHON_BLOCKS = [block for block in BLOCKS if block.language == "python"]


@cache
def the_command() -> object:
    return typer.main.get_command(app)


def resolve(words: list[str]) -> tuple[object, list[str]]:
    """The command of `medad` that the words name, as far as there is one, and the words after its name."""
    command = the_command()
    words = [word for word in words if word != "--debug"]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words[0]]
        words = words[1:]
    return command, words


def check_medad(words: list[str]) -> None:
    command, rest = resolve(words)
    if getattr(command, "commands", None):  # a group: with a name that it does not have, or by itself
        assert not rest and command.invoke_without_command, f"medad {' '.join(words)}: no such command"
        return
    given = command.make_context("medad", list(rest)).params
    config = given.get("config")
    load_settings(ROOT / config if config else None, given.get("words") or [])


def check_make(words: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)


def check_prefect(words: list[str]) -> None:
    from prefect.cli._app import _app

    _app.parse_args(words, exit_on_error=False, print_error=False)


def check_python(words: list[str]) -> None:
    assert words[:2] == ["-m", "pytest"], words
    assert words[2:] and all((ROOT / path).exists() for path in words[2:]), words


def check_installed(tool: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith(tool) for requirement in extras["test"]), f"{tool} is not in the extra test"


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_of_a_block_is_one_that_its_program_takes(words):
    tool, rest = tool_of(words), words[1:]
    assert tool in TOOLS, f"{words} cannot be checked; it does not belong in a block of commands"
    if tool == "medad":
        check_medad(rest)
    elif tool == "make":
        check_make(rest)
    elif tool == "prefect":
        check_prefect(rest)
    elif tool == "python":
        check_python(rest)
    elif tool == "export":
        assert all(VARIABLE.match(word) for word in rest), words
    else:
        check_installed(tool)


@pytest.mark.parametrize(
    "words", [["screen", "DATA", "--ot", "RUN"], ["scren"], ["screen", "DATA", "--out", "RUN", "data.frst_slice=3"]]
)
def test_a_command_that_does_not_exist_would_be_noticed(words):
    with pytest.raises(Exception, match=r"No such option|no such command|did you mean data\.first_slice"):
        check_medad(words)


@documents
def test_commands_within_sentences_name_commands_options_and_settings_that_exist(document):
    for span in re.findall(r"`((?:medad|make) [^`]+)`", _prose(document)):
        tool, *words = shlex.split(span)
        if tool == "make":
            check_make(words)
            continue
        command, rest = resolve(words)
        options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        assert command.params or not rest, span
        assert {word for word in rest if word.startswith("--")} <= options, span
        load_settings(None, [word for word in rest if SETTING.match(word)])


# `medad models` and `medad doctor` are run in test_cli.py.
@pytest.mark.parametrize("words", [["--help"], ["benchmark", "--help"], ["models", "import", "--help"]], ids=" ".join)
def test_help_is_there_at_every_level(words, untouched):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def test_what_make_demo_does_works_and_python_gives_the_same_predictions(server, tmp_path, monkeypatch, untouched):
    recipe = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phantom, screen = [shlex.split(line)[1:] for line in recipe.splitlines() if "/medad " in line]
    phantom[phantom.index("--cases") + 1] = "1"
    screen[screen.index("--config") + 1] = str(ROOT / screen[screen.index("--config") + 1])
    screen += ["llm.engine=transformers", "data.first_slice=78", "data.last_slice=79"]
    run = str(tmp_path / "demo" / "run")
    for words in (phantom, screen, ["status", run], ["evaluate", run, "evaluate.bootstrap=0"]):
        placed = [str(tmp_path / word) if word.startswith("demo/") else word for word in words]
        result = CliRunner().invoke(app, placed)
        assert result.exit_code == 0, result.output
    for name in ("report.html", "predictions.parquet", "metrics.md", "metrics.parquet", "rejected.csv"):
        assert f"`{name}`" in README.read_text() and (Path(run) / name).is_file()
    # A link to a cohort is the same cohort, and what Prefect adds changes no row.
    (tmp_path / "DATA").symlink_to(tmp_path / "demo" / "phantoms")
    monkeypatch.chdir(tmp_path)
    for block in PYTHON_BLOCKS:
        exec("\n".join(block.lines), {})
    alike = [read_table(f"{each}/predictions.parquet").to_pylist() for each in (run, "RUN")]
    assert alike[0] == alike[1] and len(alike[0]) == 2


def test_the_readme_is_read_in_five_minutes():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 250
    assert [line for line in lines if len(line) > 150] == []
    assert "Not a medical device" in "\n".join(lines[:10])


def test_the_tree_of_the_readme_has_every_room_and_nothing_else():
    tree = next(block for block in blocks(README) if block.lines[0].startswith("flows/"))
    entries = set(_tree_entries(tree.lines))
    assert [str(path) for path in sorted(entries) if not (ROOT / path).exists()] == []
    files = [path.relative_to(ROOT) for path in tracked("*")]
    folders = {Path(*file.parts[:depth]) for file in files for depth in (1, 2) if len(file.parts) > depth}
    rooms = {folder for folder in folders if not folder.parts[0].startswith(".") and folder.parts[:-1] != ("tests",)}
    assert {str(room) for room in rooms - entries} == set()


def _tree_entries(lines: tuple[str, ...]) -> Iterator[Path]:
    """Paths of a drawn tree: the first word of a line at its depth, and further modules that the same line names."""
    folders: list[str] = []
    for line in lines:
        name, _, words = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        yield Path(*folders, name)
        inside = name if name.endswith("/") else ""
        yield from (Path(*folders, inside, module) for module in re.findall(r"\b\w+\.py\b", words))
        folders.append(name)


@documents
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)]+)\)", _prose(document)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), target
        assert not anchor or anchor in {_anchor(heading) for heading in headings(path)}, target


def headings(document: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)


def _anchor(heading: str) -> str:
    """As GitHub and GitLab make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _prose(document: Path) -> str:
    """A document without its blocks."""
    text = document.read_text(encoding="utf-8")
    text = re.sub(rf"^{FENCE}.*?^{FENCE}$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


@documents
def test_paths_within_the_project_exist(document):
    for path in REPOSITORY_PATH.findall(_prose(document)):
        assert (ROOT / path).exists(), path


@documents
def test_names_that_a_document_places_in_a_module_are_there(document):
    for name, module in re.findall(r"`(\w+)`(?: \w+)? (?:in|of)\s+`([\w/]+\.py)`", _prose(document)):
        assert re.search(rf"\b{name}\b", (ROOT / module).read_text(encoding="utf-8")), f"{name} in {module}"


@documents
def test_no_document_names_a_folder_of_a_machine(document):
    assert MACHINE_PATH.findall(document.read_text(encoding="utf-8")) == []


def test_sections_that_code_cites_are_there_and_no_document_outside_is_cited():
    sections, cited = set(headings(METHOD)), set()
    for file in tracked("*.py", "*.yaml", "*.md"):
        text = re.sub(r"\s*\n\s*#?\s*", " ", file.read_text(encoding="utf-8"))
        cited |= set(re.findall(r'medad_core/README\.md(?:`\]\([^)]*\))?, "([^"]+)"', text))
        if file != Path(__file__):
            assert not re.search(r"\b(METHOD|DESIGN)(\.md|,| section)", text), file
    assert cited and cited <= sections


def test_the_glossary_has_every_word_once():
    defined = re.findall(r"^    (\w+)  +\S", medad_core.__doc__, re.MULTILINE)
    assert sorted(defined) == sorted(GLOSSARY.split())
