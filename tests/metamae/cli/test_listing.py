"""``metamae list``: everything that has a name is there, each in one line."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from metamae.cli.listing import KINDS
from metamae.config import METHODS
from metamae.config import names as config_names
from metamae.evaluation.protocols import PROTOCOLS
from metamae.listing import summary
from metamae.methods import building, register_method
from metamae.methods.building import CLASSES
from tests import ROOT
from tests.metamae.cli.running import Command, in_process, refused


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return in_process(capsys)


def names(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_each_has_a_line_with_the_first_of_its_docstring(kind: str, command: Command) -> None:
    done = command("list", kind)
    assert (done.code, done.err) == (0, "")
    things = KINDS[kind]()
    assert names(done.out) == list(things)
    for line, thing in zip(done.out.splitlines(), things.values(), strict=True):
        assert line.endswith("  " + summary(thing))
        assert "without a docstring" not in line
        assert "`" not in line


def test_the_registries_hold_what_configurations_may_name(command: Command) -> None:
    assert names(command("list", "methods").out) == list(METHODS) == list(CLASSES)
    assert names(command("list", "protocols").out)[:3] == list(PROTOCOLS[:3])
    assert "unrolled" in names(command("list", "policies").out)


def test_every_method_is_built_of_its_class() -> None:
    """By the source: every name is matched once, and what is built is what is listed."""
    source = (ROOT / "metamae/methods/building.py").read_text()
    built = {
        case.pattern.value.value: {
            node.func.id
            for statement in case.body
            for node in ast.walk(statement)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        for match in ast.walk(ast.parse(source))
        if isinstance(match, ast.Match)
        for case in match.cases
        if isinstance(case.pattern, ast.MatchValue) and isinstance(case.pattern.value, ast.Constant)
    }
    for name, calls in built.items():
        assert CLASSES[str(name)].__name__ in calls | {"MetaMAE" * ("_build_metamae" in calls)}


@pytest.fixture
def forgotten() -> Iterator[None]:
    yield
    config_names._registered.remove("own")
    building._registered.pop("own")


def test_a_method_of_another_package_is_listed(command: Command, forgotten: None) -> None:
    def build(*_: object) -> None:
        """Predicts nothing at all."""

    register_method("own", build)  # type: ignore[arg-type]
    assert command("list", "methods").out.splitlines()[-1].split(maxsplit=1) == [
        "own",
        "Predicts nothing at all.",
    ]


def test_what_is_no_kind_is_refused_in_a_line(command: Command) -> None:
    refused(command("list", "modes"), "modes", "methods", "protocols")
