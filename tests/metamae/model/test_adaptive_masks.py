"""AdaMAE's sampler: its distribution, its draws and its loss, computed another way."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metamae.methods import MAE
from metamae.model.mask_rules import AdaptiveRule
from metamae.model.mask_rules.adaptive import SampledSplit, perturbed
from metamae.model.masking import Split
from tests.metamae.model.test_mask_rules import batch_of, drawn, method_of, rule_of


def awake(method: MAE, seed: int = 1) -> AdaptiveRule:
    """Its rule, with weights under which tokens differ."""
    rule = rule_of(method, AdaptiveRule)
    assert isinstance(rule, AdaptiveRule)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in rule.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=random))
    return rule


def slow_log_probabilities(rule: AdaptiveRule, tokens: Tensor) -> Tensor:
    """Of a block by torch's own attention; softmax over the tokens of each input."""
    block = rule.block
    x = block.attention_norm(tokens).transpose(0, 1)
    weight, out = block.attention.qkv.weight, block.attention.out
    attended, _ = F.multi_head_attention_forward(
        *(x, x, x, 16, 2, weight, None, None, None, False, 0.0, out.weight, out.bias)
    )
    hidden = tokens + attended.transpose(0, 1)
    inner = F.linear(block.mlp_norm(hidden), block.mlp[0].weight, block.mlp[0].bias)
    hidden = hidden + F.linear(F.gelu(inner), block.mlp[3].weight, block.mlp[3].bias)
    logits = (hidden * rule.logit.weight[0]).sum(-1)
    return torch.cat([logits[:, :12].log_softmax(1), logits[:, 12:].log_softmax(1)], 1)


def test_the_visible_tokens_are_those_that_were_drawn() -> None:
    method, batch = method_of("adaptive"), batch_of()
    rule, split = awake(method), drawn(method)
    chosen = method.complete(batch, split)
    assert isinstance(chosen, SampledSplit)
    tokens = method.network.tokenizer(batch)
    torch.testing.assert_close(chosen.tokens, tokens.detach())
    assert not chosen.tokens.requires_grad
    logs = slow_log_probabilities(rule, tokens).detach()
    torch.testing.assert_close(rule.log_probabilities(tokens), logs)
    for b in range(6):
        for places, visible in ((range(12), 6), (range(12, 19), 3)):
            # Waiting times with rates p: the first to ring are visible.
            waits = {j: -math.log(split.noise[b, j]) / math.exp(logs[b, j]) for j in places}
            first = sorted(places, key=lambda j: waits[j])[:visible]
            assert set(first) == set(chosen.support_idx[b].tolist()) & set(places)


def test_tokens_are_drawn_one_by_one_without_replacement() -> None:
    """Every set comes as often as one draw after the other makes it."""
    p, size = [0.5, 0.25, 0.15, 0.1], 20_000
    noise = torch.rand(size, 4, generator=torch.Generator().manual_seed(0))
    keys = perturbed(torch.tensor(p).log().expand(size, 4), noise)
    visible = keys.argsort(1, descending=True)[:, :2].sort(1).values
    for i, j in itertools.combinations(range(4), 2):
        expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        share = float((visible == torch.tensor([i, j])).all(1).double().mean())
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / size))


@pytest.mark.parametrize("method_name", ["mae", "umae", "metamae"])
def test_only_the_sampler_learns_where_losses_are(method_name: str) -> None:
    """The loss and every other gradient are those of the same masks without a sampler."""
    method = method_of("adaptive", "decoder.query_fraction=0.5", method=method_name)
    batch, rule = batch_of(), awake(method)
    split = method.complete(batch, drawn(method))
    assert isinstance(split, SampledSplit)
    assert split.scored is not None
    result = method(batch, split)
    result.loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters()}
    # By hand: token by token of those that the loss was taken on.
    with torch.no_grad():
        tokens, targets = method.network.tokenizer(batch), method.network.targets(batch)
        losses = method.network.query_token_losses(method.latents(batch, split)[1], targets, split)
    logs, by_example = slow_log_probabilities(rule, tokens), []
    for b in range(6):
        places = [int(split.query_idx[b, int(place)]) for place in split.scored[b]]
        first = losses[0].shape[1]
        by_input = [
            sum(-logs[b, j] * of_input[b, n] / len(own) for n, j in enumerate(own))
            for of_input, own in zip(losses, (places[:first], places[first:]), strict=True)
        ]
        by_example.append(sum(by_input) / 2)
    expected = torch.autograd.grad(torch.stack(by_example).mean(), list(rule.parameters()))
    for weight, wanted in zip(rule.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, wanted, rtol=1e-3, atol=1e-4)
        assert wanted.abs().max() > 0
    method.network.rule = None
    method.zero_grad()
    again = method(batch, Split(**split.shared()))
    assert torch.equal(result.loss, again.loss)
    again.loss.backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def test_a_step_makes_tokens_of_large_losses_visible_more_often() -> None:
    method, batch = method_of("adaptive"), batch_of()
    rule = rule_of(method, AdaptiveRule)
    split = method.complete(batch, drawn(method))
    assert isinstance(split, SampledSplit)
    tokens = split.tokens
    before = rule.log_probabilities(tokens)
    assert torch.allclose(before, torch.tensor([12.0] * 12 + [7.0] * 7).log().neg())  # random
    losses = [torch.zeros(6, count) for count in method.network.masking.query_counts]
    losses[0][:, 0] = 1.0
    loss = rule.token_loss(losses, split)
    assert loss is not None
    for weight, gradient in zip(
        rule.parameters(), torch.autograd.grad(loss.mean(), [*rule.parameters()]), strict=True
    ):
        weight.data -= 0.01 * gradient
    change = (rule.log_probabilities(tokens) - before).gather(1, split.query_idx[:, :1])
    assert change.mean() > 0


def test_the_entropy_is_logged() -> None:
    method, batch = method_of("adaptive"), batch_of()
    split = method.complete(batch, drawn(method))
    assert method.monitor(batch, split) == {"mask_entropy": pytest.approx(1)}
    logs = slow_log_probabilities(awake(method), method.network.tokenizer(batch)).tolist()
    shares = [
        sum(-x * math.exp(x) for x in row[part]) / math.log(size) / 12
        for row in logs
        for part, size in ((slice(0, 12), 12), (slice(12, 19), 7))
    ]
    assert method.monitor(batch, split) == {"mask_entropy": pytest.approx(sum(shares), rel=1e-4)}
    assert 0 < sum(shares) < 0.999
    assert method.monitor(batch, method.draw(6, torch.Generator().manual_seed(0))) == {}
