"""A sample of every kind of attack by default, all of them with --all; counts at the end."""

from __future__ import annotations

import pytest

from tests.attacks.harness import COUNTS, Attack


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="all attacks, not a sample of each kind")


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether all attacks are made."""
    return bool(request.config.getoption("--all", default=False))


@pytest.fixture
def attack() -> type[Attack]:
    """Makes attacks of one kind and counts their outcomes."""
    return Attack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not COUNTS:
        return
    terminalreporter.section("attacks")
    terminalreporter.line(f"{'kind':44}{'tried':>8}{'refused':>9}{'unaffected':>12}")
    for kind, count in sorted(COUNTS.items()):
        numbers = f"{count.total():8}{count['refused']:9}{count['unaffected']:12}"
        terminalreporter.line(f"{kind:44}{numbers}")
