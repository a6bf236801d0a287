"""The plan of the house: who may import whom, in which order, and what an import may cost.

One decision: imports are read from the source, also those inside functions and those by name
(`importlib.import_module`). An import that only some calls reach is an import all the same.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("medad_core", "tasks", "flows")
OPEN_PARQUET = ("medad_core.store.", "medad_core.benchmark.")  # benchmarks do what peers do, on a disk
FOLDERS = {"configs", "flows", "medad_core", "tasks", "tests"}

# From the ground up. A room imports rooms of lower floors and itself, and no neighbour on its own floor.
FLOORS = (
    {"medad_core"},  # the glossary and the version
    {
        "medad_core.errors",
        "medad_core.environment",
        "medad_core.media",
        "medad_core.permissions",
        "medad_core.progress",
        "medad_core.surroundings",
    },
    {"medad_core.config"},
    {"medad_core.store", "medad_core.notify"},
    {"medad_core.stopping", "medad_core.data"},
    {"medad_core.models", "medad_core.metrics", "medad_core.facts"},
    {"medad_core.llm", "medad_core.report"},
    {"medad_core.imports", "medad_core.run"},
    {"medad_core.faults"},
    {"medad_core.stages"},
    {"medad_core.training", "medad_core.baselines", "medad_core.inbox", "medad_core.export"},
    {"medad_core.reproduce", "medad_core.benchmark"},
    {"tasks"},
    {"flows"},
    {"flows.cli"},
)

# What makes `medad --help` slow; each is imported by the function that needs it.
HEAVY = {"torch", "vllm", "transformers", "prefect", "pandas", "pyarrow", "ray"}

COMPUTED = "a module whose name is computed"


@dataclass(frozen=True)
class Import:
    """One import: the module that has it, the line it has it on, and the module it names."""

    importer: str
    line: int
    imported: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def find_modules(root: Path, packages: Iterable[str]) -> dict[str, Path]:
    """The source file of every module below `packages`, by dotted name; a package is named like its folder."""
    modules = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def read_imports(modules: dict[str, Path]) -> list[Import]:
    """Every import in `modules`, of the standard library and of others too, wherever in the file it stands."""
    imports = []
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for imported in _imported_modules(node, package, modules):
                imports.append(Import(module, node.lineno, imported))
    return imports


def _imported_modules(node: ast.AST, package: str, modules: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        source = resolve_name("." * node.level + (node.module or ""), package)
        for alias in node.names:
            submodule = f"{source}.{alias.name}"
            yield submodule if submodule in modules else source
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {"import_module", "__import__"}:
        argument = node.args[0]
        yield argument.value if isinstance(argument, ast.Constant) else COMPUTED


def project_graph(imports: Iterable[Import], modules: dict[str, Path]) -> dict[str, set[str]]:
    """The project's modules that each module imports."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for item in imports:
        if item.imported in modules and item.imported != item.importer:
            graph[item.importer].add(item.imported)
    return graph


def room_of(module: str) -> str:
    """A package or module directly below medad_core; `flows.cli`; else the package at the top."""
    top, _, rest = module.partition(".")
    room = f"{top}.{rest.partition('.')[0]}"
    return room if rest and (top == "medad_core" or room == "flows.cli") else top


def room_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The rooms that the modules of each room import; what lies deeper in a room belongs to it."""
    rooms: dict[str, set[str]] = {}
    for importer, imported in graph.items():
        room = room_of(importer)
        rooms.setdefault(room, set()).update(map(room_of, imported))
        rooms[room].discard(room)
    return rooms


def find_cycles(graph: dict[str, set[str]]) -> list[str]:
    """Cycles as `a → b → a`, where → reads "imports"; breaking those that are listed leaves none."""
    remaining = {node: set(imported) for node, imported in graph.items()}
    cycles = []
    while True:
        try:
            TopologicalSorter(remaining).prepare()
        except CycleError as error:
            cycle = error.args[1][::-1]
            remaining[cycle[0]].remove(cycle[1])
            cycles.append(" → ".join(cycle))
        else:
            return cycles


def find_upward_imports(imports: Iterable[Import], floors: Iterable[set[str]]) -> list[str]:
    """Imports of a higher floor, or of another room on the same floor, as sentences."""
    height = {room: level for level, rooms in enumerate(floors) for room in rooms}
    upward = []
    for item in imports:
        importer, imported = room_of(item.importer), room_of(item.imported)
        if importer in height and imported in height and importer != imported and height[imported] >= height[importer]:
            upward.append(str(item))
    return upward


MODULES = find_modules(ROOT, PACKAGES)
IMPORTS = read_imports(MODULES)


def test_every_import_names_a_module_that_exists():
    unknown = [item for item in IMPORTS if item.imported.split(".")[0] in PACKAGES and item.imported not in MODULES]
    computed = [item for item in IMPORTS if item.imported == COMPUTED]
    _expect_none(unknown + computed)


def test_no_cycle_between_modules():
    _expect_none(find_cycles(project_graph(IMPORTS, MODULES)))


def test_no_cycle_between_rooms():
    _expect_none(find_cycles(room_graph(project_graph(IMPORTS, MODULES))))


def test_every_room_stands_on_one_floor():
    rooms = sorted({room_of(module) for module in MODULES})
    assert sorted(room for floor in FLOORS for room in floor) == rooms


def test_imports_run_downwards():
    _expect_none(find_upward_imports(IMPORTS, FLOORS))


def test_medad_core_knows_no_orchestrator():
    orchestrators = ("prefect", "ray", "flows", "tasks")
    _expect_none(
        item
        for item in IMPORTS
        if item.importer.split(".")[0] == "medad_core" and item.imported.split(".")[0] in orchestrators
    )


def find_calls(modules: dict[str, Path], pick: Callable[[ast.Call, str], bool]) -> list[str]:
    """The calls that `pick` takes, by the call and the last word of its function, as `module:line`."""
    return [
        f"{module}:{node.lineno}"
        for module, path in modules.items()
        for node in calls_in(path.read_text(encoding="utf-8"))
        if pick(node, last_word(node.func))
    ]


@cache
def calls_in(text: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]


def last_word(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ast.unparse(function).rpartition(".")[2]


def reads_as_the_locale_says(call: ast.Call, name: str) -> bool:
    """Whether a call opens a text file, or the output of a process, without naming its encoding."""
    named = {keyword.arg for keyword in call.keywords}
    if name in {"run", "Popen"}:
        return bool({"text", "universal_newlines"} & named) and "encoding" not in named
    if name not in {"read_text", "write_text", "open"} or "encoding" in named:
        return False
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    if name == "write_text":
        return len(arguments) == 1  # that of the store has two, and writes UTF-8
    modes = [item.value for item in arguments if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    is_method = isinstance(call.func, ast.Attribute) and bool(call.args) and not modes  # Run.open, os.open
    return not is_method and not any("b" in mode for mode in modes)


def starts_python_itself(call: ast.Call, name: str) -> bool:
    """Whether a call names the interpreter, or makes a context of processes."""
    return name == "get_context" or any(names_the_interpreter(node) for node in ast.walk(call))


def names_the_interpreter(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable"


def test_text_files_name_their_encoding():
    _expect_none(find_calls(MODULES, reads_as_the_locale_says))


def test_python_is_started_by_those_who_keep_its_path_safe():
    known = {"medad_core.surroundings.processes", "flows.cli.start"}  # the command starts itself again
    _expect_none(find_calls({name: MODULES[name] for name in MODULES.keys() - known}, starts_python_itself))


def test_only_the_store_opens_parquet_files():
    """pyarrow opens a URI itself, with credentials of its own, and goes on asking a store that refuses them."""
    others = {name: path for name, path in MODULES.items() if not name.startswith(OPEN_PARQUET)}
    _expect_none(name for name, path in others.items() if "pyarrow.parquet" in path.read_text(encoding="utf-8"))


def test_the_command_line_starts_without_heavy_imports():
    code = "import sys, flows.cli.app; print(*{name.partition('.')[0] for name in sys.modules})"
    started = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(started.stdout.split())


def test_the_root_holds_only_the_agreed_folders():
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()]
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not any(fnmatch(path.name, line) for line in ignored)
    }
    assert folders == FOLDERS


def _expect_none(violations: Iterable[object]) -> None:
    lines = [str(violation) for violation in violations]
    assert not lines, "\n".join(lines)


# A made-up house with one fault of each kind: the tests above can fail.


@pytest.fixture
def house(tmp_path) -> dict[str, Path]:
    """coal → wine → attic → coal: by the import of a function, by name, and relatively."""
    sources = {
        "medad_core/__init__.py": "",
        "medad_core/kitchen.py": "import torch\nfrom medad_core.cellar import coal, shelves\n",
        "medad_core/cellar/__init__.py": "shelves = 3\n",
        "medad_core/cellar/coal.py": "def fetch():\n    from .wine import bottle\n",
        "medad_core/cellar/wine.py": "import importlib\n\nattic = importlib.import_module('medad_core.attic')\n",
        "medad_core/attic/__init__.py": "from ..cellar.coal import fetch\n",
    }
    for name, source in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return find_modules(tmp_path, ["medad_core"])


def test_imports_are_read_in_functions_by_name_and_relatively(house):
    assert sorted(map(str, read_imports(house))) == [
        "medad_core.attic:1 imports medad_core.cellar.coal",
        "medad_core.cellar.coal:2 imports medad_core.cellar.wine",
        "medad_core.cellar.wine:1 imports importlib",
        "medad_core.cellar.wine:3 imports medad_core.attic",
        "medad_core.kitchen:1 imports torch",
        "medad_core.kitchen:2 imports medad_core.cellar",
        "medad_core.kitchen:2 imports medad_core.cellar.coal",
    ]


def test_a_computed_import_is_seen(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text("from importlib import import_module\nimport_module('medad_core.' + input())\n")
    assert COMPUTED in {item.imported for item in read_imports({"plugin": path})}


def test_a_cycle_between_modules_is_named(house):
    (cycle,) = find_cycles(project_graph(read_imports(house), house))
    *steps, again = cycle.split(" → ")
    assert again == steps[0]
    assert sorted(steps) == ["medad_core.attic", "medad_core.cellar.coal", "medad_core.cellar.wine"]


def test_a_cycle_between_rooms_is_named(house):
    (cycle,) = find_cycles(room_graph(project_graph(read_imports(house), house)))
    assert set(cycle.split(" → ")) == {"medad_core.attic", "medad_core.cellar"}


def test_every_cycle_is_named():
    assert find_cycles({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"c"}, "e": {"a"}}) == ["a → b → a", "c → d → c"]


def test_an_upward_import_is_named_with_its_line(house):
    floors = ({"medad_core.cellar"}, {"medad_core.attic"}, {"medad_core.kitchen"})
    upward = find_upward_imports(read_imports(house), floors)
    assert upward == ["medad_core.cellar.wine:3 imports medad_core.attic"]


def test_an_import_of_a_neighbour_is_named(house):
    floors = ({"medad_core.cellar", "medad_core.kitchen"}, {"medad_core.attic"})
    assert "medad_core.kitchen:2 imports medad_core.cellar" in find_upward_imports(read_imports(house), floors)


def test_rooms_are_packages_below_medad_core_and_the_command_line():
    modules = ("medad_core.store.files", "medad_core.errors", "medad_core", "flows.screen", "flows.cli.app", "tasks")
    rooms = ["medad_core.store", "medad_core.errors", "medad_core", "flows", "flows.cli", "tasks"]
    assert [room_of(module) for module in modules] == rooms


@pytest.mark.parametrize(
    "line",
    [
        "open(p)",
        "open(p, 'w')",
        "p.open()",
        "p.open(mode='w')",
        "p.read_text()",
        "p.write_text(t)",
        "run(c, text=True)",
    ],
)
def test_a_text_file_without_an_encoding_is_seen(tmp_path, line):
    for text, seen in ((line, 1), (line.replace(")", ", encoding='utf-8')").replace("(, ", "("), 0)):
        (tmp_path / "x.py").write_text(text)
        assert len(find_calls({"x": tmp_path / "x.py"}, reads_as_the_locale_says)) == seen, text


@pytest.mark.parametrize("line", ["open(p, 'rb')", "p.open('wb')", "Run.open(data, out)", "write_text(uri, text)"])
def test_other_calls_need_no_encoding(tmp_path, line):
    (tmp_path / "x.py").write_text(line)
    assert not find_calls({"x": tmp_path / "x.py"}, reads_as_the_locale_says)


@pytest.mark.parametrize("line", ["Popen([sys.executable, '-m', 'x'])", "multiprocessing.get_context('spawn')"])
def test_a_python_that_is_started_on_any_path_is_seen(tmp_path, line):
    (tmp_path / "x.py").write_text(line)
    assert find_calls({"x": tmp_path / "x.py"}, starts_python_itself) == ["x:1"]
