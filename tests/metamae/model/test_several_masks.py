"""Several masks of an example: the mean over what each alone would be, targets computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metalearn import uniformity
from metamae import load_dataset, make_config
from metamae.config import Config
from metamae.errors import ConfigError
from metamae.methods import MAE, build_method
from metamae.model.mask_rules import HardRule
from metamae.model.mask_rules.hard import RankedSplit
from metamae.model.split_set import SplitSet, splits_of
from metamae.training import pretrain
from metamae.training.compiling import CompiledLoss
from metamae.training.run import Run
from tests.metamae.model.test_mask_rules import TWO, batch_of
from tests.tiny import SIZES


def config_of(method: str, *overrides: str) -> Config:
    own = ("target.masks=3", "training.batch_size=6", *overrides)
    return make_config("basic_motions", method=method, overrides=[*SIZES, *own])


def built(method: str = "mae", *overrides: str) -> MAE:
    made = build_method(config_of(method, *overrides), TWO)
    assert isinstance(made, MAE)
    return made


def drawn(method: MAE, seed: int = 0) -> SplitSet:
    split = method.draw_at(6, torch.Generator().manual_seed(seed), 1.0)
    split = method.complete(batch_of(), split)
    assert isinstance(split, SplitSet)
    return split


def test_masks_are_drawn_one_after_the_other() -> None:
    """The first is what a single mask would be."""
    split = drawn(built())
    random = torch.Generator().manual_seed(0)
    alone = [built("mae", "target.masks=1").draw_at(6, random, 1.0) for _ in range(3)]
    for one, expected in zip(split.splits, alone, strict=True):
        assert torch.equal(one.query_idx, expected.query_idx)
        assert torch.equal(one.nearby, expected.nearby)
    assert not torch.equal(split.splits[0].query_idx, split.splits[1].query_idx)
    assert split.splits[0].support_idx is split.support_idx
    part = split[2:5]
    for one, whole in zip(part.splits, split.splits, strict=True):
        assert torch.equal(one.query_idx, whole.query_idx[2:5])
    most = max(one.slots for one in split.splits)
    assert split.in_slots((7, 7)) is not None
    assert (split.in_slots((most[0] - 1, 7)) is None) == (most[0] > 0)


@pytest.mark.parametrize("name", ["mae", "umae"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("target.kind=teacher", "decoder.query_fraction=0.5"),
        ("masking.ratio_range=[0.3,0.7]",),
        ("decoder.attention=cross", "decoder.mix_blocks=true"),
    ],
)
def test_the_loss_is_the_mean_over_masks(name: str, overrides: tuple[str, ...]) -> None:
    method, batch = built(name, *overrides), batch_of()
    network, split = method.network, drawn(method)
    result = method(batch, split)
    result.loss.backward()
    found = {key: p.grad for key, p in method.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    method.zero_grad()
    queries, aparts = [], []
    for one in split.splits:
        latent = network.encode(network.visible_tokens(batch, one))
        queries.append(network.query_loss(latent, network.targets(batch), one).mean())
        aparts.append(uniformity(network.output_of(latent)[:, 1:].mean(1)))
    query, apart = sum(queries) / 3, sum(aparts) / 3
    torch.testing.assert_close(result.terms["query"], query)
    expected = query
    if name == "umae":
        torch.testing.assert_close(result.terms["uniformity"], apart)
        expected = query + 0.01 * apart
    torch.testing.assert_close(result.loss, expected)
    expected.backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[key], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_teacher_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = built("mae", "target.kind=teacher"), list[int]()
    teacher: Any = method.network.teacher
    split = drawn(method)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    method(batch_of(), split)
    assert len(calls) == 1


def test_a_mask_rule_makes_every_mask_and_logs_means() -> None:
    method, batch = built("mae", "masking.rule=hard"), batch_of()
    split, rule = drawn(method), method.network.rule
    assert isinstance(rule, HardRule)
    numbers = []
    for one in split.splits:
        assert isinstance(one, RankedSplit)
        latent = method.latents(batch, one)[0]
        losses = method.network.query_token_losses(latent, method.network.targets(batch), one)
        numbers.append(rule.agreement(losses, one))
    assert len(set(numbers)) > 1
    assert method.monitor(batch, split) == {"ranked": pytest.approx(sum(numbers) / 3)}
    method(batch, split).loss.backward()
    assert rule.head[0].weight.grad.abs().max() > 0


def test_drawn_reconstructions_have_one_mask() -> None:
    split = built().draw(6, torch.Generator().manual_seed(0))
    assert splits_of(split) == (split,)


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return state


def test_a_run_resumes_to_the_same_bits_and_in_pieces(tmp_path: Path) -> None:
    data = load_dataset("basic_motions")
    own = ("training.steps=2", "target.kind=teacher", "masking.rule=adaptive")
    config = config_of("umae", *own)
    pretrain(config, data, tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    run = Run(config, data, tmp_path / "resumed", torch.device("cpu"))
    next(run.train())
    run.save()
    pretrain(config, data, tmp_path / "resumed", resume=True)
    pretrain(config_of("umae", *own, "training.micro_batch=4"), data, tmp_path / "pieces")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "resumed")[name]), name
        found = weights(tmp_path / "pieces")[name]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_it_can_be_compiled() -> None:
    method = built("mae")
    compiled = CompiledLoss(method, 6, torch.device("cpu"), backend="aot_eager")
    compiled.prepare(batch_of(), drawn(method))
    assert compiled.failure == ""
    split = drawn(method, seed=1)
    torch.testing.assert_close(compiled(batch_of(), split).loss, method(batch_of(), split).loss)


def test_what_takes_one_mask_is_refused_by_name() -> None:
    for method in ("metamae", "mae_contrast", "emix"):
        with pytest.raises(ConfigError) as fault:
            config_of(method)
        text = f"target.masks=1, or a method among mae, umae, random, got '3 with {method}'"
        assert text in str(fault.value)
    with pytest.raises(ConfigError, match=r"target\.masks >= 1"):
        config_of("mae", "target.masks=0")
    with pytest.raises(ConfigError, match="one mask of an example or more, got 0"):
        MAE(built().network, masks=0)
