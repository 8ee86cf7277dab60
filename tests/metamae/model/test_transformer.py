"""The transformer: two attentions with one value, dropout in its places, a set encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metalearn import SupportEncoder
from metamae.config.sections import EncoderConfig
from metamae.model.transformer import Attention, Block, TransformerEncoder


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def off_initial(module: nn.Module) -> nn.Module:
    """Float64, and away from zero biases and unit norms, which would hide mistakes."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.double().parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=seed))
    return module


@pytest.fixture(name="encoder")
def make_encoder() -> TransformerEncoder:
    """Two blocks, 8 wide, with dropout."""
    config = EncoderConfig(width=8, depth=2, heads=2, dropout=0.5)
    encoder = off_initial(TransformerEncoder(config))
    assert isinstance(encoder, TransformerEncoder)
    return encoder


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_fused_and_plain_attention_agree(dtype: torch.dtype, tolerance: float) -> None:
    """In value and gradient: the kernel is a choice, not another model."""
    attention, outcomes = Attention(8, 2).to(dtype), []
    for second_order in (False, True):
        x = random(3, 5, 8).to(dtype).requires_grad_()
        y = attention(x, second_order=second_order)
        gradients = torch.autograd.grad(y.square().mean(), [x, *attention.parameters()])
        outcomes.append((y, gradients))
    torch.testing.assert_close(outcomes[0], outcomes[1], atol=tolerance, rtol=tolerance)


def test_attention_of_bfloat16_on_a_cpu_is_computed_in_float32() -> None:
    """Rounded once, at the end; under autocast as well, which would narrow its input again."""
    query, key, value = (random(2, 5, 8, seed=seed).bfloat16() for seed in range(3))
    wide = [t.float().unflatten(-1, (2, 4)).transpose(1, 2) for t in (query, key, value)]
    expected = torch.softmax(wide[0] @ wide[1].mT / 2, dim=-1) @ wide[2]
    attention = Attention(8, 2)
    seen: list[Tensor] = []
    attention.out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.autocast("cpu", torch.bfloat16):
        attention.mix(query, key, value)
    assert seen[0].dtype == torch.bfloat16
    rounded = expected.bfloat16().transpose(1, 2).flatten(2)
    torch.testing.assert_close(seen[0], rounded, rtol=2**-8, atol=0)
    assert (seen[0] == rounded).float().mean() > 0.98


def test_attention_by_hand() -> None:
    """One head at a time: softmax(q k / sqrt(d)) v, heads next to each other."""
    attention, x = off_initial(Attention(8, 2, fused=False)), random(1, 5, 8)
    query, key, value = (x[0] @ attention.qkv.weight.T).split(8, dim=1)
    heads = [
        torch.softmax(query[:, s] @ key[:, s].T / 4**0.5, dim=1) @ value[:, s]
        for s in (slice(0, 4), slice(4, 8))
    ]
    expected = attention.out(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(x)[0], expected, atol=1e-12, rtol=1e-12)


def test_plain_attention_has_second_derivatives() -> None:
    """In input and weights, which is what the inner step of MetaMAE needs."""
    attention = Attention(4, 2).double()
    names = [name for name, _ in attention.named_parameters()]
    arguments = [random(1, 3, 4), *(p.detach().clone() for p in attention.parameters())]

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        result: Tensor = functional_call(
            attention, dict(zip(names, weights, strict=True)), (x,), {"second_order": True}
        )
        return result

    assert torch.autograd.gradgradcheck(call, [a.requires_grad_() for a in arguments])


def test_fused_attention_has_none() -> None:
    """The reason for the plain one; should this change, the inner decoder can be fused too."""
    attention, x = Attention(8, 2), torch.randn(1, 3, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(attention(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        gradient.sum().backward()


def test_heads_divide_the_width() -> None:
    """Named at construction."""
    with pytest.raises(ValueError, match="divisible by the heads, got 8 and 3"):
        Attention(8, 3)


class Scale(nn.Module):
    """Stands in for dropout: a known factor shows where it acts."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_dropout_acts_after_attention_gelu_and_second_layer() -> None:
    """And nowhere else: not on the residual, and not on the attention weights."""
    block, x = off_initial(Block(8, 2, 2.0, dropout=0.5)), random(2, 5, 8)
    (inside,) = (n for n, module in enumerate(block.mlp) if isinstance(module, nn.Dropout))
    assert block.dropout.p == block.mlp[inside].p == 0.5
    block.dropout, block.mlp[inside] = Scale(3.0), Scale(0.25)
    first, second = (module for module in block.mlp if isinstance(module, nn.Linear))
    middle = x + 3 * block.attention(block.attention_norm(x))
    hidden = nn.functional.gelu(first(block.mlp_norm(middle)))
    expected = middle + 3 * second(0.25 * hidden)
    torch.testing.assert_close(block.train()(x), expected, atol=1e-12, rtol=1e-12)


def test_dropout_acts_on_the_whole_sequence_class_token_included() -> None:
    """Before the first block; both blocks get the configured rate."""
    config = EncoderConfig(width=8, depth=0, heads=2, dropout=0.25)
    encoder, x = off_initial(TransformerEncoder(config)), random(2, 3, 8)
    rates = {m.p for m in encoder.modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.25}
    encoder.dropout = Scale(3.0)
    tokens = torch.cat([encoder.class_token.expand(2, -1, -1), x], dim=1)
    torch.testing.assert_close(encoder(x), encoder.norm(3 * tokens))


def test_dropout_is_for_training_only(encoder: TransformerEncoder) -> None:
    """Two training passes differ, two evaluations agree, and dropout 0 is an evaluation."""
    x = random(2, 3, 8)
    torch.manual_seed(0)
    assert not torch.equal(encoder.train()(x), encoder(x))
    evaluated = encoder.eval()(x)
    assert torch.equal(evaluated, encoder(x))
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(encoder.train()(x), evaluated)


def test_encoder_is_a_support_encoder_with_the_class_token_first(
    encoder: TransformerEncoder,
) -> None:
    """One latent token per support token, after the class token, normalised at the end."""
    assert isinstance(encoder, SupportEncoder)
    x = random(2, 3, 8)
    latent = encoder.eval()(x)
    assert latent.shape == (2, 4, 8)
    (by_class,) = torch.autograd.grad(latent[:, 1:].sum(), encoder.class_token)
    assert by_class.any()
    plain = (latent - encoder.norm.bias) / encoder.norm.weight
    torch.testing.assert_close(plain.mean(-1), torch.zeros(2, 4).double(), atol=1e-9, rtol=0)


def test_encoder_does_not_care_about_the_order_of_the_support(encoder: TransformerEncoder) -> None:
    """Permuting support tokens permutes their latents and leaves the class token's alone."""
    x, order = random(2, 5, 8), [3, 0, 4, 2, 1]
    latent, permuted = encoder.eval()(x), encoder(x[:, order])
    torch.testing.assert_close(permuted[:, 1:], latent[:, 1:][:, order], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(permuted[:, 0], latent[:, 0], atol=1e-12, rtol=1e-12)
    assert not torch.allclose(permuted[:, 1:], latent[:, 1:])


def test_encoder_keeps_examples_apart(encoder: TransformerEncoder) -> None:
    """Example 0's latent does not depend on example 1."""
    x = random(2, 3, 8)
    other = torch.cat([x[:1], random(1, 3, 8, seed=9)])
    latent, changed = encoder.eval()(x), encoder(other)
    torch.testing.assert_close(changed[0], latent[0], atol=1e-12, rtol=1e-12)
    assert not torch.allclose(changed[1], latent[1])
