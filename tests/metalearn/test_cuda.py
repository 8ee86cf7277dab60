"""On a GPU: the same gradients, the same replay of random draws, and a MetaMAE step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn import (
    Checkpointed,
    FiniteDifference,
    FirstOrder,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    Momentum,
    SecondDerivativeError,
    TorchOptimiser,
    Truncated,
    Unrolled,
    UpdateRule,
    plain_attention,
)
from metamae import load_dataset
from metamae.config.presets import make_config
from metamae.inputs import Signal
from metamae.methods.building import build_method
from metamae.methods.metamae import MetaMAE
from metamae.training.compiling import CompiledLoss
from metamae.training.pretraining import pretrain

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA device on this machine"
)

POLICIES = [
    Unrolled(),
    Checkpointed(),
    Truncated(1),
    FirstOrder(),
    FiniteDifference(),
    Implicit(proximal=1.0, tolerance=1e-12),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    """A seeded float64 normal tensor, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def learn(
    policy: GradientPolicy, device: str, update: UpdateRule | None = None, dropout: float = 0.0
) -> list[Tensor]:
    """Refined latent, traces and gradients of a small attention decoder, back on the CPU."""
    torch.manual_seed(0)
    decoder = nn.Linear(6, 6).double().to(device)
    latent = random(3, 4, 6).to(device).requires_grad_()
    target = random(3, 4, 6, seed=1).to(device)
    learned = not isinstance(policy, Implicit)
    size = LearnedStepSize(0.1, channels=6, steps=3).double().to(device)

    def loss(z: Tensor) -> Tensor:
        hidden = F.dropout(decoder(z), dropout)
        return (plain_attention(hidden, hidden, hidden) - target).square().sum((1, 2))

    adapter = LatentAdapter(
        size if learned else 0.1, steps=3, differentiation=policy, update=update
    )
    torch.manual_seed(1)
    result = adapter(latent, loss, trace=True)
    torch.manual_seed(2)
    inputs = [latent, *decoder.parameters(), *size.parameters()]
    gradients = torch.autograd.grad(
        result.latent.sin().sum(), inputs, allow_unused=True, materialize_grads=True
    )
    assert result.trace is not None
    outcome = [result.latent, result.losses, result.trace.step_norms, *gradients]
    assert all(value.device.type == torch.device(device).type for value in outcome)
    return [value.detach().cpu() for value in outcome]


@pytest.mark.parametrize(
    "update", [None, Momentum(0.5), TorchOptimiser(torch.optim.Adam)], ids=repr
)
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_gradients_equal_those_of_the_cpu(
    policy: GradientPolicy, update: UpdateRule | None
) -> None:
    """In float64; finite differences amplify the last digits."""
    tolerance = 1e-6 if isinstance(policy, FiniteDifference) else 1e-9
    received, expected = learn(policy, DEVICE, update), learn(policy, "cpu", update)
    torch.testing.assert_close(received, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("policy", [Checkpointed(), FiniteDifference()], ids=repr)
def test_dropout_on_the_device_is_replayed(policy: GradientPolicy) -> None:
    """The device has a random state of its own; the masks are those of `Unrolled`."""
    received, expected = learn(policy, DEVICE, dropout=0.5), learn(Unrolled(), DEVICE, dropout=0.5)
    torch.testing.assert_close(received, expected, rtol=1e-6, atol=1e-6)
    again = learn(policy, DEVICE, dropout=0.5)
    torch.testing.assert_close(received, again, rtol=1e-12, atol=1e-12)


def test_dropout_is_replayed_in_the_implicit_backward_pass() -> None:
    """The same seed gives the same gradient, whatever was drawn in between."""
    policy = Implicit(damping=5.0)
    first, second = (learn(policy, DEVICE, dropout=0.5) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_fused_attention_on_the_device() -> None:
    """Refused by `Unrolled`, differentiated by `FiniteDifference`."""
    latent = random(2, 4, 16).float().to(DEVICE).requires_grad_()

    def loss(z: Tensor) -> Tensor:
        heads = z.unsqueeze(1)
        return F.scaled_dot_product_attention(heads, heads, heads).square().mean((1, 2, 3))

    def plain(z: Tensor) -> Tensor:
        return plain_attention(z, z, z).square().mean((1, 2))

    with pytest.raises(SecondDerivativeError, match="plain_attention"):
        LatentAdapter(0.1)(latent, loss)
    gradients = []
    for policy, support in ((FiniteDifference(), loss), (Unrolled(), plain)):
        refined = LatentAdapter(0.1, differentiation=policy)(latent, support).latent
        gradients += torch.autograd.grad(refined.square().sum(), latent)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)


def test_memory_of_checkpointed_hardly_grows_with_steps() -> None:
    """The peak on the device, backward pass included."""

    def peak(policy: GradientPolicy, steps: int) -> int:
        weight = random(64, 20_000).float().to(DEVICE).requires_grad_()
        latent = random(8, 64).float().to(DEVICE).requires_grad_()
        torch.cuda.reset_peak_memory_stats()
        refined = LatentAdapter(1e-4, steps=steps, differentiation=policy)(
            latent, lambda z: torch.tanh(z @ weight).square().sum(1)
        ).latent
        refined.sum().backward()
        return torch.cuda.max_memory_allocated()

    assert peak(Checkpointed(), 16) < 1.5 * peak(Checkpointed(), 1)
    assert peak(Unrolled(), 16) > peak(Unrolled(), 1) + 10 * 8 * 20_000 * 4


@pytest.mark.parametrize("policy", POLICIES[:-1], ids=repr)
def test_a_metamae_step_equals_that_of_the_cpu(policy: GradientPolicy) -> None:
    """The whole objective, with a fused encoder; float32, as in training."""
    overrides = ["encoder={width: 32, depth: 1, heads: 4}", "decoder={width: 32, depth: 1}"]
    spec = Signal(name="signal", channels=6, length=128, token_length=4)
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(4, 6, 128, generator=generator)
    results = []
    for device in (DEVICE, "cpu"):
        method = build_method(make_config("sensors", overrides=overrides), (spec,)).to(device)
        assert isinstance(method, MetaMAE)
        method.meta.adapter = LatentAdapter(20.0, steps=2, differentiation=policy)
        split = method.draw(4, torch.Generator().manual_seed(1)).to(device)
        result = method({"signal": signal.to(device)}, split)
        result.loss.backward()
        flat = [p.grad.flatten().cpu() for p in method.parameters() if p.grad is not None]
        results.append((result.loss.detach().cpu(), torch.cat(flat)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    difference = (results[0][1] - results[1][1]).norm() / results[1][1].norm()
    assert difference < 1e-2


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("graphs", [False, True])
def test_a_compiled_step_equals_the_eager_one(graphs: bool) -> None:
    """Also replayed as recorded graphs, over several batches."""
    config = make_config(
        "sensors",
        overrides=[
            *("encoder.width=32", "encoder.depth=2", "encoder.heads=2", "decoder.width=16"),
            *("decoder.depth=1", "decoder.heads=2", "contrast.hidden=16", "contrast.out=8"),
        ],
    )
    device = torch.device(DEVICE)
    method = build_method(config, (Signal(name="s", channels=2, length=32, token_length=4),))
    method = method.to(device).train()
    compiled = CompiledLoss(method, 8, device, cuda_graphs=graphs)
    for seed in range(4):
        batch = {"s": random(8, 2, 32, seed=seed).float().to(device)}
        split = method.draw(8, torch.Generator().manual_seed(seed)).to(device)
        if seed == 0:
            compiled.prepare(batch, split)
            assert compiled.failure == ""
        results = []
        for loss in (method, compiled):
            value = loss(batch, split).loss
            gradients = torch.autograd.grad(value, list(method.parameters()))
            results.append([value.detach().clone(), *(g.clone() for g in gradients)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-5)
    assert compiled.overflows == 0


def test_training_with_prefetched_pinned_input_equals_itself_resumed(tmp_path: Path) -> None:
    """Pinned, non-blocking copies, fused AdamW: the same losses from a checkpoint on."""
    overrides = ["encoder.width=32", "encoder.depth=1", "decoder.depth=1", "training.steps=6"]
    overrides += ["training.checkpoint_every=3", "training.log_every=1"]
    data = load_dataset("basic_motions")
    config = make_config("basic_motions", overrides=overrides)
    whole = pretrain(config, data, tmp_path / "whole", device=DEVICE)
    half = make_config("basic_motions", overrides=[*overrides, "training.steps=3"])
    pretrain(half, data, tmp_path / "part", device=DEVICE)
    resumed = pretrain(config, data, tmp_path / "part", device=DEVICE, resume=True)
    for (_, ours), (_, theirs) in zip(
        resumed.history.series["query"], whole.history.series["query"], strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-4)
