"""`DistributedDataParallel`: two processes learn what one learns from both batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    Checkpointed,
    FiniteDifference,
    GradientPolicy,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    Momentum,
    Truncated,
    Unrolled,
)

POLICIES: dict[str, tuple[GradientPolicy, float]] = {
    "Unrolled": (Unrolled(), 1e-10),
    "Checkpointed": (Checkpointed(), 1e-10),
    "Truncated": (Truncated(1), 1e-10),
    "FiniteDifference": (FiniteDifference(), 1e-7),
    "Implicit": (Implicit(proximal=1.0, iterations=20, tolerance=1e-13), 1e-10),
}
TASKS = 4

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch is built without torch.distributed and its gloo backend",
)


class Learner(nn.Module):
    """Encoder, inner loop and outer loss, all inside `forward`, as DDP needs it."""

    def __init__(self, policy: GradientPolicy) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(5, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5))
        learned = not isinstance(policy, Implicit)  # which gives step sizes no gradient
        self.adapter = LatentAdapter(
            LearnedStepSize(0.2, channels=3) if learned else 0.2,
            steps=3,
            differentiation=policy,
            update=Momentum(0.5),
        )
        self.double()

    def forward(self, examples: Tensor) -> Tensor:
        memory = self.encoder(examples)

        def support(z: Tensor) -> Tensor:
            return (self.decoder(z) - examples).square().sum(1) + 0.1 * (z - memory).square().sum(1)

        refined = self.adapter(memory, support).latent
        loss: Tensor = (self.decoder(refined) - examples.roll(1, 1)).square().sum(1).mean()
        return loss


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2 * TASKS, 5, generator=generator, dtype=torch.float64)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def work(rank: int, folder: str) -> None:
    """One of two processes: two iterations of each policy on its half of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    results: dict[str, Any] = {}
    for name, (policy, _) in POLICIES.items():
        model = nn.parallel.DistributedDataParallel(Learner(policy))
        mine = batch()[rank * TASKS : (rank + 1) * TASKS]
        try:
            for _ in range(2):  # the second finds out whether the first left the reducer ready
                model.zero_grad()
                model(mine).backward()
            results[name] = gradients(model.module)
        except Exception as error:
            results[name] = repr(error)
    torch.save(results, f"{folder}/rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Gradients that the two processes end up with."""
    folder: Path = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", POLICIES)
def test_two_processes_average_to_the_gradient_of_the_joint_batch(
    ranks: list[dict[str, Any]], name: str
) -> None:
    """Every parameter, the step size included."""
    policy, tolerance = POLICIES[name]
    alone = Learner(policy)
    alone(batch()).backward()
    expected = gradients(alone)
    assert expected.keys() == dict(alone.named_parameters()).keys()
    assert all(gradient.abs().max() > 1e-6 for gradient in expected.values())
    for received in ranks:
        assert not isinstance(received[name], str), received[name]
        torch.testing.assert_close(received[name], expected, rtol=tolerance, atol=tolerance)
    halves = Learner(policy)
    halves(batch()[:TASKS]).backward()
    different = gradients(halves)["encoder.weight"] - expected["encoder.weight"]
    assert different.abs().max() > 1e-3, "the two halves must matter for the test to mean anything"
