"""A checkpoint of another model or optimiser is refused in one line; so is too large a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metamae import CheckpointError, ConfigError, load_dataset, make_config
from metamae.training import Checkpoint, pretrain
from metamae.training.run import Run
from tests.attacks.running import TINY

CONFIG = make_config("basic_motions", overrides=[*TINY, "training.steps=2"], method="mae")
LONGER = make_config("basic_motions", overrides=[*TINY, "training.steps=3"], method="mae")


def other_optimiser(kind: Any, **settings: Any) -> Any:
    return lambda run: kind(run.method.parameters(), **settings)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    pretrain(CONFIG, load_dataset("basic_motions"), tmp_path)
    return tmp_path


def resumed(run: Path) -> str:
    before = (run / "checkpoint.pt").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        pretrain(LONGER, load_dataset("basic_motions"), run, resume=True)
    assert "\n" not in str(caught.value)
    assert (run / "checkpoint.pt").read_bytes() == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("optimiser", "expected"),
    [
        (other_optimiser(torch.optim.SGD, lr=1e-4, momentum=0.9), "optimiser: AdamW -> SGD"),
        (other_optimiser(torch.optim.Adam, lr=1e-4), "optimiser: AdamW -> Adam"),
        (
            other_optimiser(torch.optim.AdamW, lr=1e-4, weight_decay=0.5),
            "optimiser.weight_decay: 0.0001 -> 0.5",
        ),
        (other_optimiser(torch.optim.AdamW, lr=1e-4, betas=(0.5, 0.9)), "optimiser.betas: "),
    ],
)
def test_another_optimiser(
    optimiser: Any, expected: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "make_optimiser", optimiser)
    assert expected in resumed(run)


def test_another_optimiser_of_an_earlier_revision(run: Path) -> None:
    """Whose file does not name it: the moments tell."""
    trained = Checkpoint.load(run / "checkpoint.pt")
    state: dict[str, Any] = {
        **trained.optimiser,
        "state": {
            n: dict(moments) | {"exp_avg": torch.zeros(3)}
            for n, moments in trained.optimiser["state"].items()
        },
    }
    replace(trained, provenance={}, optimiser=state).save(run / "checkpoint.pt")
    assert "exp_avg of shape (3,)" in resumed(run)


@pytest.mark.parametrize("kind", ["fewer", "more", "shape"])
def test_another_model(kind: str, run: Path) -> None:
    trained = Checkpoint.load(run / "checkpoint.pt")
    name = next(iter(trained.model))
    model = dict(trained.model)
    if kind == "fewer":
        del model[name]
    else:
        model[name if kind == "shape" else "more"] = torch.zeros(99)
    replace(trained, model=model).save(run / "checkpoint.pt")
    assert "expected" in resumed(run)


@pytest.mark.parametrize("state", [{}, {"state": {}}, {"param_groups": []}, {"levels": {}}])
def test_no_optimiser_at_all(state: dict[str, Any], run: Path) -> None:
    trained = Checkpoint.load(run / "checkpoint.pt")
    replace(trained, optimiser=state).save(run / "checkpoint.pt")
    resumed(run)


@pytest.mark.parametrize(
    "override",
    [
        *("encoder.width=1000000", "encoder.width=1000000000000", "encoder.depth=1000000000000"),
        *("encoder.mlp_ratio=1e12", "decoder.width=4000000", "contrast.hidden=100000000000000"),
    ],
)
def test_a_model_too_large_for_memory(override: str, tmp_path: Path) -> None:
    config = make_config("basic_motions", overrides=[*TINY, override])
    with pytest.raises(ConfigError, match="expected a model that fits cpu memory") as caught:
        pretrain(config, load_dataset("basic_motions"), tmp_path / "run")
    assert "lower encoder.width" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_memory_that_ends_while_it_is_built(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any) -> Any:
        raise fault

    monkeypatch.setattr("metamae.training.run.build_method", build)
    with pytest.raises(ConfigError, match="expected a model that fits cpu memory"):
        pretrain(CONFIG, load_dataset("basic_motions"), tmp_path)
