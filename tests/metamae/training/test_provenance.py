"""Provenance: the revision of the source, whether it was changed, versions and hardware."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import metamae
from metamae.training import provenance
from metamae.training.provenance import device_name, revision, versions

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Ask anew, and let others ask anew."""
    revision.cache_clear()
    yield
    revision.cache_clear()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source checkout that holds the package, not yet a repository."""
    module = tmp_path / "metamae" / "training" / "provenance.py"
    module.parent.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    # No repository that the temporary folder may lie in.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@needs_git
def test_the_revision_of_a_checkout(checkout: Path) -> None:
    """Marked when a file of it was changed."""
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    head = git(checkout, "rev-parse", "HEAD")
    assert revision() == head[:10]
    (checkout / "pyproject.toml").write_text("changed")
    assert revision() == head[:10]  # asked once a process
    revision.cache_clear()
    assert revision() == head[:10] + "-dirty"
    git(checkout, "commit", "-am", "second")
    revision.cache_clear()
    assert re.fullmatch("[0-9a-f]{10}", revision())
    assert revision() != head[:10]


@needs_git
def test_without_a_commit_or_repository_it_is_the_version(checkout: Path) -> None:
    assert revision() == metamae.__version__
    git(checkout, "init")
    revision.cache_clear()
    assert revision() == metamae.__version__


@needs_git
def test_an_installed_package_does_not_report_the_repository_around_it(checkout: Path) -> None:
    """Such as a virtual environment inside somebody's repository."""
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    (checkout / "pyproject.toml").unlink()
    assert revision() == metamae.__version__


def test_without_git_it_is_the_version(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert revision() == metamae.__version__


def test_versions_are_text() -> None:
    assert versions() == {
        "metamae": metamae.__version__,
        "revision": revision(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert all(type(value) is str for value in versions().values())


def test_the_processor_has_a_name() -> None:
    name, _, threads = device_name(torch.device("cpu")).rpartition(", ")
    assert name.strip()
    assert threads == f"{torch.get_num_threads()} threads"
    assert "\n" not in name
