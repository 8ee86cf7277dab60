"""The architecture: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT


def imported_names(file: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, by statement or by import_module("...")."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            name = called.id if isinstance(called, ast.Name) else called
            first = node.args[0]
            if name in {"import_module", "__import__"} and isinstance(first, ast.Constant):
                yield str(first.value)


def files_importing(package: str, *, within: str) -> set[str]:
    """Files of one package that import another, as paths from the root."""
    return {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / within).rglob("*.py")
        if any(name.split(".")[0] == package for name in imported_names(file))
    }


def test_the_scan_sees_every_kind_of_import(tmp_path: Path) -> None:
    """Otherwise the tests below could not fail."""
    file = tmp_path / "sample.py"
    file.write_text(
        "import a.b\nfrom c.d import e\n"
        "def f():\n    import g\n    importlib.import_module('h.i')\n    import_module('j')\n"
        "    __import__('k')\n"
    )
    assert set(imported_names(file)) == {"a.b", "c.d", "g", "h.i", "j", "k"}


ROOMS: dict[str, tuple[str, ...]] = {
    "metalearn": (
        "errors version norms pytrees randomness attention chunks",
        "checks result second_derivatives",
        "recomputation blockwise",
        "steps",
        "inner",
        "policies",
        "adaptation encoding contrast gathering",
        "objective uniformity isotropy vicreg",
        "multilevel",
    ),
    "metamae": (
        "version errors arguments files listing locks stopping randomness inputs progress",
        "config",
        "data",
        "model",
        "methods",
        "training",
        "evaluation",
        "report",
        "artefact",
        "estimator",
        "experiments",
        "cli",
        "__main__",
    ),
    "metamae.data": (
        "dataset formats fingerprint looking description",
        "preparing pocket",
        "sources",
        "own",
    ),
}
"""From the ground up: a file imports from its own room and those above it in this list only."""


def modules_below(package: str) -> dict[str, Path]:
    """Module name to file."""
    modules = {}
    for file in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def import_graph(package: str) -> dict[str, set[str]]:
    """Module to the modules of the package that it imports, at any depth."""
    modules = modules_below(package)
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        targets = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports are absolute here"
                targets |= {f"{node.module}.{alias.name}" for alias in node.names}
        targets |= set(imported_names(file))
        graph[name] = {t for t in targets if t in modules and t != name and t != package}
        # `from package.module import name` names the module; the package itself comes along.
        graph[name] -= {other for other in graph[name] if name.startswith(other + ".")}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every circle of imports, by a depth-first walk."""
    state: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        state[name] = 1
        path.append(name)
        for other in sorted(graph[name]):
            if state.get(other) == 1:
                found.append([*path[path.index(other) :], other])
            elif other not in state:
                visit(other)
        path.pop()
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name)
    return found


def test_the_walk_finds_circles() -> None:
    """Otherwise the test below could not fail."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c", "b"]]
    assert "metamae.data" in import_graph("metamae")["metamae.data.sources.pamap2"] | {
        "metamae.data"
    }
    assert "metamae.training.run" in import_graph("metamae")["metamae.training.pretraining"]


@pytest.mark.parametrize("package", ["metalearn", "metamae"])
def test_no_import_goes_in_a_circle(package: str) -> None:
    """Imports inside functions and for type checkers counted."""
    assert circles(import_graph(package)) == []


@pytest.mark.parametrize("package", ROOMS)
def test_an_arrow_only_points_down(package: str) -> None:
    """Each file lies in a room, and imports from no room above its own."""
    level = {room: n for n, rooms in enumerate(ROOMS[package]) for room in rooms.split()}
    depth = package.count(".") + 1
    wrong = []
    for name, targets in import_graph(package).items():
        if name == package:
            continue
        room = name.split(".")[depth]
        assert room in level, f"{name} lies in no room of tests/test_layering.py"
        for target in targets:
            other = target.split(".")[depth]
            if level[other] > level[room]:
                wrong.append(f"{name} -> {target}")
    assert wrong == []


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_there(package: str) -> None:
    """A list that names what is gone would hold nothing."""
    depth = package.count(".") + 1
    rooms = {name.split(".")[depth] for name in modules_below(package) if name != package}
    assert rooms == {room for line in ROOMS[package] for room in line.split()}


def test_metalearn_knows_nothing_of_metamae() -> None:
    """The general package never depends on the application."""
    assert files_importing("metamae", within="metalearn") == set()
    assert files_importing("torch", within="metalearn"), "the scan found the files"


def test_betty_is_imported_in_one_file_only() -> None:
    """It is optional and old; its quirks stay behind one door."""
    assert files_importing("betty", within="metalearn") == {"metalearn/multilevel/bridge.py"}
    assert files_importing("betty", within="metamae") == set()


def test_both_packages_import_without_betty() -> None:
    """In a fresh interpreter where every import of betty fails."""
    packages = [p for p in ("metalearn", "metamae") if (ROOT / p / "__init__.py").exists()]
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "sys.modules['betty'] = None\n"
        f"import metalearn.multilevel, {', '.join(packages)}\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] == 'betty'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["betty"], "only the blocked entry itself"


def test_commands_start_without_what_only_some_need() -> None:
    """`metamae --version` waits for torch and for nothing else that takes long."""
    heavy = ("sklearn", "scipy.stats", "matplotlib", "pandas", "onnx", "onnxruntime", "tensorboard")
    program = f"import metamae.cli.main, sys; print(*(n for n in {heavy!r} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
