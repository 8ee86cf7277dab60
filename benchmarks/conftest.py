"""Options of the benchmarks, and the tables they end with.

    pytest benchmarks/ --benchmark                 # on CPU, and on CUDA where there is one
    pytest benchmarks/ --benchmark --device cpu -k overhead

Without ``--benchmark`` everything is collected and skipped.
"""

from __future__ import annotations

import argparse

import pytest
import torch

from metamae.training.allocator import keep_freed_memory

keep_freed_memory()  # as the commands do

TABLES: list[str] = []


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks (minutes)")
    parser.addoption("--device", default="auto", help="auto (CPU, and CUDA if any), cpu or cuda")
    parser.addoption("--rounds", type=int, help="measured rounds of the overhead tables")
    parser.addoption(
        "--steps",
        type=positive,
        help="MetaMAE's steps in the wall-clock benchmark; results then go to a temporary folder",
    )
    parser.addoption(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="what ratios on a CPU are taken from; cpu where the machine is busy",
    )


def pytest_configure(config: pytest.Config) -> None:
    # The tests take a warning for an error; here it would fail what a user's run only tells.
    config.addinivalue_line("filterwarnings", "default")


def pytest_exception_interact(
    node: pytest.Item | pytest.Collector, report: pytest.TestReport | pytest.CollectReport
) -> None:
    """A failure is told when it happens, for the rest may take an hour."""
    terminal = node.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        told = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        terminal.write_line(f"{node.nodeid}: {' '.join(told)[:2000]}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--benchmark"):
        return
    skip = pytest.mark.skip(reason="benchmarks take minutes: add --benchmark to run them")
    for item in items:
        item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--device")
    names = ["cpu", "cuda"] if chosen == "auto" else [chosen]
    metafunc.parametrize("device", names, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)


@pytest.fixture
def tables() -> list[str]:
    """Text added here is printed after the run."""
    return TABLES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for table in TABLES:
        terminalreporter.write_line("")
        terminalreporter.write(table)
