"""The architecture: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
