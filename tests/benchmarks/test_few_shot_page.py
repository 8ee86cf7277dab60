"""Few-shot learning: the page is made from its rows, and a training of one step of every method."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch

from tests import ROOT
from tests.benchmarks.loading import load_program

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program("few_shot")


def test_the_page_is_made_from_the_rows(program: ModuleType) -> None:
    rows = json.loads((RESULTS / "few_shot.json").read_text())["rows"]
    assert (RESULTS / "few_shot.md").read_text() == program.make_page(rows)


def test_an_error_that_is_not_finite_is_shown(program: ModuleType) -> None:
    assert program.cell([1.0, None], 1) == "diverges in 1"
    assert program.cell([1.0, 3.0], 1) == "2.00 ± 12.71"  # 12.706 * sqrt(2) / sqrt(2)


def test_digits_of_the_test_are_no_digits_of_meta_training(program: ModuleType) -> None:
    problem = program.Digits()
    random = torch.Generator().manual_seed(0)
    x, y, query_x, query_y = problem.draw(3, random, test=True)
    assert x.shape == (3, 4, 64)
    assert query_x.shape == (3, 20, 64)
    assert y[0].tolist() == [0, 1, 2, 3]
    assert query_y[0].bincount().tolist() == [5] * 4
    known = {tuple(picture.tolist()) for picture in problem.pictures[False].flatten(0, 1)}
    assert not any(tuple(picture.tolist()) in known for picture in x.flatten(0, 1))


@pytest.mark.parametrize("method", ["maml", "anil", "meta_sgd", "reptile", "joint"])
def test_two_steps_of_every_method(
    program: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "TASKS", 3)
    problem = program.Sines(5)
    found = program.train(problem, method, 0, 2)
    again = program.train(problem, method, 0, 2)
    assert found["scores"] == again["scores"]
    assert set(found["scores"]) == {"0", "1", "5", "10"}
    assert program.train(problem, method, 1, 2)["scores"] != found["scores"]
