"""Betty on demand: the error names the command, and the right version is returned."""

from __future__ import annotations

import importlib.metadata
import sys
from types import ModuleType

import pytest

from metalearn import MissingBettyError
from metalearn.multilevel.bridge import INSTALL_COMMAND, REQUIRED_VERSION, import_betty


def pretend_version(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Make the metadata say that this version of Betty is installed, or none."""

    def lookup(name: str) -> str:
        assert name == "betty-ml"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", lookup)


def test_the_install_command_pins_the_version_and_skips_its_python_bound() -> None:
    """A plain install picks 0.1.1, or nothing at all, on current Pythons."""
    assert INSTALL_COMMAND.startswith("pip install ")
    assert {"--no-deps", "--ignore-requires-python", f"betty-ml=={REQUIRED_VERSION}"} <= set(
        INSTALL_COMMAND.split()
    )


def test_absent_betty_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """No distribution at all."""
    pretend_version(monkeypatch, None)
    with pytest.raises(MissingBettyError, match=r"expected betty-ml 0\.2\.1, found none") as error:
        import_betty()
    assert INSTALL_COMMAND in str(error.value)
    assert isinstance(error.value, ImportError)


def test_metadata_without_the_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation: the metadata is there, the import fails."""
    pretend_version(monkeypatch, REQUIRED_VERSION)
    monkeypatch.setitem(sys.modules, "betty", None)
    with pytest.raises(MissingBettyError) as error:
        import_betty()
    assert INSTALL_COMMAND in str(error.value)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1.1 is what a plain pip install finds."""
    pretend_version(monkeypatch, "0.1.1")
    monkeypatch.setitem(sys.modules, "betty", ModuleType("betty"))
    with pytest.raises(
        MissingBettyError, match=r"expected betty-ml 0\.2\.1, found 0\.1\.1"
    ) as error:
        import_betty()
    assert INSTALL_COMMAND in str(error.value)


def test_the_right_version_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Betty: a module of that name stands in."""
    stand_in = ModuleType("betty")
    pretend_version(monkeypatch, REQUIRED_VERSION)
    monkeypatch.setitem(sys.modules, "betty", stand_in)
    assert import_betty() is stand_in


def test_installed_betty_is_imported() -> None:
    """With Betty: the real package, in the version that works."""
    try:
        installed = importlib.metadata.version("betty-ml")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"Betty is not installed; run: {INSTALL_COMMAND}")
    assert installed == REQUIRED_VERSION
    betty = import_betty()
    assert betty.__name__ == "betty"
    assert importlib.import_module("betty.engine").Engine is not None
