"""Mask rules: each against its defining equation, computed another way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from metamae import load_dataset, make_config
from metamae.config import Config
from metamae.errors import CheckpointError, ConfigError
from metamae.inputs import Batch, Image, Inputs, Tabular
from metamae.methods import MAE, build_method
from metamae.model.mask_rules import RULES, AdaptiveRule, AttentionRule, HardRule, OpenSplit
from metamae.model.mask_rules.hard import RankedSplit, ranking_loss
from metamae.model.mask_rules.rule import choose
from metamae.model.masking import Masking, Split
from metamae.training import pretrain
from metamae.training.compiling import CompiledLoss
from metamae.training.ranks import Ranks
from metamae.training.run import Run
from tests.tiny import SIZES

TWO: Inputs = (
    Image(name="image", channels=1, height=6, width=8, patch=(2, 2)),
    Tabular(name="row", columns=7),
)


def config_of(rule: str, *overrides: str, method: str = "mae") -> Config:
    own = (f"method={method}", f"masking.rule={rule}", "training.batch_size=6", *overrides)
    return make_config("basic_motions", overrides=[*SIZES, *own])


def method_of(rule: str, *overrides: str, method: str = "mae") -> MAE:
    built = build_method(config_of(rule, *overrides, method=method), TWO)
    assert isinstance(built, MAE)
    return built


def batch_of(size: int = 6) -> Batch:
    random = torch.Generator().manual_seed(5)
    return {
        "image": torch.randn(size, 1, 6, 8, generator=random),
        "row": torch.randn(size, 7, generator=random),
    }


def drawn(method: MAE, progress: float = 1.0, size: int = 6, seed: int = 0) -> OpenSplit:
    split = method.draw_at(size, torch.Generator().manual_seed(seed), progress)
    assert isinstance(split, OpenSplit)
    return split


def rule_of(method: MAE, kind: type[Any]) -> Any:
    assert isinstance(method.network.rule, kind)
    return method.network.rule


def test_the_rules_are_those_that_configurations_may_name() -> None:
    for name in RULES:
        config_of(name)
    with pytest.raises(ConfigError, match=f"masking.rule among {', '.join(RULES)}, got 'easy'"):
        config_of("easy")


def test_scores_are_torchs_attention_weights_summed() -> None:
    """By torch's own multi-head attention, which gives its maps."""
    method = method_of("attention", "masking.attention_rows=0.2", "encoder.depth=2")
    split, network, batch = drawn(method), method.network, batch_of()
    assert split.guides.shape == (6, round(0.2 * 19))
    block: Any = network.encoder.blocks[0]
    class_token = network.encoder.class_token.expand(6, -1, -1)
    x = block.attention_norm(torch.cat([class_token, network.tokenizer(batch)], 1)).transpose(0, 1)
    weight, out = block.attention.qkv.weight, block.attention.out
    _, maps = F.multi_head_attention_forward(
        *(x, x, x, 16, 2, weight, None, None, None, False, 0.0, out.weight, out.bias),
        average_attn_weights=False,
    )
    assert maps is not None  # (B, H, 1 + L, 1 + L)
    expected = torch.stack(
        [
            sum(
                (maps.detach()[b, :, 1 + int(i), 1:].sum(0) for i in split.guides[b]),
                torch.zeros(19),
            )
            for b in range(6)
        ]
    )
    scores = rule_of(method, AttentionRule).scores(network, batch, split)
    torch.testing.assert_close(scores, expected)
    # At the end of training all of a mask is the highest scores of every input.
    chosen = method.complete(batch, split)
    for b in range(6):
        for tokens, masked in ((range(12), 6), (range(12, 19), 4)):
            best = sorted(tokens, key=lambda j: -expected[b, j].item())[:masked]
            assert set(best) == set(chosen.query_idx[b].tolist()) & set(tokens)


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.integers(0, 5), min_size=19, max_size=19),
    share=st.floats(0, 1),
    ratio=st.sampled_from([0.3, 0.5, 0.75]),
    seed=st.integers(0, 2**31),
)
def test_a_share_is_chosen_and_the_rest_is_drawn(
    scores: list[int], share: float, ratio: float, seed: int
) -> None:
    """Token by token: the highest scores first, then the smallest keys of what is left."""
    masking = Masking(TWO, ratio, 0.6)
    rule = AttentionRule(share=(share, share))
    split = rule.draw(masking, 2, torch.Generator().manual_seed(seed), 0.3)
    result = choose(masking, torch.tensor([scores] * 2).float(), split)
    for b in range(2):
        expected: list[int] = []
        for tokens, masked in zip((range(12), range(12, 19)), masking.query_counts, strict=True):
            ranked = sorted(tokens, key=lambda j: (-scores[j], j))
            first = ranked[: round(share * masked)]
            others = sorted(set(tokens) - set(first), key=lambda j: float(split.keys[b, j]))
            expected += sorted([*first, *others[: masked - len(first)]])
        assert result.query_idx[b].tolist() == expected
        assert sorted([*expected, *result.support_idx[b].tolist()]) == list(range(19))
        beside = masking.touches_support(result.support_idx, result.query_idx)[b]
        coins = [float(split.coins[b, j]) < 0.6 for j in expected]
        assert result.nearby[b].tolist() == [
            c and bool(near) for c, near in zip(coins, beside, strict=True)
        ]


def test_a_rule_takes_over_in_the_course_of_training() -> None:
    shares_of = {"attention": (0.0, 1.0), "hard": (0.0, 0.5), "adaptive": (1.0, 1.0)}
    for rule, ends in shares_of.items():
        shares = [drawn(method_of(rule), p).share for p in (0.0, 0.5, 1.0)]
        assert shares == [ends[0], sum(ends) / 2, ends[1]]
    method = method_of("hard", "masking.rule_share=[0.2,0.8]")
    assert [drawn(method, p).share for p in (0.0, 1.0)] == pytest.approx([0.2, 0.8])
    # A run counts its steps, not its batches.
    config = config_of("attention", "training.steps=3", "training.accumulate=2")
    run = Run(config, load_dataset("basic_motions"), Path("unused"), torch.device("cpu"))
    assert [run.draw(n).share for n in range(6)] == [0, 0, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["masking.rule=hard"], True),
        (["masking.rule=attention"], True),
        (["masking.rule=adaptive"], False),
        (["masking.rule=adaptive", "masking.rule_share=[0,1]"], True),
        (["masking.rule=hard", "masking.rule_share=[0.5,0.5]"], False),
    ],
)
def test_more_steps_go_on_only_where_masks_do_not_depend_on_their_number(
    overrides: list[str], refused: bool, tmp_path: Path
) -> None:
    """A share that grows to the last step would fall back: 2 + 1 steps are then no run of 3."""
    data = load_dataset("basic_motions")
    pretrain(config_of("random", "training.steps=2", *overrides), data, tmp_path / "run")
    longer = config_of("random", "training.steps=3", *overrides)
    if refused:
        with pytest.raises(CheckpointError, match=r"training\.steps: 2 -> 3"):
            pretrain(longer, data, tmp_path / "run", resume=True)
        return
    pretrain(longer, data, tmp_path / "run", resume=True)
    pretrain(longer, data, tmp_path / "whole")
    one, two = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("run", "whole")
    )
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("rule", ["hard", "adaptive"])
def test_a_rules_gradient_shortens_no_other(rule: str, tmp_path: Path) -> None:
    """The norm is bounded for the rule's weights, and for all others, each by itself."""
    config = config_of(rule, "training.clip_norm=0.01")
    run = Run(config, load_dataset("basic_motions"), tmp_path, torch.device("cpu"))
    for _ in range(3):  # the sampler's block has a gradient once its last map has moved
        run.advance()
    norms = {True: 0.0, False: 0.0}
    for name, parameter in run.method.named_parameters():
        if parameter.grad is not None:
            norms[".rule." in name] += float(parameter.grad.square().sum())
    assert norms[False] ** 0.5 == pytest.approx(0.01, rel=1e-3)
    assert 0 < norms[True] ** 0.5 < 0.01 * 1.001


def slow_ranking_loss(ranks: Tensor, losses: Tensor) -> list[float]:
    found = []
    for p, loss in zip(ranks.tolist(), losses.tolist(), strict=True):
        pairs = [(i, j) for i in range(len(p)) for j in range(len(p)) if loss[i] > loss[j]]
        terms = [-math.log(1 / (1 + math.exp(-(p[i] - p[j])))) for i, j in pairs]
        found.append(sum(terms) / len(terms) if terms else 0.0)
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 6))
def test_the_ranking_loss_is_that_of_its_pairs(seed: int, size: int) -> None:
    random = torch.Generator().manual_seed(seed)
    ranks = torch.randn(3, size, generator=random, dtype=torch.float64)
    losses = torch.randint(0, 4, (3, size), generator=random).double()
    expected = torch.tensor(slow_ranking_loss(ranks, losses), dtype=torch.float64)
    torch.testing.assert_close(ranking_loss(ranks, losses), expected)


@pytest.mark.parametrize("method_name", ["mae", "umae", "metamae"])
def test_only_the_head_learns_to_rank(method_name: str) -> None:
    """The loss and every other gradient are those of the same masks without a head."""
    method = method_of("hard", "decoder.query_fraction=0.5", method=method_name)
    batch = batch_of()
    split = method.complete(batch, drawn(method))
    assert isinstance(split, RankedSplit)
    assert split.scored is not None
    result = method(batch, split)
    result.loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters()}
    rule = rule_of(method, HardRule)
    # By hand: states of the unmasked examples, where the loss was taken.
    with torch.no_grad():
        states = method.network.token_features(batch)
        targets = method.network.tokenizer.targets(batch)
        losses = method.network.query_token_losses(method.latents(batch, split)[1], targets, split)
    index = split.query_idx.gather(1, split.scored)
    parts = []
    for loss, places in zip(losses, index.split([x.shape[1] for x in losses], 1), strict=True):
        ranks = torch.stack([rule.head(states[b, places[b]]).squeeze(-1) for b in range(6)])
        parts.append(ranking_loss(ranks, loss))
    expected = torch.autograd.grad(torch.stack(parts).mean(), list(rule.parameters()))
    for found, wanted in zip(rule.parameters(), expected, strict=True):
        torch.testing.assert_close(found.grad, wanted)
        assert wanted.abs().max() > 0
    method.network.rule = None
    method.zero_grad()
    plain = Split(*(getattr(split, name) for name in Split.__dataclass_fields__))
    again = method(batch, plain)
    assert torch.equal(result.loss, again.loss)
    again.loss.backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_the_share_of_pairs_in_order_is_logged() -> None:
    method = method_of("hard")
    batch, rule = batch_of(), rule_of(method, HardRule)
    split = method.complete(batch, drawn(method))
    assert isinstance(split, RankedSplit)
    ranks = rule.rank(split.states)
    first = ranks.detach().split(method.network.masking.query_counts, 1)
    assert rule.agreement(first, split) == 1
    assert rule.agreement([-x for x in first], split) == 0
    assert 0 < method.monitor(batch, split)["ranked"] < 1
    assert method.monitor(batch, method.draw(6, torch.Generator().manual_seed(0))) == {}


@pytest.mark.parametrize("rule", ["attention", "hard", "adaptive"])
def test_a_mask_depends_on_its_example_alone(rule: str) -> None:
    """Parts of a batch are masked as in the whole, and dropout has no part in it."""
    method = method_of(rule, "encoder.dropout=0.5").train()
    if rule == "adaptive":  # draws at random until it has learned
        torch.nn.init.normal_(rule_of(method, AdaptiveRule).logit.weight)
    batch, split = batch_of(), drawn(method, 0.7)
    whole = method.complete(batch, split)
    assert method.training
    for rows in (slice(0, 2), slice(2, 6)):
        part = method.complete({name: x[rows] for name, x in batch.items()}, split[rows])
        assert torch.equal(part.query_idx, whole.query_idx[rows])
        assert torch.equal(part.nearby, whole.nearby[rows])
    other = method.complete({name: -x for name, x in batch.items()}, split)
    assert not torch.equal(other.query_idx, whole.query_idx)


@pytest.mark.parametrize("rule", ["attention", "hard", "adaptive"])
def test_a_drawn_ratio_is_kept(rule: str) -> None:
    method = method_of(rule, "masking.ratio_range=[0.3,0.8]")
    batch, sizes = batch_of(), set()
    for seed in range(4):
        split = drawn(method, seed=seed)
        chosen = method.complete(batch, split)
        assert chosen.visible == split.visible != ()
        assert chosen.query_idx.shape == split.query_idx.shape
        assert method(batch, chosen).loss.isfinite()
        sizes.add(chosen.query_idx.shape[1])
    assert len(sizes) > 1


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return state


@pytest.mark.parametrize(
    "rule", [pytest.param("attention", marks=pytest.mark.slow), "hard", "adaptive"]
)
def test_a_resumed_run_and_one_in_pieces_end_alike(rule: str, tmp_path: Path) -> None:
    data = load_dataset("basic_motions")
    config = config_of(rule, "training.steps=3", "training.log_every=1", method="metamae")
    done = pretrain(config, data, tmp_path / "whole")
    assert ("ranked" in done.history.series) == (rule == "hard")
    assert ("mask_entropy" in done.history.series) == (rule == "adaptive")

    (tmp_path / "resumed").mkdir()
    run = Run(config, data, tmp_path / "resumed", torch.device("cpu"))
    steps = run.train()
    next(steps), next(steps)
    run.save()
    pretrain(config, data, tmp_path / "resumed", resume=True)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "resumed")[name]), name
    pieces = config_of(rule, "training.steps=3", "training.micro_batch=2", method="metamae")
    pretrain(pieces, data, tmp_path / "pieces", ranks=Ranks())
    for name, value in weights(tmp_path / "whole").items():
        found = weights(tmp_path / "pieces")[name]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["attention", "hard", "adaptive"])
def test_a_compiled_loss_reads_the_chosen_masks(rule: str) -> None:
    method = method_of(rule, method="metamae")
    batch = batch_of()
    split = method.complete(batch, drawn(method))
    compiled = CompiledLoss(method, 6, torch.device("cpu"), backend="aot_eager")
    compiled.prepare(batch, split)
    assert compiled.failure == ""
    torch.testing.assert_close(compiled(batch, split).loss, method(batch, split).loss)
    assert compiled.overflows == 0


def test_what_cannot_have_a_rule_is_refused_by_name() -> None:
    for overrides, text in (
        (["method=emix"], "a method among mae, umae, metamae, random, got 'attention with emix'"),
        (["method=mae_contrast"], "got 'attention with mae_contrast'"),
        (["learn.settings=[step_size]"], "masking.rule=random where learn.settings names some"),
        (["encoder.depth=0"], "encoder.depth >= 1 where masking.rule is not random"),
        (["masking.rule_share=[0.5]"], "masking.rule_share of two shares"),
        (["masking.attention_rows=0"], "masking.attention_rows in"),
        (
            ["masking.rule=random", "masking.rule_share=[0,1]"],
            "masking.rule_share empty where masking.rule=random",
        ),
    ):
        with pytest.raises(ConfigError) as fault:
            make_config("basic_motions", overrides=[*SIZES, "masking.rule=attention", *overrides])
        assert text in str(fault.value)


def test_a_rule_changes_no_initial_weight() -> None:
    """What is built beside it starts as without it."""
    plain = method_of("random", method="metamae").state_dict()
    ruled = method_of("hard", method="metamae").state_dict()
    assert set(ruled) - set(plain) == {
        f"network.rule.head.{name}" for name in ("0.weight", "0.bias", "2.weight")
    }
    assert all(torch.equal(value, ruled[name]) for name, value in plain.items())
