"""A used adapter can be copied, pickled, saved whole and sent to another process.

Reported of modules that remember code or closures:
https://github.com/pytorch/pytorch/issues/102214
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metalearn import (
    Checkpointed,
    ClipGradient,
    FiniteDifference,
    FirstOrder,
    Implicit,
    LatentAdapter,
    LearnedStepSize,
    MetaObjective,
    Momentum,
    SetEncoder,
    TorchOptimiser,
    Truncated,
    Unrolled,
)

POLICIES = [
    Unrolled(),
    Checkpointed(),
    Truncated(1),
    FirstOrder(),
    FiniteDifference(),
    Implicit(damping=1.0),
]
RULES = [None, Momentum(0.5), ClipGradient(1.0), TorchOptimiser(torch.optim.Adam)]


def loss(z: Tensor) -> Tensor:
    return z.cos().sum(1)


def used(policy: Any, update: Any = None) -> LatentAdapter:
    adapter = LatentAdapter(
        LearnedStepSize(0.1, channels=3), steps=2, differentiation=policy, update=update
    )
    refined = adapter(torch.ones(2, 3, requires_grad=True), lambda z: z.cos().sum(1)).latent
    if refined.requires_grad:
        refined.sum().backward()
    return adapter


def through_torch(adapter: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(adapter, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "pickle": lambda adapter: pickle.loads(pickle.dumps(adapter)),
    "deepcopy": copy.deepcopy,
    "torch.save": through_torch,
}


@pytest.mark.parametrize("update", RULES, ids=repr)
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("way", WAYS)
def test_a_copy_does_the_same(way: str, policy: Any, update: Any) -> None:
    adapter = used(policy, update)
    again = WAYS[way](adapter)
    torch.testing.assert_close(
        again(torch.ones(2, 3), loss).latent, adapter(torch.ones(2, 3), loss).latent
    )
    assert list(again.state_dict()) == list(adapter.state_dict())
    assert repr(again) == repr(adapter)


def test_inside_an_objective() -> None:
    objective = MetaObjective(SetEncoder(3, 4), LatentAdapter(0.1))
    support = torch.randn(2, 5, 3)
    objective(support, support_loss=lambda z: z.cos().sum(1), query_loss=loss)
    pickle.loads(pickle.dumps(objective))(support, support_loss=loss, query_loss=loss)


def refine_elsewhere(adapter: LatentAdapter, answers: Any) -> None:
    answers.put(adapter(torch.ones(2, 3), loss).latent.detach().numpy())


def test_sent_to_a_spawned_process() -> None:
    adapter = used(Checkpointed())
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=refine_elsewhere, args=(adapter, answers))
    process.start()
    found = answers.get()
    process.join()
    assert process.exitcode == 0
    expected = adapter(torch.ones(2, 3), loss).latent.detach()
    torch.testing.assert_close(torch.from_numpy(found), expected)
