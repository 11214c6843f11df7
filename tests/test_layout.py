"""The house: where modules live, who may import whom, and that the standard library's ``platform`` wins everywhere."""

from __future__ import annotations

import ast
import importlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from efafnet.platform import console

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("models", "platform", "tune_spaces", "pipelines")

RANKS = {
    "models": 0,
    "platform": 1,
    "tune_spaces": 2,
    "pipelines.formats": 2,
    "pipelines.drawing": 2,
    "pipelines.synth": 3,
    "pipelines.crops": 3,
    "pipelines.evaluation": 4,
    "pipelines.prediction": 5,
    "pipelines.training": 5,
    "pipelines.serving": 6,
    "pipelines.runs": 6,
    "pipelines.search": 7,
    "pipelines.study": 7,
    "pipelines.report": 8,
    "pipelines.all_reduce": 8,
    "pipelines.fitness": 8,
    "pipelines.commands": 8,
    "pipelines.user_errors": 8,
    "pipelines.cli": 10,
    "pipelines.__main__": 11,
}
"""A part may import parts of lower rank only. Other modules directly in pipelines/ stand above the stages."""
TOP = 9

MODELS_MAY_IMPORT = {"torch", "torchvision", "numpy", "pydantic", "efafnet", "safetensors", "triton"}
RAY_PLACES = {
    "platform": {"ray", "ray.data"},  # the connection, its capacity, tasks, bulk work, and all that Ray keeps private
    "pipelines.training": {"ray", "ray.train"},  # the workers of a run
    "pipelines.search": {"ray.tune"},  # the trials of a search
    "pipelines.serving": {"ray", "ray.serve"},  # the replicas behind HTTP, and their figures
}
"""The four parts that may import Ray, and what they use of it: each of Ray's libraries has one.

Whoever else computes on a cluster (prepare, evaluate, predict, sets of runs, doctor)
asks `platform/cluster.py`, `platform/ray_data.py` and `platform/task_pool.py`.
"""


def modules() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def syntax(path: Path) -> ast.Module:
    """The syntax tree of a module, for all tests that look at it."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of that tree: to walk it takes as long as to make it."""
    return tuple(ast.walk(syntax(path)))


@cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """Return (dotted name, whether it is imported when the module is) of everything a module imports."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    inside = {id(node) for block in nodes(path) if is_deferred(block) for node in ast.walk(block)}
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: a relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in inside


def is_deferred(node: ast.AST) -> bool:
    """Tell whether what is below a node is not executed with the module: functions and ``if TYPE_CHECKING``."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def part(dotted: str) -> tuple[str, int]:
    """Return the part of the house a dotted name (without ``efafnet.``) belongs to, and its rank."""
    names = dotted.split(".")
    name = names[0] if names[0] != "pipelines" else ".".join(names[:2])
    return name, RANKS.get(name, TOP)


def python(program: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


# ---- where things live


def test_platform_is_no_regular_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), (
        "platform/__init__.py would shadow the standard library's platform as soon as the root is on sys.path"
    )
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_dir() and path.name != "__pycache__" and any(path.glob("*.py")) and folder != "platform":
                assert (path / "__init__.py").exists(), f"{relative(path)} needs an __init__.py to be in the wheel"


def test_efafnet_holds_nothing_but_its_init_and_the_links() -> None:
    found = {path.name for path in (ROOT / "efafnet").iterdir() if path.name != "__pycache__"}
    assert found == {"__init__.py", *FOLDERS}, "in a checkout, anything else in efafnet/ could not be imported"
    for folder in FOLDERS:
        assert (ROOT / "efafnet" / folder).is_symlink()
        assert (ROOT / "efafnet" / folder).resolve() == ROOT / folder


def test_modules_and_functions_are_short() -> None:
    long = []
    for path in (*modules(), *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")):
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length >= 400:
            long.append(f"{relative(path)}: {length} lines")
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines >= 60:
                    long.append(f"{relative(path)}:{node.lineno} {node.name}: {lines} lines")
    assert not long, long


def test_the_project_names_no_host_of_a_package_index() -> None:
    files = [ROOT / name for name in ("pyproject.toml", "constraints.txt", "Makefile", "cluster.yaml", "README.md")]
    for path in filter(Path.exists, files):
        assert not re.search(r"index-url|simple/|pypi\.|--find-links", path.read_text()), path.name


# ---- who may import whom


def test_imports_go_one_way() -> None:
    assert [wrong for path in modules() for wrong in wrong_imports(path)] == []


def wrong_imports(path: Path) -> Iterator[str]:
    """Say what a module imports that it may not."""
    own, rank = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name, _ in imports(path):
        if name.split(".")[0] in {*FOLDERS, "tests"} - {"platform"}:
            yield f"{relative(path)} imports {name}; write efafnet.{name}"
        if not name.startswith("efafnet."):
            continue
        other, other_rank = part(name.removeprefix("efafnet."))
        if other != own and other_rank >= rank:
            yield f"{relative(path)} ({own}) may not import {name}"


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The groups of two or more nodes of a directed graph that all reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            fresh = graph[ahead.pop()] - seen
            seen |= fresh
            ahead += fresh
        return seen

    reach = {node: reached(node) for node in graph}
    return sorted({tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]})


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e", "a"}}
    assert circles(graph) == [("b", "c"), ("e", "f")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_modules_import_each_other(folder: str) -> None:
    """Neither when they are loaded nor later: imports in functions and for annotations count as any other.

    In models/ those in functions are left out: a kernel is compared with the form that calls it when first used.
    """
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules()}
    graph = {
        name: {other for other in known if any(f"{target}.".startswith(f"efafnet.{other}.") for target in targets)}
        for name, path in known.items()
        if name.startswith(folder)
        for targets in [[target for target, at_once in imports(path) if at_once or folder != "models"]]
    }
    assert circles({name: others & graph.keys() for name, others in graph.items()}) == []


def test_search_and_study_meet_in_the_room_of_runs_only() -> None:
    """What both need is in pipelines/runs, and who needs both (promotion, the report) stands above them."""
    assert RANKS["pipelines.runs"] < RANKS["pipelines.search"] == RANKS["pipelines.study"]
    for own, other in (("search", "study"), ("study", "search")):
        for path in (ROOT / "pipelines" / own).glob("*.py"):
            found = [name for name, _ in imports(path) if name.startswith(f"efafnet.pipelines.{other}")]
            assert not found, f"{relative(path)} imports {found}"


def test_models_import_torch_and_little_else() -> None:
    for path in (ROOT / "models").glob("*.py"):
        for name, _ in imports(path):
            top = name.partition(".")[0]
            assert top in MODELS_MAY_IMPORT or top in sys.stdlib_module_names, f"{relative(path)} imports {name}"


def test_platform_knows_nothing_of_pose() -> None:
    for path in (ROOT / "platform").rglob("*.py"):
        for name, _ in imports(path):
            if name.startswith("efafnet.models"):
                assert name.startswith("efafnet.models.settings"), f"{relative(path)} imports {name}"


def test_four_parts_import_ray_and_each_of_its_libraries_has_one() -> None:
    libraries = set().union(*RAY_PLACES.values())
    used: dict[str, set[str]] = {}
    for path in modules():
        name = part(".".join(path.relative_to(ROOT).with_suffix("").parts))[0]
        for imported, _ in imports(path):
            if imported.partition(".")[0] == "ray" and relative(path) != "platform/ray_private.py":
                library = ".".join(imported.split(".")[:2])
                used.setdefault(name, set()).add(library if library in libraries else "ray")
    assert used == RAY_PLACES


RECORDS = {"SourceRecord", "Manifest"}
"""Models of what is written down for others, whose fields nothing here need read."""


def settings_fields() -> Iterator[tuple[str, str]]:
    """Yield (class, field) of every settings model, by the syntax trees alone."""
    classes = [node for path in modules() for node in nodes(path) if isinstance(node, ast.ClassDef)]
    bases = {node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases} for node in classes}

    def is_settings(name: str) -> bool:
        return name == "Settings" or any(is_settings(base) for base in bases.get(name, ()))

    for node in classes:
        if is_settings(node.name) and node.name not in RECORDS:
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield node.name, line.target.id


def test_every_setting_is_read_somewhere() -> None:
    """A setting that nothing reads would be a silent no-op; one is read where some object's attribute has its name."""
    read = {
        node.attr
        for path in modules()
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    fields = list(settings_fields())
    assert ("OptimizerConfig", "lr") in fields
    assert [field for field in fields if field[1] not in read and field[1] != "__test__"] == []


def test_files_are_read_and_written_as_utf_8_whatever_the_locale() -> None:
    bare = [
        f"{relative(path)}:{node.lineno}"
        for path in modules()
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("read_text", "write_text")
        and ast.unparse(node.func.value) != "storage"  # its own function of that name
        and not any(keyword.arg == "encoding" for keyword in node.keywords)
    ]
    assert not bare, "Path.read_text takes the locale's encoding unless it is told one: give encoding='utf-8'"


def test_platform_imports_ray_and_mlflow_only_when_asked() -> None:
    for path in (ROOT / "platform").rglob("*.py"):
        heavy = {name for name, at_once in imports(path) if at_once} & {"ray", "mlflow"}
        assert not heavy, f"{relative(path)} imports {heavy}"


def test_settings_are_explained_without_anything_heavy() -> None:
    """``efafnet COMMAND --help`` answers in a fraction of a second: importing torch alone takes longer."""
    program = (
        "import importlib, sys\n"
        "from efafnet.pipelines.commands import COMMANDS\n"
        "settings = [(command.name, command.config_module or command.module) for command in COMMANDS]\n"
        "for name, module in (*settings, ('train, which says its first line,', 'efafnet.pipelines.training.start')):\n"
        "    importlib.import_module(module)\n"
        "    loaded = {'torch', 'ray', 'mlflow', 'optuna', 'pandas', 'plotly', 'matplotlib'} & set(sys.modules)\n"
        "    assert not loaded, f'the settings of {name} import {loaded}'\n"
    )
    done = python(program)
    assert done.returncode == 0, done.stderr


# ---- the standard library wins

LOOK = (
    "import platform, efafnet; assert platform.system(), platform; print(platform.__file__, list(efafnet.__path__)); "
    "import efafnet.platform.console as ours; print(ours.__file__)"
)


def check_seen(output: str) -> None:
    standard, ours = output.splitlines()
    assert standard.startswith(sys.base_prefix), f"the standard library's platform must win, got {standard}"
    assert standard.endswith(f"[{str(ROOT)!r}]")
    assert ours == str(ROOT / "platform" / "console.py")


def test_python_in_the_root_sees_both_platforms() -> None:
    done = python(LOOK)
    assert done.returncode == 0, done.stderr
    check_seen(done.stdout)


def test_python_m_in_the_root_sees_both_platforms() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "efafnet.pipelines", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: efafnet COMMAND" in done.stdout


def test_pytest_sees_both_platforms() -> None:
    assert platform.system()
    assert Path(platform.__file__).is_relative_to(sys.base_prefix)
    assert console.__file__ == str(ROOT / "platform" / "console.py")


def test_the_root_first_on_the_path_does_no_harm(tmp_path: Path) -> None:
    done = python(f"import sys; sys.path.insert(0, {str(ROOT)!r}); {LOOK}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_seen(done.stdout)


def test_what_asks_for_platform_finds_the_standard_one_with_the_root_before_it() -> None:
    """The root comes first here, too: pytest has put it there before anything of this was imported."""
    assert sys.path.index(str(ROOT)) < sys.path.index(str(Path(os.__file__).parent))
    for name in ("torch", "ray._private.utils", "mlflow"):
        importlib.import_module(name)
    for name in ("torch", "ray._private.utils"):
        assert sys.modules[name].__dict__["platform"] is platform
