"""Docstrings are tested documentation: every example runs, every public class has one."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

import metalearn
from metalearn.multilevel.bridge import INSTALL_COMMAND
from tests import ROOT


def modules_of(package: str) -> list[str]:
    """Names of all modules below a package, from its files: nothing is imported to collect."""
    names = []
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":  # importing it would run the program
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def is_class_with_example(name: str) -> bool:
    """Public classes, but for errors and protocols, which are not constructed by a reader."""
    value = getattr(metalearn, name)
    return (
        inspect.isclass(value)
        and not issubclass(value, Exception)
        and not getattr(value, "_is_protocol", False)
    )


@pytest.mark.parametrize("name", [*modules_of("metalearn"), *modules_of("metamae")])
def test_examples_of_a_module_run(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In an empty folder, so that an example neither needs the repository nor leaves a file."""
    if name.startswith("metalearn.multilevel") and importlib.util.find_spec("betty") is None:
        pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}")
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples failed, see stdout"


def test_the_walk_finds_the_examples() -> None:
    """A walk that finds nothing would pass every test above."""
    found = modules_of("metalearn")
    assert {"metalearn", "metalearn.adaptation", "metalearn.contrast"} <= set(found)
    module = importlib.import_module("metalearn.adaptation")
    assert any(test.examples for test in doctest.DocTestFinder().find(module))


@pytest.mark.parametrize("name", metalearn.__all__)
def test_public_names_are_documented(name: str) -> None:
    """A docstring of its own, not one inherited from nn.Module."""
    value = getattr(metalearn, name)
    assert (value.__doc__ or "").strip(), f"{name} has no docstring"
    # dataclasses write their signature where there is no docstring
    assert not value.__doc__.startswith(f"{name}("), f"{name} has no docstring"


@pytest.mark.parametrize("name", [n for n in metalearn.__all__ if is_class_with_example(n)])
def test_public_classes_show_an_example(name: str) -> None:
    """A section `Example:` with at least one statement."""
    text = inspect.getdoc(getattr(metalearn, name)) or ""
    section = text.partition("Example:")[2]
    assert ">>> " in section, f"{name} has no Example: section with a statement"


def test_all_is_sorted_and_complete() -> None:
    """Every public class or function that the package re-exports is listed, and only once."""
    exported = {
        name
        for name, value in vars(metalearn).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("metalearn")
    }
    assert set(metalearn.__all__) == exported | {"__version__"}
    assert list(metalearn.__all__) == sorted(set(metalearn.__all__))
