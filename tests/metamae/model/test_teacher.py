"""The teacher: its states and its average by hand, and what is learned of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metamae
from metamae import load_dataset, make_config
from metamae.config import Config
from metamae.errors import ConfigError
from metamae.inputs import Inputs, Tabular, Tokens
from metamae.methods import MAE, build_method
from metamae.model.teacher import TARGETS, Teacher, effective_rank
from metamae.report.run_page import _reconstructions
from metamae.training import pretrain
from metamae.training.compiling import CompiledLoss
from metamae.training.run import Run
from metamae.training.run_folder import read_history
from tests.tiny import SIZES

MIXED: Inputs = (Tokens(name="words", length=5, vocabulary=4), Tabular(name="row", columns=6))


def config_of(method: str, *overrides: str) -> Config:
    own = ("target.kind=teacher", "training.batch_size=6", "encoder.depth=3", *overrides)
    return make_config("basic_motions", method=method, overrides=[*SIZES, *own])


def batch_of() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(3)
    words = torch.randint(0, 4, (6, 5), generator=random)
    return {"words": words, "row": torch.randn(6, 6, generator=random)}


def built(method: str = "mae", *overrides: str) -> tuple[MAE, Teacher]:
    made = build_method(config_of(method, *overrides), MIXED)
    assert isinstance(made, MAE)
    teacher = made.network.teacher
    assert teacher is not None
    return made, teacher


def plain_norm(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 9])
def test_targets_are_normalised_means_of_the_last_blocks(blocks: int) -> None:
    """Of states that hooks on the blocks see while the student's own code encodes."""
    method, teacher = built("mae", f"target.blocks={blocks}")
    seen: list[np.ndarray] = []
    handles = [
        block.register_forward_hook(lambda _m, _i, out: seen.append(out.detach().double().numpy()))
        for block in method.network.encoder.blocks
    ]
    method.network.token_features(batch_of())  # the teacher's weights are still the same
    for handle in handles:
        handle.remove()
    used = seen[-min(blocks, 3) :]
    expected = plain_norm(np.mean([plain_norm(states[:, 1:]) for states in used], axis=0))
    method.train()
    targets = method.network.targets(batch_of())
    assert [*targets] == ["words", "row"]
    assert np.allclose(torch.cat([*targets.values()], 1).numpy(), expected, atol=1e-4)
    assert not any(module.training for module in teacher.modules())
    assert not any(target.requires_grad for target in targets.values())


@pytest.mark.parametrize("name", ["mae", "umae", "mae_contrast", "metamae"])
def test_masked_states_are_predicted_by_least_squares(name: str) -> None:
    method, _ = built(name)
    batch, split = batch_of(), method.draw(6, torch.Generator().manual_seed(0))
    result = method(batch, split)
    network, targets = method.network, method.network.targets(batch_of())
    losses = []
    for masks in (split, getattr(split, "second", split)):
        latent = method.latents(batch, masks)[1]
        offset, by_input = 0, []
        counts = network.masking.query_counts
        parts = masks.query_idx.split(counts, 1)
        for spec, index in zip(MIXED, parts, strict=True):
            predicted = network.predict(latent, masks)[spec.name][1]
            states = [targets[spec.name][b, index[b] - offset] for b in range(6)]
            by_input.append(((predicted - torch.stack(states)) ** 2).mean())
            offset += spec.tokens
        losses.append(torch.stack(by_input).mean())
    torch.testing.assert_close(result.terms["query"], torch.stack(losses).mean())
    result.loss.backward()
    trained = {name for name, p in method.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in method.named_parameters() if ".teacher." not in name}


def test_it_is_the_average_of_the_weights_after_every_step(tmp_path: Path) -> None:
    data = load_dataset("basic_motions")
    config = config_of("mae", "training.steps=3", "target.decay=0.75", "training.log_every=1")
    run = Run(config, data, tmp_path, torch.device("cpu"))
    assert isinstance(run.method, MAE)
    network: Any = run.method.network

    def weights(of: Any) -> dict[str, Tensor]:
        parts = {**dict(of.tokenizer.named_parameters()), **dict(of.encoder.named_parameters())}
        return {name: p.detach().double().clone() for name, p in parts.items()}

    average = weights(network)
    for _ in run.train():
        now = weights(network)
        average = {name: 0.75 * average[name] + 0.25 * x for name, x in now.items()}
        for name, x in weights(network.teacher.backbone).items():
            torch.testing.assert_close(x, average[name], rtol=1e-5, atol=1e-7)
    ranks = run.history.series["effective_rank"]
    assert len(ranks) == 3


def test_a_run_resumes_to_the_same_bits_and_in_pieces(tmp_path: Path) -> None:
    data = load_dataset("basic_motions")
    config = config_of("metamae", "training.steps=3")
    pretrain(config, data, tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    run = Run(config, data, tmp_path / "resumed", torch.device("cpu"))
    steps = run.train()
    next(steps), next(steps)
    run.save()
    pretrain(config, data, tmp_path / "resumed", resume=True)
    pretrain(
        config_of("metamae", "training.steps=3", "training.micro_batch=4"), data, tmp_path / "p"
    )
    states = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("whole", "resumed", "p")
    ]
    assert any(".teacher." in name for name in states[0])
    ranks = [
        read_history(tmp_path / name / "history.json").get("effective_rank")
        for name in ("whole", "p")
    ]
    assert ranks[0] is not None
    assert ranks[1] is None, "of pieces it would say nothing"
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
        if ".teacher." in name:
            torch.testing.assert_close(states[2][name], value, rtol=1e-3, atol=2e-5)
    encoder = metamae.load(tmp_path / "whole")  # with its teacher
    assert encoder.embed(data.need("test")).shape == (40, 16)
    with pytest.raises(ConfigError, match="expected a run that predicts values to reconstruct"):
        encoder.reconstruct(data.need("test"))


def test_the_effective_rank_is_that_of_the_singular_values() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 6)) @ np.diag([5, 3, 1, 0.5, 0.1, 0])
    sizes = np.sqrt(np.linalg.eigvalsh(np.cov(rows.T, bias=True) * 20).clip(0))
    shares = sizes[sizes > 1e-6] / sizes[sizes > 1e-6].sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(torch.from_numpy(rows)) == pytest.approx(expected, rel=1e-4)
    line = torch.linspace(0, 1, 9).outer(torch.ones(4))
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(3, 4)) == 0


def test_a_report_draws_no_reconstructions_of_it(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(method="mae", trained=SimpleNamespace(config=config_of("mae")))
    assert _reconstructions("basic_motions", [run], tmp_path / "picture.svg", None) == []


@pytest.mark.slow
def test_a_teacher_can_be_compiled() -> None:
    method, _ = built("metamae")
    batch, split = batch_of(), method.draw(6, torch.Generator().manual_seed(0))
    compiled = CompiledLoss(method, 6, torch.device("cpu"), backend="aot_eager")
    compiled.prepare(batch, split)
    assert compiled.failure == ""


def test_the_targets_are_those_that_configurations_may_name() -> None:
    for name in TARGETS:
        make_config("sensors", overrides=[f"target.kind={name}"])
    for overrides, text in (
        (["target.kind=words"], f"target.kind among {', '.join(TARGETS)}, got 'words'"),
        (["method=shed"], "or a method among mae, umae, mae_contrast, metamae, random, got"),
        (["learn.settings=[step_size]"], "target.kind=values where learn.settings names some"),
        (["encoder.depth=0"], "encoder.depth >= 1 where target.kind=teacher"),
        (["decoder.normalise_targets=true"], "decoder.normalise_targets=false where"),
        (["target.decay=1"], "target.decay in [0, 1)"),
    ):
        with pytest.raises(ConfigError) as fault:
            make_config("sensors", overrides=["target.kind=teacher", *overrides])
        assert text in str(fault.value)
